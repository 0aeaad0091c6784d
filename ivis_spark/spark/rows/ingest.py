"""Ingest: the user's table checked, scaled, its rows numbered, and kept with packed features.

The stage `rows` holds Parquet with `id` long, `features` binary (d float32, scaled), `label` if there is one, and
`columns`, a struct of the user's columns that are kept, by their own names and types.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ivis_spark import storage
from ivis_spark.config import DataConfig
from ivis_spark.core.knn.merge import NO_ID
from ivis_spark.core.scaling import FeatureStatistics, Scaler
from ivis_spark.errors import InputError
from ivis_spark.spark.causes import task_errors
from ivis_spark.spark.partitioning import cores, repartition_by_group
from ivis_spark.spark.rows import ids, labels
from ivis_spark.spark.rows.columns import COLUMNS, FEATURES, ID, LABEL, Source, field_of, kept_column
from ivis_spark.spark.rows.tables import read_parquet
from ivis_spark.spark.rows.writer import RowWriter
from ivis_spark.spark.session import arrow_batches, describe_job
from ivis_spark.spark.tasks import map_arrow
from ivis_spark.spark.vectors import bad_cells, from_list, pack, unpack

log = logging.getLogger(__name__)

# Faults of the features, then those of the ids.
_FAULTS = {
    "null": "null",
    "nan": "NaN",
    "infinite": "infinity in float32",
    "width": "another number of features",
}
_ID_FAULTS = {
    "no_id": "null",
    "lost_id": f"{NO_ID}, which NaN and NaT become when they are made integers",
}
_MOST_FOLDS = 64
_RECORD_SCHEMA = (
    "path string, rows long, bytes long, dropped long, statistics binary, faults map<string,long>, "
    "examples map<string,string>"
)


def ingest(source: Source, config: DataConfig, build: storage.StageBuild) -> dict[str, Any]:
    """Write the rows of a table, checked, scaled and with ids, and the scaler beside them.

    The table is read once, into packed rows that are not scaled yet, while its statistics are taken; the rest is done
    on those. Runs on: driver; it holds one short record a file, one of statistics for every 64th task at most, and
    what `ids` and `labels` say.

    Args:
        source: What `resolve` gave.
        config: Scaling and what to do with invalid rows.
        build: The stage to write into: `data/` and `scaler.json`.

    Returns:
        Facts for the manifest: rows, dims, dropped, features, kept columns, constant features, labels, all_equal, how
        images are read.

    Raises:
        InputError: if rows are invalid and `config.invalid` is error, widths differ, ids repeat, there are more classes
            than can be used, or numbers are too large to be used unscaled.
    """
    spark = source.frame.sparkSession
    describe_job(spark, "ingest: read and check rows")
    raw, data = build.path("raw"), build.path("data")
    write = functools.partial(
        write_checked,
        folder=raw,
        width=source.width,
        drop=config.invalid == "drop",
        dtype=source.dtype,
        keys=tuple(field_of(source.kept, name) for name in source.keys) if source.numbered else (),
        by_column=len(source.feature_names) > 1,
    )
    with task_errors(), arrow_batches(spark, 8 * source.width):
        written = map_arrow(source.frame, write, _RECORD_SCHEMA)
        folds = min(_MOST_FOLDS, cores(spark))
        records = map_arrow(written.repartition(folds), fold_records, _RECORD_SCHEMA).collect()
    dropped = _refuse_invalid(source, config, records)
    files = [record.path for record in records if record.path is not None]
    storage.keep_only(raw, files)
    rows = sum(record.rows for record in records)
    if rows == 0:
        raise InputError(f"the input has no usable row ({dropped} dropped); check {source.features_text}")
    parts = [FeatureStatistics.from_bytes(record.statistics) for record in records if record.statistics is not None]
    statistics = functools.reduce(FeatureStatistics.merge, parts, FeatureStatistics.empty(source.width))
    _check_range(source, config, statistics)
    scaler = Scaler.fit(config.scaling, statistics)
    table = read_parquet(spark, raw)
    if source.keys:
        _refuse_repeated_ids(table, source)
    facts = labels.survey(table, source.label_col, source.label_type) if source.label_col else None
    if facts is not None and source.label_col:
        labels.check_unlabelled(facts, source.label_col, config.unlabelled)
    _finish(table, raw, data, source, scaler, facts, rows, sum(record.bytes for record in records))
    storage.write_json(build.path("scaler.json"), scaler.to_mapping())
    constant = np.flatnonzero(statistics.constant)
    info: dict[str, Any] = {
        "rows": rows,
        "dims": source.width,
        "dropped": dropped,
        "features": list(source.feature_names),
        "images": source.images,
        "keys": list(source.keys),
        "numbered": source.numbered,
        "columns": list(source.kept),
        "label_col": source.label_col,
        "constant_features": len(constant),
        "all_equal": len(constant) == source.width,
        "labels": facts,
    }
    _warn_about_constants(source, constant, rows)
    return info


def _finish(
    table: DataFrame,
    raw: str,
    data: str,
    source: Source,
    scaler: Scaler,
    facts: dict[str, Any] | None,
    rows: int,
    n_bytes: int,
) -> None:
    """Turn the raw rows into the stage's rows: numbered if they have no ids, features scaled, labels encoded."""
    spark = table.sparkSession
    fs, raw_path = storage.filesystem(raw)
    encode = labels.needs_encoding(facts)
    if not source.numbered and not encode and scaler.kind == "none" and source.dtype == "<f4":
        fs.mv(raw_path, storage.filesystem(data)[1], recursive=True)
        return
    describe_job(spark, "ingest: number and scale rows" if source.numbered else "ingest: scale rows")
    groups = None
    if source.numbered:
        table, groups = ids.deal(table, rows, width=source.width, n_bytes=n_bytes)
    if encode and facts is not None:
        table = labels.encoded(table, facts)
    if groups is not None:
        content = [F.col(FEATURES), *([F.col(LABEL)] if LABEL in table.columns else [])]
        content = [kept_column(source.kept, name) for name in source.keys] or content
        table = repartition_by_group(table, ids.GROUP, len(groups.rows))
        table = table.sortWithinPartitions(ids.GROUP, ids.in_order(), *content).drop(ids.HASH, ids.PLACE)
    with task_errors(), arrow_batches(spark, 8 * source.width):
        body = functools.partial(write_scaled, folder=data, scaler=scaler, dtype=source.dtype, groups=groups)
        records = map_arrow(table, body, "path string").collect()
    storage.keep_only(data, [record.path for record in records])
    fs.rm(raw_path, recursive=True)


