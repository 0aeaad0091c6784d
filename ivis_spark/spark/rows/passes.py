"""The two passes over the rows, as tasks make them: checked and packed, then numbered, scaled and projected."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import Broadcast

from ivis_spark.core.knn.by_features import FeatureSearch, NearestByFeatures
from ivis_spark.core.knn.merge import NO_ID
from ivis_spark.core.scaling import FeatureStatistics, Scaler
from ivis_spark.core.threads import blas_threads
from ivis_spark.errors import InputError
from ivis_spark.spark.rows import ids
from ivis_spark.spark.rows.columns import COLUMNS, FEATURES, ID, LABEL
from ivis_spark.spark.rows.components import keeps_original
from ivis_spark.spark.rows.writer import RowWriter
from ivis_spark.spark.vectors import count_bad_values, from_list, pack, pack_sparse, sparse_rows, unpack, unpack_sparse

ID_FAULTS = {"no_id": "null", "lost_id": f"{NO_ID}, which NaN and NaT become as integers"}
RECORD_SCHEMA = (
    "path string, digest string, rows long, bytes long, dropped long, first long, statistics binary, "
    "faults map<string,long>, examples map<string,string>"
)
WRITTEN_SCHEMA = "path string, digest string, nearest binary"
_WRITTEN = pa.schema([("path", pa.string()), ("digest", pa.string()), ("nearest", pa.binary())])
_PIECE_FEATURES = 1024  # whose statistics a record has: so many tasks' fit into one Arrow batch
_RECORD = pa.schema(
    [
        ("path", pa.string()),
        ("digest", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("dropped", pa.int64()),
        ("first", pa.int64()),
        ("statistics", pa.binary()),
        ("faults", pa.map_(pa.string(), pa.int64())),
        ("examples", pa.map_(pa.string(), pa.string())),
    ]
)


def write_checked(
    batches: Iterator[pa.RecordBatch],
    *,
    folder: str,
    width: int,
    drop: bool,
    dtype: str,
    keys: tuple[str, ...],
    by_column: bool = False,
    sparse: tuple[bool, bool] = (False, False),
) -> Iterator[pa.RecordBatch]:
    """Write a task's valid rows as one Parquet file and yield a record of them and of the invalid ones.

    Records of their statistics follow, each of some features, from number `first` on.

    With `by_column`, invalid elements of features are counted by their place too. `sparse` says whether rows come as
    `sparse_rows` reads them, and whether they are written so too.

    Rows without integer ids get `place`, where they stand in the file. Runs on: executor. Memory: one Arrow batch and
    one row group.
    """
    statistics = FeatureStatistics.empty(width)
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    dropped = 0
    with RowWriter(folder) as writer:
        for batch in batches:
            read: Any = sparse_rows if sparse[0] else from_list
            matrix, faults = read(batch.column(FEATURES), width)
            named = _key_columns(batch, keys)
            for name, mask in {**faults, **_id_faults(named)}.items():
                faults[name] = mask
                if mask.any():
                    counts[name] = counts.get(name, 0) + int(mask.sum())
                    if named and name not in ID_FAULTS:
                        row = int(mask.argmax())
                        examples.setdefault(name, ids.key_text([column[row].as_py() for column in named]))
            invalid = np.logical_or.reduce(list(faults.values()))
            dropped += int(invalid.sum())
            if by_column and invalid.any():
                for (name, place), count in count_bad_values(batch.column(FEATURES).filter(pa.array(invalid))).items():
                    counts[f"{name} {place}"] = counts.get(f"{name} {place}", 0) + count
            keep = pa.array(~invalid) if invalid.any() else None
            matrix = matrix if keep is None else matrix[~invalid]
            statistics = statistics.merge(FeatureStatistics.of(matrix))
            if sparse[0] and not sparse[1]:
                matrix = matrix.toarray()
            columns = {FEATURES: pack_sparse(matrix) if sparse[1] else pack(matrix, dtype)}
            for name in (ID, LABEL, COLUMNS, ids.HASH):
                if name in batch.schema.names:
                    columns[name] = batch.column(name) if keep is None else batch.column(name).filter(keep)
            if ids.HASH in columns:
                columns[ids.PLACE] = pa.array(writer.rows + np.arange(matrix.shape[0]))
            if drop or keep is None:
                writer.write(columns)
    facts = {"path": writer.path, "digest": writer.digest, "rows": writer.rows, "bytes": writer.bytes}
    yield _record(**facts, dropped=dropped, faults=counts, examples=examples)
    for first, part in statistics.cut(_PIECE_FEATURES):
        yield _record(first=first, statistics=part.to_bytes())


def _key_columns(batch: pa.RecordBatch, keys: tuple[str, ...]) -> list[pa.Array]:
    """Return the columns that identify the rows of a batch."""
    if ID in batch.schema.names:
        return [batch.column(ID)]
    return [batch.column(COLUMNS).field(name) for name in keys]


def _id_faults(columns: list[pa.Array]) -> dict[str, NDArray[np.bool_]]:
    faults: dict[str, NDArray[np.bool_]] = {}
    if any(column.null_count for column in columns):
        nulls = [column.is_null().to_numpy(zero_copy_only=False) for column in columns]
        faults["no_id"] = np.logical_or.reduce(nulls)
    if len(columns) == 1 and pa.types.is_int64(columns[0].type):
        lost = columns[0].fill_null(0).to_numpy(zero_copy_only=False) == NO_ID
        if lost.any():
            faults["lost_id"] = lost
    return faults


def _record(**facts: Any) -> pa.RecordBatch:
    """Return a record of some facts; the others are 0 or null."""
    facts = {"rows": 0, "bytes": 0, "dropped": 0, **facts}
    values = [facts.get(field.name) for field in _RECORD]
    values = [list(value.items()) if isinstance(value, dict) else value for value in values]
    return pa.RecordBatch.from_arrays(
        [pa.array([value], field.type) for value, field in zip(values, _RECORD, strict=True)], schema=_RECORD
    )


def fold_records(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the records of several tasks: of each file, of all faults together, and of the statistics by features.

    Statistics are 32 d bytes and faults up to 3 d counts, too much for the driver to hold of every task. All records
    with one `first` must come to one task, so that the driver gets each feature once. Runs on: executor. Memory: the
    statistics of its features.
    """
    folded: dict[int, FeatureStatistics] = {}
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    for batch in batches:
        for first, packed in zip(batch.column("first").to_pylist(), batch.column("statistics"), strict=True):
            if first is not None:
                part = FeatureStatistics.from_bytes(packed.as_py())
                folded[first] = folded[first].merge(part) if first in folded else part
        for name, count in itertools.chain(*batch.column("faults").drop_null().to_pylist()):
            counts[name] = counts.get(name, 0) + count
        for name, example in itertools.chain(*batch.column("examples").drop_null().to_pylist()):
            examples[name] = min(example, examples.get(name, example))
        of_file = batch.column("first").is_null()
        kept = {name: batch.column(name).filter(of_file) for name in ("path", "digest", "rows", "bytes", "dropped")}
        for field in list(_RECORD)[len(kept) :]:
            kept[field.name] = pa.nulls(len(kept["path"]), field.type)
        yield pa.RecordBatch.from_pydict(kept, schema=_RECORD)
    if counts:
        yield _record(faults=counts, examples=examples)
    for first, statistics in folded.items():
        yield _record(first=first, statistics=statistics.to_bytes())


