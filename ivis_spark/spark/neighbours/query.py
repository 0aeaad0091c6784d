"""Neighbours of new rows in a published index: usable without any training.

Rows are shuffled to their primary regions, so that a task reads the leaves of few regions, each once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from ivis_spark import storage
from ivis_spark.config import DataConfig
from ivis_spark.config.checks import AUTO
from ivis_spark.core.knn.sizes import NEIGHBOUR_BYTES
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.serving.index import INDEX_FILE, PartitionedIndex
from ivis_spark.spark.neighbours.task_plan import one_blas_thread
from ivis_spark.spark.rows import columns as frames
from ivis_spark.spark.rows.tables import exact_names, write_parquet
from ivis_spark.spark.session import arrow_batches
from ivis_spark.spark.tasks import map_arrow
from ivis_spark.spark.vectors import describe, describe_invalid, name_faults, pack, read_rows, to_list, unpack

FOUND = T.StructType().add("neighbour_ids", T.ArrayType(T.LongType())).add("distances", T.ArrayType(T.FloatType()))
_READ = T.StructType().add("features", T.BinaryType()).add("region", T.IntegerType())
_opened: dict[str, tuple[str, PartitionedIndex]] = {}  # of this Python worker: the digest and the index of a folder


def query(
    frame: DataFrame, index: str, k: int | None = None, *, data: DataConfig | None = None, backend: str = AUTO
) -> DataFrame:
    """Find the nearest indexed rows of each row of a table. Lazy.

    Runs on: driver; holds the quantiser, but no rows. Tasks hold Arrow batches of as many rows as the session's
    `spark.sql.execution.arrow.maxRecordsPerBatch` says when the result is used: set few for wide rows (8 bytes a
    feature, and the columns that are kept).

    Args:
        frame: Unscaled rows, in any form that `data` supports.
        index: URI of a run folder, or of the folder `neighbours/index` in it.
        k: Neighbours of each row; by default as many as the build has.
        data: Which columns are features, which are kept, and what to do with invalid rows.
        backend: `neighbours.backend` of the build, if it is your own class; executors import it.

    Returns:
        The columns of the table that are kept, or its features if it has no other columns, then `neighbour_ids`
        array<long> and `distances` array<float>, k of each, nearest first, ties by id. A row that is in the index finds
        itself.

    Raises:
        ArtifactError: if there is no index.
        InputError: if the columns do not fit it, k is not less than its rows, or the table has a column
            `neighbour_ids` or `distances` that is kept.

    Example:
        `cells-run` is a run folder with published neighbours.

        >>> from ivis_spark.spark.neighbours.query import query
        >>> query(frame.select("id", "features"), "cells-run", k=3).columns
        ['id', 'neighbour_ids', 'distances']
    """
    return _query(frame, PartitionedIndex.load(index, backend=backend), k, data or DataConfig(), backend)[0]


def query_into(
    folder: str, frame: DataFrame, index: str, k: int | None, *, data: DataConfig, backend: str, batch_rows: int
) -> None:
    """Write what `query` gives as Parquet, in Arrow batches by bytes and of at most `batch_rows` rows."""
    opened = PartitionedIndex.load(index, backend=backend)
    found, source = _query(frame, opened, k, data, backend)
    projected = opened.scaler is not None and opened.scaler.projection is not None
    row_bytes = source.row_bytes(stays_sparse=source.sparse and projected) + NEIGHBOUR_BYTES * (k or opened.k)
    with arrow_batches(frame.sparkSession, row_bytes, most=batch_rows):
        write_parquet(found, folder)


def _query(
    frame: DataFrame, opened: PartitionedIndex, k: int | None, config: DataConfig, backend: str
) -> tuple[DataFrame, frames.Source]:
    k = opened.k if k is None else k
    if not 1 <= k <= opened.rows:
        raise InputError(f"k={k} is out of range: {opened.uri} has {opened.rows} rows, so k must be 1 to {opened.rows}")
    if config.indices_col:
        config = dataclasses.replace(config, n_features=opened.dims)
    with exact_names(frame):
        source = frames.resolve(frame, config)
    if source.width != opened.dims:
        raise InputError(
            f"the table has {source.width} features in {source.features_text}; the index was built on {opened.dims}"
        )
    clash = [name for name in source.carried if name.lower() in FOUND.names]
    if clash:
        raise InputError(f"the table already has a column {clash[0]!r}; drop it: --set data.drop_columns={clash[0]}")
    with exact_names(frame):
        table, features = frames.to_map(frame, source, config)
    carried = [place for place, field in enumerate(table.schema.fields) if field.name in source.carried]
    fields = [table.schema.fields[place] for place in carried]
    digest = str(storage.digest_file(storage.join(opened.uri, INDEX_FILE))["sha256"])
    load = functools.partial(_index, opened.uri, digest, backend)
    read = functools.partial(
        _with_regions, load=load, features=features, carried=carried, drop=config.invalid == "drop"
    )
    # Columns that are kept may have any name, those of _READ too, and Java finds the columns of a batch by name: they
    # are numbered on the way, and the two of _READ stand last.
    numbers = [f"c{place}" for place in range(len(fields))]
    numbered = T.StructType([T.StructField(n, field.dataType) for n, field in zip(numbers, fields, strict=True)])
    rows = map_arrow(table, read, T.StructType([*numbered.fields, *_READ.fields]))
    if len(opened.regions) > 1:
        region = _READ.names[-1]
        rows = rows.repartition(region).sortWithinPartitions(region)
    search = functools.partial(_search, load=load, k=k, names=[field.name for field in fields])
    return map_arrow(rows, search, T.StructType([*fields, *FOUND.fields])), source


def _with_regions(
    batches: Iterable[pa.RecordBatch],
    *,
    load: Callable[[], PartitionedIndex],
    features: tuple[str, ...],
    carried: list[int],
    drop: bool,
) -> Iterator[pa.RecordBatch]:
    """Pack each row as it is in the index and add its primary region. Runs on: executor. Memory: O(batch)."""
    index = load()
    what = describe(features)
    with one_blas_thread():
        for batch in batches:
            columns, names = [batch.column(place) for place in carried], [f"c{place}" for place in range(len(carried))]
            read = [batch.column(name) for name in features]
            rows, faults = read_rows(read, index.dims, what=what, sparse=True)
            bad = np.logical_or.reduce([np.zeros(batch.num_rows, bool), *faults.values()])
            if bad.any():
                if not drop:
                    raise InputError(
                        f"{int(bad.sum())} of {len(bad)} rows of a batch cannot be searched ({name_faults(faults)} in "
                        f"{describe_invalid(features, read)}): fix them, or drop them with --set data.invalid=drop"
                    )
                rows, columns = rows[~bad], [column.filter(pa.array(~bad)) for column in columns]
            if rows.shape[0]:
                scaled = index.transform(rows)
                regions = pa.array(index.primary(scaled), pa.int32())
                yield pa.RecordBatch.from_arrays([*columns, pack(scaled), regions], [*names, *_READ.names])


def _search(
    batches: Iterable[pa.RecordBatch], *, load: Callable[[], PartitionedIndex], k: int, names: list[str]
) -> Iterator[pa.RecordBatch]:
    """Search the rows of each batch. Runs on: executor. Memory: O(batch x k) and the leaves that are kept."""
    index = load()
    with one_blas_thread():
        for batch in batches:
            if batch.num_rows:
                *columns, features, _ = batch.columns
                ids, distances = index.query(unpack(features), k, scaled=True)
                offsets = np.arange(0, ids.size + 1, k, dtype=np.int32)
                lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids.reshape(-1)))
                yield pa.RecordBatch.from_arrays([*columns, lists, to_list(distances)], [*names, *FOUND.names])


def _index(uri: str, digest: str, backend: str) -> PartitionedIndex:
    """Return the index, opened once per worker; again if it was published again since."""
    if uri not in _opened or _opened[uri][0] != digest:
        current = str(storage.digest_file(storage.join(uri, INDEX_FILE))["sha256"])
        if current != digest:
            raise ArtifactError(f"{uri} was rebuilt during the query; run the query again")
        _opened.clear()
        _opened[uri] = (digest, PartitionedIndex.load(uri, backend=backend))
    return _opened[uri][1]
