"""Ingest: the user's table checked, scaled, given stable ids, and kept as packed rows.

The stage `rows` holds Parquet with `id` long, `features` binary (d float32, scaled) and, if there is one, `label`.
"""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark import storage
from ivis_spark.config import DataConfig
from ivis_spark.core.scaling import FeatureStatistics, Scaler
from ivis_spark.errors import InputError
from ivis_spark.spark.rows.columns import FEATURES, ID, LABEL, Source
from ivis_spark.spark.rows.tables import read_parquet
from ivis_spark.spark.session import arrow_batches, describe_job
from ivis_spark.spark.tasks import map_arrow
from ivis_spark.spark.vectors import from_list, pack, unpack, valid_rows

log = logging.getLogger(__name__)

_FAULTS = {
    "null": "null",
    "nan": "NaN",
    "infinite": "infinity in float32",
    "width": "another number of features",
}
_GROUP_BYTES = 8 << 20  # of a Parquet row group: small enough that a later stage can share one file among tasks
_MOST_LABELS = 1000
_RECORD_SCHEMA = (
    "path string, rows long, statistics binary, null_rows long, nan_rows long, infinite_rows long, width_rows long, "
    "null_id long, nan_id long, infinite_id long, width_id long"
)


def ingest(source: Source, config: DataConfig, build: storage.StageBuild) -> dict[str, Any]:
    """Write the rows of a table, checked, scaled and with ids, and the scaler beside them.

    The table is read once, into packed float32 rows, while its statistics are taken; scaling and deriving ids then read
    the packed rows. Runs on: driver; nothing it holds grows with rows but one record a file.

    Args:
        source: What `resolve` gave.
        config: Scaling and what to do with invalid rows.
        build: The stage to write into: `data/` and `scaler.json`.

    Returns:
        Facts for the manifest: rows, dims, dropped, constant features, labels, all_equal, how images are read.

    Raises:
        InputError: if rows are invalid and `config.invalid` is error, widths differ, or ids repeat.
    """
    spark = source.frame.sparkSession
    describe_job(spark, "ingest: read and check rows")
    raw, data = build.path("raw"), build.path("data")
    write = functools.partial(write_checked, folder=raw, width=source.width, drop=config.invalid == "drop")
    with arrow_batches(spark, 4 * source.width):
        records = map_arrow(source.frame, write, _RECORD_SCHEMA).collect()
    dropped = _refuse_invalid(source, config, records)
    storage.keep_only(raw, [record.path for record in records])
    rows = sum(record.rows for record in records)
    if rows == 0:
        raise InputError(f"the input has no usable row ({dropped} dropped); check {source.features_text}")
    parts = [FeatureStatistics.from_bytes(record.statistics) for record in records]
    statistics = functools.reduce(FeatureStatistics.merge, parts, FeatureStatistics.empty(source.width))
    scaler = Scaler.fit(config.scaling, statistics)
    _finish(spark, raw, data, source, scaler)
    table = read_parquet(spark, data)
    _refuse_repeated_ids(table, source)
    storage.write_json(build.path("scaler.json"), scaler.to_mapping())
    constant = np.flatnonzero(statistics.constant)
    info: dict[str, Any] = {
        "rows": rows,
        "dims": source.width,
        "dropped": dropped,
        "features": list(source.feature_names),
        "images": source.images,
        "id_col": source.id_col,
        "label_col": source.label_col,
        "constant_features": len(constant),
        "all_equal": len(constant) == source.width,
        "labels": _labels(table) if source.label_col else None,
    }
    _warn_about_constants(source, constant, rows)
    return info


def _finish(spark: SparkSession, raw: str, data: str, source: Source, scaler: Scaler) -> None:
    """Turn the raw rows into the stage's rows: ids derived if there are none, features scaled."""
    fs, raw_path = storage.filesystem(raw)
    if source.id_col and scaler.kind == "none":
        fs.mv(raw_path, storage.filesystem(data)[1], recursive=True)
        return
    describe_job(spark, "ingest: scale rows" if source.id_col else "ingest: derive ids and scale rows")
    table = read_parquet(spark, raw)
    if not source.id_col:
        table = with_derived_ids(table)
    with arrow_batches(spark, 4 * source.width):
        body = functools.partial(write_scaled, folder=data, scaler=scaler)
        records = map_arrow(table, body, "path string").collect()
    storage.keep_only(data, [record.path for record in records])
    fs.rm(raw_path, recursive=True)