def write_scaled(
    batches: Iterator[pa.RecordBatch],
    *,
    folder: str,
    scaler: Scaler,
    dtype: str,
    groups: ids.Groups | None,
    originals: tuple[str, int] | None = None,
    search: Broadcast[FeatureSearch] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Write a task's packed rows, numbered and scaled, as one Parquet file; yield its path and digest.

    `originals` is a folder for a sample of the rows as they come, and the number of all rows; its file is yielded too,
    as another record, and with `search` what it finds among the rows, in a record of its own. Runs on: executor.
    """
    counter = None if groups is None else ids.Counter(groups)
    nearest = None if search is None else NearestByFeatures.none(len(search.value.marks))
    with RowWriter(folder) as writer, RowWriter(originals[0] if originals else folder) as unscaled:
        for batch in batches:
            if not batch.num_rows:
                continue
            columns = {name: batch.column(name) for name in batch.schema.names if name not in (ids.GROUP, ids.HASH)}
            if counter is not None:
                columns[ID] = counter.numbers(batch.column(ids.GROUP))
            packed, width = columns[FEATURES], scaler.n_inputs
            numbers = columns[ID].to_numpy(zero_copy_only=False)
            if originals is not None:
                chosen = pa.array(keeps_original(numbers, originals[1], width))
                unscaled.write({ID: columns[ID].filter(chosen), FEATURES: packed.filter(chosen)})
            sparse = pa.types.is_struct(packed.type)
            features = unpack_sparse(packed, width) if sparse else unpack(packed, dtype)
            scaled = scaler.transform(features)
            if not np.isfinite(scaled).all():
                raise InputError("scaled features exceed float32: check for placeholders of missing values, like 1e38")
            if search is not None and nearest is not None:
                marks = batch.column(ids.HASH).to_numpy() if ids.HASH in batch.schema.names else numbers
                with blas_threads(1):  # Spark runs a Python process a core
                    nearest = nearest.merge(search.value.search(features, scaled, marks, numbers))
            columns[FEATURES] = pack(scaled)
            writer.write(columns)
    written = [writer, unscaled] if originals is not None else [writer]
    yield _written([each.path for each in written], [each.digest for each in written])
    if nearest is not None:
        yield _written([None], [None], nearest.to_bytes())


def fold_nearest(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the records of several tasks of `write_scaled`, what they found folded into one. Runs on: executor."""
    folded: NearestByFeatures | None = None
    for batch in batches:
        for packed in batch.column("nearest").drop_null():
            found = NearestByFeatures.from_bytes(packed.as_py())
            folded = found if folded is None else folded.merge(found)
        yield _written(batch.column("path"), batch.column("digest"))
    if folded is not None:
        yield _written([None], [None], folded.to_bytes())


def _written(paths: Any, digests: Any, nearest: bytes | None = None) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"path": paths, "digest": digests, "nearest": [nearest] * len(paths)}, _WRITTEN)
