"""Ingest: the user's table checked, scaled, projected, its rows numbered, and kept with packed features.

The stage `rows` holds Parquet with `id` long, `features` binary (d float32, scaled, or as many principal components),
`label` if there is one, and `columns`, a struct of the user's columns that are kept, by their own names and types. With
components, `originals` has `id` and `features` of a sample of the rows as the user has them: doubles or floats packed,
or sparse.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ivis_spark import storage
from ivis_spark.config import DataConfig, listed
from ivis_spark.config.sections import AUTO_COMPONENTS
from ivis_spark.core.knn.by_features import FeatureSearch, NearestByFeatures
from ivis_spark.core.scaling import SCALER, FeatureStatistics, Scaler
from ivis_spark.errors import InputError, advice
from ivis_spark.progress import step
from ivis_spark.spark.causes import task_errors
from ivis_spark.spark.partitioning import cores, repartition_by_group
from ivis_spark.spark.rows import components, ids, labels
from ivis_spark.spark.rows.columns import FEATURES, ID, LABEL, Source, field_of, kept_column
from ivis_spark.spark.rows.passes import (
    ID_FAULTS,
    RECORD_SCHEMA,
    WRITTEN_SCHEMA,
    fold_nearest,
    fold_records,
    write_checked,
    write_scaled,
)
from ivis_spark.spark.rows.tables import read_parquet
from ivis_spark.spark.session import arrow_batches, describe_job, shuffles_of
from ivis_spark.spark.tasks import map_arrow
from ivis_spark.spark.vectors import INDICES_FAULT

log = logging.getLogger(__name__)

# Faults of the features, then those of the ids.
_FAULTS = {
    "null": "null",
    "nan": "NaN",
    "infinite": "infinity in float32",
    "width": "another number of features",
    "indices": INDICES_FAULT,
}
_MOST_FOLDS = 64
_WIDE = 1_000  # features, from which storing sparse rows densely is worth a warning


def ingest(
    source: Source,
    config: DataConfig,
    build: storage.StageBuild,
    *,
    check_rows: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the rows of a table, checked, scaled and with ids, and the scaler beside them.

    The table is read once, into packed rows that are not scaled yet, while its statistics are taken; the rest is done
    on those. Runs on: driver; it holds one short record a file, the statistics of each feature, the faults, and what
    `ids`, `labels` and `components` say.

    Args:
        source: What `resolve` gave.
        config: Scaling and what to do with invalid rows.
        build: The stage to write into: `data/` and `scaler.npz`; it gets the digests of the files.
        check_rows: Called with the number of rows once it is known; it raises if other settings do not fit it.

    Returns:
        Facts for the manifest: rows, dims of a stored row, dropped, features and their number, principal components,
        kept columns, constant features, labels, all_equal, how images are read.

    Raises:
        InputError: if rows are invalid and `config.invalid` is error, widths differ, ids repeat, there are more classes
            than can be used, or numbers are too large to be used unscaled.
    """
    spark = source.frame.sparkSession
    describe_job(spark, "ingest: read and check rows")
    raw = build.path("raw")
    count = _components(source, config)
    stays_sparse = source.sparse and count is not None
    write = functools.partial(
        write_checked,
        folder=raw,
        width=source.width,
        drop=config.invalid == "drop",
        dtype=source.dtype,
        keys=tuple(field_of(source.kept, name) for name in source.keys) if source.numbered else (),
        by_column=len(source.feature_names) > 1,
        sparse=(source.sparse, stays_sparse),
    )
    reading = step("read", "rows: read and check")
    with reading, task_errors(), arrow_batches(spark, source.row_bytes(stays_sparse=stays_sparse)):
        written = map_arrow(source.frame, write, RECORD_SCHEMA)
        folds = min(_MOST_FOLDS, cores(spark))
        fold = F.coalesce("first", -1 - F.pmod(F.hash("path"), F.lit(folds)))  # records of files to any task
        records = map_arrow(written.repartition(folds, fold), fold_records, RECORD_SCHEMA).collect()
    dropped = _refuse_invalid(source, config, records)
    files = [record.path for record in records if record.path is not None]
    storage.keep_only(raw, files)
    rows = sum(record.rows for record in records)
    if rows == 0:
        raise InputError(f"the input has no usable row ({dropped} dropped); check {source.features_text}")
    check_rows(rows)
    parts = {record["first"]: record.statistics for record in records if record.statistics is not None}
    statistics = FeatureStatistics.joined([FeatureStatistics.from_bytes(parts[first]) for first in sorted(parts)])
    _check_range(source, config, statistics)
    scaler = Scaler.fit(config.scaling, statistics)
    table = read_parquet(spark, raw)
    counted = ids.KEY_BYTES * rows * max(1, len(source.keys))
    with step("check", "rows: check ids and labels"), shuffles_of(spark, counted):
        if source.keys:
            _refuse_repeated_ids(table, source)
        facts = labels.label_facts(table, source.label_col, source.label_type) if source.label_col else None
    if facts is not None and source.label_col:
        labels.check_unlabelled(facts, source.label_col, config.unlabelled)
    n_bytes = sum(record.bytes for record in records)
    learnt = search = None
    if count is not None:
        with step("components", "rows: learn components"):
            scaler, learnt, search = components.with_components(scaler, table, source, count, rows=rows)
    with step("write", "rows: scale and write"):
        finished, nearest = _finish(table, raw, build, source, scaler, facts, rows, n_bytes, search)
    if nearest is not None and learnt is not None:
        learnt |= components.judge(nearest, rows, build)
    build.digests.update(_digests(records if finished is None else finished, build.path("originals")))
    storage.write_bytes(build.path(SCALER), scaler.to_bytes())
    constant = np.flatnonzero(statistics.constant)
    info: dict[str, Any] = {
        "rows": rows,
        "dims": scaler.n_outputs,
        "n_features": source.width,
        "components": learnt,
        "dropped": dropped,
        "features": list(source.feature_names),
        "images": source.images,
        "indices_col": source.indices_col,
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
    build: storage.StageBuild,
    source: Source,
    scaler: Scaler,
    facts: dict[str, Any] | None,
    rows: int,
    n_bytes: int,
    search: FeatureSearch | None,
) -> tuple[list[Any] | None, NearestByFeatures | None]:
    """Turn the raw rows into the stage's rows: numbered if they have no ids, features scaled, labels encoded.

    With components, `search` is made among the rows, and a sample of them kept with their features.

    Returns a record of each file, or None if the raw ones became them; and what the search found.
    """
    spark, data, originals = table.sparkSession, build.path("data"), build.path("originals")
    encode = labels.needs_encoding(facts)
    as_they_are = scaler.kind == "none" and search is None and source.dtype == "<f4"
    if not source.numbered and not encode and as_they_are:
        storage.move_folder(raw, data)
        return None, None
    describe_job(spark, "ingest: number and scale rows" if source.numbered else "ingest: scale rows")
    groups = None
    if source.numbered:
        with shuffles_of(spark, ids.KEY_BYTES * rows):
            table, groups = ids.deal(table, rows, width=source.width, n_bytes=n_bytes)
    if encode and facts is not None:
        table = labels.encoded(table, facts)
    if groups is not None:
        content = [F.col(FEATURES), *([F.col(LABEL)] if LABEL in table.columns else [])]
        content = [kept_column(source.kept, name) for name in source.keys] or content
        table = repartition_by_group(table, ids.GROUP, len(groups.rows))
        table = table.sortWithinPartitions(ids.GROUP, ids.in_order(), *content).drop(ids.PLACE)
    sent = None if search is None else spark.sparkContext.broadcast(search)
    with task_errors(), arrow_batches(spark, n_bytes // rows):
        body = functools.partial(
            write_scaled,
            folder=data,
            scaler=scaler,
            dtype=source.dtype,
            groups=groups,
            originals=None if search is None else (originals, rows),
            search=sent,
        )
        written = map_arrow(table, body, WRITTEN_SCHEMA)
        if search is not None:
            written = map_arrow(written.repartition(min(_MOST_FOLDS, cores(spark))), fold_nearest, WRITTEN_SCHEMA)
        records = written.collect()
    for folder in (data, *([] if search is None else [originals])):
        storage.keep_only(folder, [record.path for record in records])
    storage.remove_folder(raw)
    if sent is not None:
        sent.unpersist()
    found = [NearestByFeatures.from_bytes(record.nearest) for record in records if record.nearest is not None]
    return records, functools.reduce(NearestByFeatures.merge, found) if found else None


def _digests(records: list[Any], originals: str) -> dict[str, dict[str, Any]]:
    """Return the digests of files, by their paths in the stage, from the records of those who wrote them."""
    found = {}
    for record in records:
        if record.path is not None:
            folder = "originals" if record.path.startswith(f"{originals}/") else "data"
            found[f"{folder}/{record.path.rpartition('/')[2]}"] = json.loads(record.digest)
    return found


def _components(source: Source, config: DataConfig) -> int | None:
    """Return onto how many components rows are projected.

    Raises:
        InputError: if they are images and a number is set: networks of images take their pixels.
    """
    count = config.components_of(source.width, sparse=source.sparse, images=source.images is not None)
    if count is not None and source.images is not None:
        raise InputError(f"data.components={count} projects numbers, and {source.features_text} holds images: set none")
    if count is None and source.sparse and source.width >= _WIDE:
        log.warning(
            advice(
                "%s holds sparse rows, and they are stored with all %d numbers, %.3g kB per row: --set "
                "data.components=%d keeps them sparse and searches and trains on principal components (euclidean)"
            ),
            *(source.features_text, source.width, source.width * 4e-3, AUTO_COMPONENTS),
        )
    return count


def _refuse_invalid(source: Source, config: DataConfig, records: list[Any]) -> int:
    """Return how many rows were dropped, or raise naming each fault, its rows and an id."""
    counts: dict[str, int] = {}
    examples: dict[str, str] = {}
    for record in records:
        for name, count in (record.faults or {}).items():
            counts[name] = counts.get(name, 0) + count
            if name in record.examples:
                examples[name] = min(record.examples[name], examples.get(name, record.examples[name]))
    faults = []
    for name, text in {**ID_FAULTS, **_FAULTS}.items():
        if name not in counts:
            continue
        # Which of several features hold it is said below, by column.
        counted = any(other.startswith(f"{name} ") for other in counts)
        where = source.keys_text if name in ID_FAULTS else "the features" if counted else source.features_text
        example = f" (for example id {examples[name]})" if name in examples else ""
        single = counts[name] == 1
        fault = f"{'has' if single else 'have'} {text}"
        if name == "width":
            fault = f"{'does' if single else 'do'} not have {source.width} features"
        faults.append(f"{counts[name]} {'row' if single else 'rows'} {fault} in {where}{example}")
    if by_column := _by_column(source, counts):
        faults.append(f"by column: {by_column}")
    if faults and ("width" in counts or config.invalid == "error"):
        remedy = (
            "all rows need the same number"
            if "width" in counts
            else "fix them, or drop them with --set data.invalid=drop"
        )
        raise InputError(f"{'; '.join(faults)}: {remedy}")
    for text in faults:
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
        for place in worst
    ]
    return listed(shown)


