"""Neighbours of new rows in a published index: the stage's own product, of use without any training.

A task searches the batches it is given; its Python worker opens each cell once, by mmap, whatever the tasks it runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from ivis_spark import storage
from ivis_spark.config import DataConfig
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.serving.index import INDEX_FILE, PartitionedIndex
from ivis_spark.spark.neighbours.task_plan import one_blas_thread
from ivis_spark.spark.rows import columns as frames
from ivis_spark.spark.rows import ingest
from ivis_spark.spark.rows.tables import exact_names
from ivis_spark.spark.tasks import map_arrow
from ivis_spark.spark.vectors import to_list, unpack

FOUND_SCHEMA = "id long, neighbour_ids array<long>, distances array<float>"
_opened: dict[str, tuple[str, PartitionedIndex]] = {}  # of this Python worker: the digest and the index of a folder


def query(frame: DataFrame, index: str, k: int | None = None, *, data: DataConfig | None = None) -> DataFrame:
    """Find the nearest indexed rows of each row of a table. Lazy.

    Runs on: driver; holds cells, no rows.

    Args:
        frame: Rows as they were before the build scaled them, in any form that `data` may name.
        index: URI of a run folder, or of the folder `neighbours/index` in it.
        k: Neighbours wanted; as many as the build found for its own rows if left out.
        data: Which columns are features and id, and what to do with invalid rows; ids are derived without one.

    Returns:
        `id` long, `neighbour_ids` array<long> and `distances` array<float>, k of each, nearest first, ties by id. A
        row that is in the index finds itself.

    Raises:
        ArtifactError: if there is no index.
        InputError: if the columns do not fit it, or k is not less than its rows.
    """
    opened = PartitionedIndex.load(index)
    wanted = opened.k if k is None else k
    if not 1 <= wanted <= opened.rows:
        raise InputError(f"k={wanted} neighbours are wanted; {index} has {opened.rows} rows: give 1 to {opened.rows}")
    config = data or DataConfig()
    with exact_names(frame):
        source = frames.resolve(frame, config)
    if source.width != opened.dims:
        raise InputError(
            f"the table has {source.width} features in {source.features_text}; the index was built on {opened.dims}"
        )
    rows = ingest.packed(source, config)
    if source.id_col is None:
        rows = ingest.with_derived_ids(rows)
    digest = str(storage.digest_file(storage.join(opened.uri, INDEX_FILE))["sha256"])
    body = functools.partial(query_batches, uri=opened.uri, digest=digest, k=wanted)
    return map_arrow(rows.select("id", "features"), body, FOUND_SCHEMA)


def query_batches(batches: Iterable[pa.RecordBatch], *, uri: str, digest: str, k: int) -> Iterator[pa.RecordBatch]:
    """Search the rows of each batch. Runs on: executor. Memory: O(batch x k) and the open cells."""
    index = _index(uri, digest)
    with one_blas_thread():
        for batch in batches:
            if not batch.num_rows:
                continue
            ids, distances = index.query(unpack(batch.column("features")), k)
            offsets = np.arange(0, ids.size + 1, k, dtype=np.int32)
            lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids.reshape(-1)))
            yield pa.RecordBatch.from_arrays(
                [batch.column("id"), lists, to_list(distances)], ["id", "neighbour_ids", "distances"]
            )


def _index(uri: str, digest: str) -> PartitionedIndex:
    """Return the index, opened once a worker; anew if it was published anew since."""
    if uri not in _opened or _opened[uri][0] != digest:
        found = str(storage.digest_file(storage.join(uri, INDEX_FILE))["sha256"])
        if found != digest:
            raise ArtifactError(f"{uri} was built anew while it was queried; run the query again")
        _opened.clear()
        _opened[uri] = (digest, PartitionedIndex.load(uri))
    return _opened[uri][1]
