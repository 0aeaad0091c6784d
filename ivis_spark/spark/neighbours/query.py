"""Neighbours of new rows in a published index: the stage's own product, of use without any training.

Rows go to their home regions by a shuffle, so that a task reads the leaves of few regions, each once.
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

_SCHEMA = "id long, neighbour_ids array<long>, distances array<float>"
_opened: dict[str, tuple[str, PartitionedIndex]] = {}  # of this Python worker: the digest and the index of a folder


def query(frame: DataFrame, index: str, k: int | None = None, *, data: DataConfig | None = None) -> DataFrame:
    """Find the nearest indexed rows of each row of a table. Lazy.

    Runs on: driver; holds what says where regions are, no rows.

    Args:
        frame: Rows as they were before the build scaled them, in any form that `data` may name.
        index: URI of a run folder, or of the folder `neighbours/index` in it.
        k: Neighbours of each row; as many as the build found for its own rows if left out.
        data: Which columns are features and id, and what to do with invalid rows; ids are derived without one.

    Returns:
        `id` long, `neighbour_ids` array<long> and `distances` array<float>, k of each, nearest first, ties by id. A
        row that is in the index finds itself.

    Raises:
        ArtifactError: if there is no index.
        InputError: if the columns do not fit it, or k is not less than its rows.
    """
    opened = PartitionedIndex.load(index)
    k = opened.k if k is None else k
    if not 1 <= k <= opened.rows:
        raise InputError(f"k={k} is out of range: {index} has {opened.rows} rows, so k must be 1 to {opened.rows}")
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
    rows = rows.select("id", "features")
    if len(opened.regions) > 1:
        body = functools.partial(_with_regions, uri=opened.uri, digest=digest)
        rows = map_arrow(rows, body, "id long, features binary, region int")
        rows = rows.repartition("region").sortWithinPartitions("region")
    return map_arrow(rows, functools.partial(_search, uri=opened.uri, digest=digest, k=k), _SCHEMA)


def _with_regions(batches: Iterable[pa.RecordBatch], *, uri: str, digest: str) -> Iterator[pa.RecordBatch]:
    """Add the home region of each row. Runs on: executor. Memory: O(batch)."""
    index = _index(uri, digest)
    with one_blas_thread():
        for batch in batches:
            rows = unpack(batch.column("features"))
            regions = pa.array(index.home(rows) if batch.num_rows else np.zeros(0, np.int64), pa.int32())
            columns = [batch.column("id"), batch.column("features").cast(pa.binary()), regions]
            yield pa.RecordBatch.from_arrays(columns, ["id", "features", "region"])


def _search(batches: Iterable[pa.RecordBatch], *, uri: str, digest: str, k: int) -> Iterator[pa.RecordBatch]:
    """Search the rows of each batch. Runs on: executor. Memory: O(batch x k) and the leaves that are kept."""
    index = _index(uri, digest)
    with one_blas_thread():
        for batch in batches:
            if batch.num_rows:
                ids, distances = index.query(unpack(batch.column("features")), k)
                offsets = np.arange(0, ids.size + 1, k, dtype=np.int32)
                lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids.reshape(-1)))
                yield pa.RecordBatch.from_arrays(
                    [batch.column("id"), lists, to_list(distances)], ["id", "neighbour_ids", "distances"]
                )


def _index(uri: str, digest: str) -> PartitionedIndex:
    """Return the index, opened once per worker; again if it was published again since."""
    if uri not in _opened or _opened[uri][0] != digest:
        found = str(storage.digest_file(storage.join(uri, INDEX_FILE))["sha256"])
        if found != digest:
            raise ArtifactError(f"{uri} was rebuilt while it was queried; run the query again")
        _opened.clear()
        _opened[uri] = (digest, PartitionedIndex.load(uri))
    return _opened[uri][1]