def write_checked(
    batches: Iterator[pa.RecordBatch],
    *,
    folder: str,
    width: int,
    drop: bool,
    dtype: str,
    keys: tuple[str, ...],
    by_column: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Write a task's valid rows as one Parquet file and yield one record of them and of the invalid ones.

    With `by_column`, invalid elements of features are counted by their place too.

    Rows without integer ids get `place`, where they stand in the file. Runs on: executor. Memory: one Arrow batch and
    one row group.
    """
    statistics = FeatureStatistics.empty(width)
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    dropped = 0
    with RowWriter(folder) as writer:
        for batch in batches:
            matrix, faults = from_list(batch.column(FEATURES), width)
            named = _key_columns(batch, keys)
            for name, mask in {**faults, **_id_faults(named)}.items():
                faults[name] = mask
                if mask.any():
                    counts[name] = counts.get(name, 0) + int(mask.sum())
                    if named and name not in _ID_FAULTS:
                        row = int(mask.argmax())
                        examples.setdefault(name, ids.key_text([column[row].as_py() for column in named]))
            invalid = np.logical_or.reduce(list(faults.values()))
            dropped += int(invalid.sum())
            if by_column and invalid.any():
                for (name, place), count in bad_cells(batch.column(FEATURES).filter(pa.array(invalid))).items():
                    counts[f"{name} {place}"] = counts.get(f"{name} {place}", 0) + count
            keep = pa.array(~invalid) if invalid.any() else None
            matrix = matrix if keep is None else matrix[~invalid]
            statistics = statistics.merge(FeatureStatistics.of(matrix))
            columns = {FEATURES: pack(matrix, dtype)}
            for name in (ID, LABEL, COLUMNS, ids.HASH):
                if name in batch.schema.names:
                    columns[name] = batch.column(name) if keep is None else batch.column(name).filter(keep)
            if ids.HASH in columns:
                columns[ids.PLACE] = pa.array(writer.rows + np.arange(len(matrix)))
            if drop or keep is None:
                writer.write(columns)
    yield _record(writer.path, writer.rows, writer.bytes, dropped, statistics, counts, examples)


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


def _record(
    path: str | None,
    rows: int,
    n_bytes: int,
    dropped: int,
    statistics: FeatureStatistics | None,
    counts: dict[str, int],
    examples: dict[str, str],
) -> pa.RecordBatch:
    values: list[Any] = [
        path,
        rows,
        n_bytes,
        dropped,
        None if statistics is None else statistics.to_bytes(),
        list(counts.items()),
        list(examples.items()),
    ]
    maps = [pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.string())]
    kinds = [pa.string(), pa.int64(), pa.int64(), pa.int64(), pa.binary(), *maps]
    names = [part.split()[0] for part in _RECORD_SCHEMA.split(", ")]
    return pa.RecordBatch.from_arrays([pa.array([v], k) for v, k in zip(values, kinds, strict=True)], names)


def fold_records(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the records of several tasks, their statistics folded into one record more.

    Statistics are 32 d bytes, too much for the driver to hold of every task. Runs on: executor. Memory: one of them.
    """
    folded: FeatureStatistics | None = None
    for batch in batches:
        for packed_statistics in batch.column("statistics"):
            part = FeatureStatistics.from_bytes(packed_statistics.as_py())
            folded = part if folded is None else folded.merge(part)
        names = batch.schema.names
        nothing = pa.nulls(batch.num_rows, pa.binary())
        columns = [nothing if name == "statistics" else batch.column(name) for name in names]
        yield pa.RecordBatch.from_arrays(columns, names)
    if folded is not None:
        yield _record(None, 0, 0, 0, folded, {}, {})


def write_scaled(
    batches: Iterator[pa.RecordBatch], *, folder: str, scaler: Scaler, dtype: str, groups: ids.Groups | None
) -> Iterator[pa.RecordBatch]:
    """Write a task's packed rows, numbered and scaled, as one Parquet file and yield its path. Runs on: executor."""
    counter = None if groups is None else ids.Counter(groups)
    with RowWriter(folder) as writer:
        for batch in batches:
            if not batch.num_rows:
                continue
            columns = {name: batch.column(name) for name in batch.schema.names if name != ids.GROUP}
            if counter is not None:
                columns[ID] = counter.numbers(batch.column(ids.GROUP))
            scaled = scaler.transform(unpack(columns[FEATURES], dtype))
            if not np.isfinite(scaled).all():
                raise InputError("scaled features exceed float32: look for values like 1e38 in place of missing ones")
            columns[FEATURES] = pack(scaled)
            writer.write(columns)
    yield pa.RecordBatch.from_arrays([pa.array([writer.path], pa.string())], ["path"])


def _refuse_invalid(source: Source, config: DataConfig, records: list[Any]) -> int:
    """Return how many rows were dropped, or raise naming each fault, its rows and an id."""
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    for record in records:
        for name, count in record.faults.items():
            counts[name] = counts.get(name, 0) + count
            if name in record.examples:
                examples[name] = min(record.examples[name], examples.get(name, record.examples[name]))
    found = []
    for name, text in {**_ID_FAULTS, **_FAULTS}.items():
        if name not in counts:
            continue
        where = source.keys_text if name in _ID_FAULTS else source.features_text
        example = f" (for example id {examples[name]})" if name in examples else ""
        wanted = f" than {source.width}" if name == "width" else ""
        found.append(f"{where} has {counts[name]} rows with {text}{wanted}{example}")
    if by_column := _by_column(source, counts):
        found.append(f"by column: {by_column}")
    if found and ("width" in counts or config.invalid == "error"):
        remedy = (
            "give every row the same number"
            if "width" in counts
            else "fix them, or drop them with --set data.invalid=drop"
        )
        raise InputError(f"{'; '.join(found)}: {remedy}")
    for text in found:
        log.warning("dropped: %s", text)
    return sum(record.dropped for record in records)


def _by_column(source: Source, counts: dict[str, int]) -> str:
    """Name the columns that hold invalid elements, those with the most first, and how many of which kind."""
    columns: dict[int, dict[str, int]] = {}
    for name, count in counts.items():
        fault, _, place = name.partition(" ")
        if place:
            columns.setdefault(int(place), {})[_FAULTS[fault].partition(" ")[0]] = count
    worst = sorted(columns, key=lambda place: (-sum(columns[place].values()), place))
    shown = [
        f"{source.feature_names[place]} ({', '.join(f'{n:,} {fault}' for fault, n in sorted(columns[place].items()))})"
        for place in worst[:10]
    ]
    return ", ".join(shown) + (f" and {len(worst) - 10} more columns" if len(worst) > 10 else "")


def _check_range(source: Source, config: DataConfig, statistics: FeatureStatistics) -> None:
    """Warn of features that lose their digits unscaled, and refuse those whose distances are no float32."""
    if config.scaling != "none":
        return
    if statistics.overflow.any():
        names = source.names_of(np.flatnonzero(statistics.overflow))
        raise InputError(
            f"features are too large to be used unscaled, distances between rows exceed float32: {names}. Scale them, "
            "--set data.scaling=minmax, or look for values that stand for missing ones"
        )
    coarse = np.flatnonzero(statistics.coarse)
    if len(coarse):
        log.warning(
            "%d features lie far from 0 and close together, and keep fewer than 1,000 different values in float32: "
            "%s. Scale them: --set data.scaling=minmax",
            len(coarse),
            source.names_of(coarse),
        )


def _refuse_repeated_ids(table: DataFrame, source: Source) -> None:
    describe_job(table.sparkSession, "ingest: check ids")
    keys = [kept_column(source.kept, name) for name in source.keys] if source.numbered else [F.col(ID)]
    named = [key.alias(f"key{place}") for place, key in enumerate(keys)]
    repeated = (
        table.groupBy(*named).count().where("count > 1").orderBy(*[f"key{place}" for place in range(len(keys))]).first()
    )
    if repeated is not None:
        raise InputError(
            f"{source.keys_text} repeats: id {ids.key_text(list(repeated[:-1]))} stands {repeated['count']} times. Ids "
            "must be unique; leave them out and rows are numbered by their content"
        )


def _warn_about_constants(source: Source, constant: NDArray[np.int64], rows: int) -> None:
    if len(constant) == source.width:
        log.warning(
            "all %d rows are equal in %s: the embedding will be one point. Check which columns are the features",
            rows,
            source.features_text,
        )
    elif len(constant):
        shown = source.names_of(constant)
        log.info(
            "%d of %d features are constant and say nothing (%s%s)",
            len(constant),
            source.width,
            shown,
            ", ..." if len(constant) > 5 else "",
        )