def packed(source: Source, config: DataConfig) -> DataFrame:
    """Return a table's rows with packed features, not scaled. Lazy; a row that cannot be used fails the task."""
    columns = [field for field in source.frame.schema.fields if field.name != FEATURES]
    schema = T.StructType([*columns, T.StructField(FEATURES, T.BinaryType())])
    body = functools.partial(_pack_batches, width=source.width, invalid=config.invalid)
    return map_arrow(source.frame, body, schema)


def _pack_batches(batches: Iterator[pa.RecordBatch], *, width: int, invalid: str) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        names = [name for name in batch.schema.names if name != FEATURES]
        matrix, keep = valid_rows(batch.column(FEATURES), width, invalid=invalid)
        others = [batch.column(name) if keep is None else batch.column(name).filter(keep) for name in names]
        yield pa.RecordBatch.from_arrays([*others, pack(matrix)], [*names, FEATURES])


def with_derived_ids(table: DataFrame) -> DataFrame:
    """Add `id` to packed rows: 63 bits of xxhash64 over the features; equal rows are numbered and hashed again.

    The ids depend on the content of the table alone, so a rerun and any partitioning give the same ones. Equal rows
    are interchangeable (with labels: but for the label, by which they are numbered), so it does not matter which of
    them gets which number.
    """
    labels = [F.col(LABEL)] if LABEL in table.columns else []
    content = F.xxhash64(FEATURES)
    order = Window.partitionBy("content").orderBy(F.hash(FEATURES), *labels)
    numbered = table.withColumn("content", content).withColumn("copy", F.row_number().over(order))
    derived = F.when(F.col("copy") == 1, F.col("content")).otherwise(F.xxhash64("content", "copy"))
    return numbered.select(F.shiftrightunsigned(derived, 1).alias(ID), FEATURES, *labels)


def write_checked(
    batches: Iterator[pa.RecordBatch], *, folder: str, width: int, drop: bool
) -> Iterator[pa.RecordBatch]:
    """Write a task's valid rows as one Parquet file and yield one record of them and of the invalid ones.

    Runs on: executor. Memory: one Arrow batch and one row group.
    """
    statistics = FeatureStatistics.empty(width)
    counts = dict.fromkeys(_FAULTS, 0)
    examples: dict[str, int | None] = dict.fromkeys(_FAULTS)
    with RowWriter(folder) as writer:
        for batch in batches:
            matrix, faults = from_list(batch.column(FEATURES), width)
            ids = batch.column(ID) if ID in batch.schema.names else None
            if ids is not None and ids.null_count:
                faults["null"] = faults["null"] | ids.is_null().to_numpy(zero_copy_only=False)
            for name, mask in faults.items():
                counts[name] += int(mask.sum())
                if ids is not None and examples[name] is None and mask.any():
                    examples[name] = ids[int(mask.argmax())].as_py()
            invalid = np.logical_or.reduce(list(faults.values()))
            keep = ~invalid
            matrix = matrix[keep] if invalid.any() else matrix
            statistics = statistics.merge(FeatureStatistics.of(matrix))
            columns = {FEATURES: pack(matrix)}
            for name in (ID, LABEL):
                if name in batch.schema.names:
                    column = batch.column(name)
                    columns[name] = column.filter(pa.array(keep)) if invalid.any() else column
            if drop or not invalid.any():
                writer.write(columns, row_bytes=4 * width)
    record = {"path": writer.path, "rows": writer.rows, "statistics": statistics.to_bytes()}
    record |= {f"{name}_rows": count for name, count in counts.items()}
    record |= {f"{name}_id": example for name, example in examples.items()}
    names = [part.split()[0] for part in _RECORD_SCHEMA.split(", ")]
    kinds = {"path": pa.string(), "statistics": pa.binary()}
    yield pa.RecordBatch.from_arrays([pa.array([record[n]], kinds.get(n, pa.int64())) for n in names], names)


def write_scaled(batches: Iterator[pa.RecordBatch], *, folder: str, scaler: Scaler) -> Iterator[pa.RecordBatch]:
    """Write a task's packed rows, scaled, as one Parquet file and yield its path. Runs on: executor."""
    with RowWriter(folder) as writer:
        for batch in batches:
            if not batch.num_rows:
                continue
            columns = {name: batch.column(name) for name in batch.schema.names}
            columns[FEATURES] = pack(scaler.transform(unpack(columns[FEATURES])))
            writer.write(columns, row_bytes=4 * len(scaler.offset))
    yield pa.RecordBatch.from_arrays([pa.array([writer.path], pa.string())], ["path"])