def _check_range(source: Source, config: DataConfig, statistics: FeatureStatistics) -> None:
    """Warn about features that lose precision unscaled, and refuse those whose distances exceed float32."""
    if config.scaling != "none":
        return
    if statistics.overflow.any():
        names = source.names_of(np.flatnonzero(statistics.overflow))
        raise InputError(
            f"features are too large to be used unscaled, distances between rows exceed float32: {names}. Scale them, "
            "--set data.scaling=minmax, or check for placeholders of missing values"
        )
    coarse = np.flatnonzero(statistics.coarse)
    if len(coarse):
        log.warning(
            advice(
                "%d features vary little around a large value and keep fewer than 1,000 distinct values in float32: "
                "%s. Scale them: --set data.scaling=minmax"
            ),
            len(coarse),
            source.names_of(coarse),
        )


def _refuse_repeated_ids(table: DataFrame, source: Source) -> None:
    describe_job(table.sparkSession, "ingest: check ids")
    keys = [kept_column(source.kept, name) for name in source.keys] if source.numbered else [F.col(ID)]
    named = [key.alias(f"key{place}") for place, key in enumerate(keys)]
    repeated = table.groupBy(*named).count().where("count > 1")
    first = F.min(F.struct(*[f"key{place}" for place in range(len(keys))], "count")).alias("first")
    found = repeated.agg(F.count("*").alias("ids"), first).first()
    if found is not None and found["ids"]:
        others = f", and {found['ids'] - 1:,} other ids repeat" if found["ids"] > 1 else ""
        raise InputError(
            f"id {ids.key_text(list(found['first'][:-1]))} occurs {found['first']['count']} times in "
            f"{source.keys_text}{others}. Ids must be unique; without an id, rows are numbered by their content"
        )


def _warn_about_constants(source: Source, constant: NDArray[np.int64], rows: int) -> None:
    if len(constant) == source.width:
        log.warning(
            "all %d rows are equal in %s: the embedding will be a single point. Check which columns are used as "
            "features",
            rows,
            source.features_text,
        )
    elif len(constant):
        shown = source.names_of(constant)
        log.info(
            "%d of %d features are constant and carry no information (%s%s)",
            len(constant),
            source.width,
            shown,
            ", ..." if len(constant) > 5 else "",
        )
