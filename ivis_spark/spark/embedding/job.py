"""The job that embeds a table: columns are resolved, files are assigned to units, every unit is embedded once."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ivis_spark.config import DataConfig, EmbedConfig, what_it_has
from ivis_spark.core.sizes import SPLIT_BYTES
from ivis_spark.errors import InputError
from ivis_spark.serving.encoder import Encoder
from ivis_spark.serving.folder import ModelFolder
from ivis_spark.spark.before_spark import in_folders
from ivis_spark.spark.causes import deepest_cause
from ivis_spark.spark.embedding import units
from ivis_spark.spark.embedding.embed import FAULTS, InvalidRows, Outputs, embed_frame
from ivis_spark.spark.embedding.target import Target
from ivis_spark.spark.partitioning import cores
from ivis_spark.spark.rows import columns as frames
from ivis_spark.spark.rows import tables
from ivis_spark.spark.rows.sizes import mean_bytes
from ivis_spark.spark.session import arrow_batches, describe_job

log = logging.getLogger(__name__)

# Formats whose files can be read one by one.
_FILE_FORMATS = ("parquet", "orc", "csv", "json", "avro")
_WAVES = 4


@dataclass(frozen=True)
class Input:
    """Rows to embed.

    Attributes:
        features: The feature columns.
        files: The input's files, or none if it can only be read whole.
        read: Reads these files, or the whole input without any.
        columns: What the embedded table will have beside the outputs.
        row_bytes: Returns what a row takes in an Arrow batch, about; reads some rows.
    """

    features: tuple[str, ...]
    files: list[str]
    read: Callable[[list[str]], DataFrame]
    columns: list[str]
    row_bytes: Callable[[], int]


def input_of_rows(rows: DataFrame, info: dict[str, Any]) -> Input:
    """Return the rows of a run, packed and scaled already, with the columns that were kept.

    Rows that were numbered keep their number, as the tables of neighbours name it, in the column `number_column`.

    Args:
        rows: Of the stage `rows`.
        info: Facts of its manifest.
    """
    others = rows.drop(frames.FEATURES)
    files, row_bytes = tables.input_files(rows), lambda: 4 * int(info["dims"]) + mean_bytes(others)
    if info["columns"] is None:  # of an older version, which kept id and label alone
        return Input((frames.FEATURES,), files, lambda chosen: _rows_of(rows, chosen), others.columns, row_bytes)
    number = number_column(info)
    kept = [frames.kept_column(info["columns"], name).alias(name) for name in info["columns"]]
    features = frames.unused(frames.FEATURES, info["columns"])
    columns = [*kept, *([F.col(frames.ID).alias(number)] if number else []), F.col(frames.FEATURES).alias(features)]

    def read(files: list[str]) -> DataFrame:
        return _rows_of(rows, files).select(*columns)

    names = [*info["columns"], *([number] if number else [])]
    return Input((features,), files, read, names, row_bytes)


def _rows_of(rows: DataFrame, files: list[str]) -> DataFrame:
    return tables.read_parquet(rows.sparkSession, *files, schema=rows.schema) if files else rows


def number_column(info: dict[str, Any]) -> str | None:
    """Return the column of embedded rows that holds their numbers, from facts of the stage `rows`; None without one."""
    return frames.unused(frames.ID, info["columns"]) if info["numbered"] else None


def input_of_table(table: DataFrame, uri: str, config: DataConfig, model: ModelFolder) -> Input:
    """Return a user's table with the columns that the model was trained on, or those that `config` names.

    A table that has nothing else to keep keeps its features, which alone tell its rows apart. A DataFrame has no `uri`
    and is read whole.

    Raises:
        InputError: if a column is missing or of a type that cannot be used, or the width is not the model's.
    """
    names = tuple(model.serving["features"])
    if not config.features_col and not config.feature_cols:
        chosen = {"features_col": names[0]} if len(names) == 1 else {"feature_cols": names}
        config = dataclasses.replace(config, **chosen)
    if config.image_height is None and config.image_width is None:
        config = dataclasses.replace(config, **model.images)
    if model.indices_col and config.indices_col is None:
        config = dataclasses.replace(config, indices_col=model.indices_col)
    if config.indices_col:
        config = dataclasses.replace(config, n_features=model.n_inputs)
    config = dataclasses.replace(config, label_col=None)
    source = frames.resolve(table, config)
    if source.width != model.n_inputs:
        raise InputError(
            f"the table has {source.width} features in {source.features_text}; the model was trained on "
            f"{model.n_inputs}"
        )
    files = tables.input_files(table) if uri and config.format in _FILE_FORMATS else []
    features = frames.to_map(table, source, config)[1]

    def read(chosen: list[str]) -> DataFrame:
        found = tables.read_files(table, config, chosen) if chosen else table
        return frames.to_map(found, source, config)[0]

    return Input(features, files, read, list(source.carried), lambda: source.row_bytes(stays_sparse=source.sparse))


def embed_input(
    spark: SparkSession,
    source: Input,
    encoder: Encoder,
    config: EmbedConfig,
    work: str,
    *,
    classes: dict[str, Any] | None = None,
    files: list[str] | None = None,
    again: Sequence[list[str]] = (),
) -> tuple[list[units.Unit], dict[str, Any]]:
    """Embed rows of an input, unit after unit, into Parquet below a work folder. Runs on: driver.

    Args:
        spark: The session.
        source: The rows.
        encoder: Scales and embeds a batch.
        config: The outputs and what to do with invalid rows.
        work: URI of the folder.
        classes: `values` and `type` of the model's classes, if it has any.
        files: The files to embed; all of the input if left out. An input that is not read file by file is embedded
            whole.
        again: Further files, of a unit each.

    Returns:
        The units, and facts about all of them: rows, and invalid rows by kind.

    Raises:
        InputError: if rows are invalid and that is an error, or columns clash.
    """
    outputs = Outputs.of(config, classes)
    _check_columns(source, outputs, config)
    size = config.unit_bytes or _WAVES * SPLIT_BYTES * cores(spark)
    chosen = source.files if files is None else files
    plan = [*again, *units.plan_units(chosen, size)] if source.files else [[]]
    do = functools.partial(_embed_unit, spark, source, encoder, config, outputs)
    describe_job(spark, "embed")
    with arrow_batches(spark, source.row_bytes() if plan else 1, most=config.batch_rows):
        done = units.run_units(work, plan, do, fixed=again)
    info = {"rows": sum(unit.info["rows"] for unit in done), "embedding_dims": encoder.network.n_outputs}
    info["invalid"] = invalid = {fault: sum(unit.info["invalid"].get(fault, 0) for unit in done) for fault in FAULTS}
    if not info["rows"]:
        dropped = sum(invalid.values())
        reason = f"all {dropped:,} are invalid, and embed.invalid is drop" if dropped else "the input has none"
        log.warning("no rows were embedded: %s", reason)
    return done, info


def check_same_columns(
    spark: SparkSession, target: Target, source: Input, config: EmbedConfig, *, classes: dict[str, Any] | None = None
) -> None:
    """Refuse to put embeddings into a table with other columns. Reads footers only. Runs on: driver.

    The arguments are those of `embed_input`.

    Raises:
        InputError: names the columns that differ.
    """
    if not target.data_files():
        return
    outputs = Outputs.of(config, classes)
    fields = [field for field in source.read([]).schema.fields if field.name in source.columns]
    new = {field.name: field.dataType.simpleString() for field in [*fields, *outputs.fields]}
    if outputs.label is not None:
        new[outputs.label] = outputs.label_type
    try:
        old = {f.name: f.dataType.simpleString() for f in tables.read_parquet(spark, target.uri).schema.fields}
    except Exception as err:
        raise InputError(
            f"--target {target.uri} holds files that are not a Parquet table ({deepest_cause(err)}): choose another "
            f"folder"
        ) from err
    named = config.partition_by  # their types are guessed from the names of folders
    faults = [f"{name} is only in the table" for name in old if name not in new]
    faults += [f"{name} is only in the embeddings" for name in new if name not in old]
    faults += [
        f"{name} is {old[name]} in the table and {new[name]} in the embeddings"
        for name in new
        if name in old and name not in named and old[name] != new[name]
    ]
    if faults:
        roots = tables.roots_of(source.read([]))
        hints = (in_folders(name, roots, opened=not source.files) for name in old if name not in new)
        remedy = next(filter(None, hints), "")
        raise InputError(
            f"{target.uri} has different columns: {'; '.join(faults)}{remedy or '. Choose another --target'}"
        )


def _embed_unit(
    spark: SparkSession,
    source: Input,
    encoder: Encoder,
    config: EmbedConfig,
    outputs: Outputs,
    files: list[str],
    folder: str,
) -> dict[str, Any]:
    counts = InvalidRows(spark.sparkContext)
    embedded = embed_frame(
        source.read(files),
        encoder,
        invalid=config.invalid,
        features=source.features,
        kept=source.columns,
        outputs=outputs,
        counts=counts,
    )
    tables.write_parquet(embedded, folder, config.partition_by, repeatable=bool(files))
    rows = tables.read_parquet(spark, folder, schema=embedded.schema).count()
    return {"rows": rows, "invalid": counts.value()}


def _check_columns(source: Input, outputs: Outputs, config: EmbedConfig) -> None:
    outputs.check_free(
        source.columns, "choose another name with --set embed.output_col, embed.scores_col or embed.class_col"
    )
    missing = [name for name in config.partition_by if name not in source.columns]
    if missing:
        hint = in_folders(missing[0], tables.roots_of(source.read([])), opened=not source.files)
        hint = hint or what_it_has(missing[0], source.columns)
        raise InputError(f"embed.partition_by={missing[0]!r} is not in the embedded table{hint}")