class RowWriter:
    """Writes packed rows to one Parquet file under a name no other attempt has. Runs on: executor.

    A file of a failed or doubled attempt is not among the records that Spark returns, and the driver removes it.
    """

    def __init__(self, folder: str) -> None:
        self._uri = storage.join(folder, f"part-{uuid.uuid4().hex}.parquet")
        self._sink: Any = None
        self._writer: pq.ParquetWriter | None = None
        self.rows = 0

    @property
    def path(self) -> str | None:
        """The file's URI, or None if no row was written."""
        return self._uri if self.rows else None

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
            self._sink.close()

    def write(self, columns: dict[str, pa.Array], *, row_bytes: int) -> None:
        """Append columns of equal length."""
        order = [name for name in (ID, FEATURES, LABEL) if name in columns]
        batch = pa.Table.from_arrays([columns[name] for name in order], order)
        if not batch.num_rows:
            return
        if self._writer is None:
            fs, path = storage.filesystem(self._uri)
            fs.makedirs(fs._parent(path), exist_ok=True)
            self._sink = fs.open(path, "wb")
            self._writer = pq.ParquetWriter(
                self._sink,
                batch.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                write_statistics=[ID],
            )
        self._writer.write_table(batch, row_group_size=max(1, _GROUP_BYTES // row_bytes))
        self.rows += batch.num_rows


def _refuse_invalid(source: Source, config: DataConfig, records: list[Any]) -> int:
    """Return how many rows were dropped, or raise naming each fault, its rows and an id."""
    found = []
    dropped = 0
    for name, text in _FAULTS.items():
        rows = sum(getattr(record, f"{name}_rows") for record in records)
        if not rows:
            continue
        dropped += rows
        ids = [getattr(record, f"{name}_id") for record in records if getattr(record, f"{name}_id") is not None]
        example = f" (for example id {min(ids)})" if ids else ""
        wanted = f" than {source.width}" if name == "width" else ""
        found.append(f"{rows} rows with {text}{wanted}{example}")
        if name == "width" or config.invalid == "error":
            continue
        log.warning("dropped %d rows with %s in %s%s", rows, text, source.features_text, example)
    ragged = any(record.width_rows for record in records)
    if found and (ragged or config.invalid == "error"):
        remedy = "give every row the same number" if ragged else "mend them, or drop them with --set data.invalid=drop"
        raise InputError(f"{source.features_text} has {'; '.join(found)}: {remedy}")
    return dropped


def _refuse_repeated_ids(table: DataFrame, source: Source) -> None:
    describe_job(table.sparkSession, "ingest: check ids")
    repeated = table.groupBy(ID).count().where("count > 1").orderBy(ID).first()
    if repeated is not None:
        raise InputError(
            f"id column {source.id_col!r} repeats: id {repeated[ID]} stands {repeated['count']} times. Ids must be "
            "unique; leave data.id_col out and ids are derived from the rows"
        )


def _labels(table: DataFrame) -> dict[str, Any]:
    """Return the kinds of labels: their values where they are few, their width, and whether rows have none.

    Raises:
        InputError: if labels are arrays of different lengths.
    """
    describe_job(table.sparkSession, "ingest: list labels")
    values = [row[0] for row in table.select(LABEL).distinct().limit(_MOST_LABELS + 2).collect()]
    known = sorted(value for value in values if value is not None and not (isinstance(value, list) and None in value))
    kind = table.schema[LABEL].dataType
    width, null = _array_width(table) if isinstance(kind, T.ArrayType) else (1, any(value is None for value in values))
    return {
        "values": known if len(known) <= _MOST_LABELS else None,
        "integer": isinstance(kind, T.LongType),
        "null": null,
        "width": width,
    }


def _array_width(table: DataFrame) -> tuple[int, bool]:
    """Return the length that all label arrays have, and whether one is null or holds null."""
    lacks = F.col(LABEL).isNull() | F.exists(LABEL, lambda value: value.isNull())
    sizes = F.when(F.col(LABEL).isNotNull(), F.size(LABEL))
    found = table.agg(F.min(sizes), F.max(sizes), F.max(F.coalesce(lacks, F.lit(True)))).collect()[0]
    if found[0] != found[1] or not found[0]:
        raise InputError(
            f"the label arrays have {found[0] or 0} to {found[1] or 0} elements; every row needs the same number >= 1"
        )
    return int(found[0]), bool(found[2])


def _warn_about_constants(source: Source, constant: NDArray[np.int64], rows: int) -> None:
    if len(constant) == source.width:
        log.warning(
            "all %d rows are equal in %s: the embedding will be one point. Check which columns are the features",
            rows,
            source.features_text,
        )
    elif len(constant):
        many = len(source.feature_names) > 1
        shown = ", ".join(source.feature_names[i] if many else f"#{i}" for i in constant[:5])
        log.info(
            "%d of %d features are constant and say nothing (%s%s)",
            len(constant),
            source.width,
            shown,
            ", ..." if len(constant) > 5 else "",
        )
