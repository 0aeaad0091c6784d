"""The job that embeds a table: its columns found, its files dealt to units, every unit embedded and written once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession

from ivis_spark.config import DataConfig, EmbedConfig
from ivis_spark.errors import InputError
from ivis_spark.serving.encoder import Encoder
from ivis_spark.serving.folder import ModelFolder
from ivis_spark.spark.causes import task_errors
from ivis_spark.spark.embedding import units
from ivis_spark.spark.embedding.embed import InvalidRows, Outputs, embed_frame
from ivis_spark.spark.embedding.target import Target
from ivis_spark.spark.partitioning import cores
from ivis_spark.spark.rows import columns as frames
from ivis_spark.spark.rows import ingest, tables
from ivis_spark.spark.session import arrow_batch_rows, describe_job

# Formats whose files can be read one by one.
_FILE_FORMATS = ("parquet", "orc", "csv", "json", "avro")
_SPLIT_BYTES, _WAVES = 128 << 20, 4


@dataclass(frozen=True)
class Input:
    """Rows to embed.

    Attributes:
        features: The feature columns.
        files: The input's files, or none if it can only be read whole.
        read: Reads these files, or the whole input without any.
        columns: What the embedded table will have beside the outputs.
    """

    features: tuple[str, ...]
    files: list[str]
    read: Callable[[list[str]], DataFrame]
    columns: list[str]


def input_of_rows(rows: DataFrame) -> Input:
    """Return the rows of a run, packed and scaled already."""

    def read(files: list[str]) -> DataFrame:
        return tables.read_parquet(rows.sparkSession, *files, schema=rows.schema) if files else rows

    columns = [name for name in rows.columns if name != frames.FEATURES]
    return Input((frames.FEATURES,), tables.input_files(rows), read, columns)


def input_of_table(table: DataFrame, uri: str, config: DataConfig, model: ModelFolder, *, invalid: str) -> Input:
    """Return a user's table with the columns that the model was trained on, or those that `config` names.

    A table of nothing but features gets the column `id`, derived from their content as on ingest, and is read whole;
    an invalid row has no content to derive an id from, so that it is an error there unless `invalid` is drop.

    Raises:
        InputError: if a column is missing or of a type that cannot be used, or the width is not the model's.
    """
    names = tuple(model.serving["features"])
    if not config.features_col and not config.feature_cols:
        chosen = {"features_col": names[0]} if len(names) == 1 else {"feature_cols": names}
        config = dataclasses.replace(config, **chosen)
    if config.image_height is None and config.image_width is None:
        config = dataclasses.replace(config, **model.images)
    config = dataclasses.replace(config, label_col=None)
    source = frames.resolve(table, config)
    if source.width != model.n_inputs:
        raise InputError(
            f"the table has {source.width} features in {source.features_text}; the model was trained on "
            f"{model.n_inputs}"
        )
    others = [name for name in table.columns if name not in source.feature_names]
    if not others:
        config = dataclasses.replace(config, invalid="drop" if invalid == "drop" else "error")
        with_ids = ingest.with_derived_ids(ingest.packed(source, config))
        return Input((frames.FEATURES,), [], lambda _: with_ids, [frames.ID])
    files = tables.input_files(table) if config.format in _FILE_FORMATS else []

    def read(chosen: list[str]) -> DataFrame:
        found = tables.read_files(table, uri, config, chosen) if chosen else table
        return frames.decoded(found, source.feature_names, config)

    return Input(source.feature_names, files, read, others)


def embed_input(
    spark: SparkSession, source: Input, encoder: Encoder, config: EmbedConfig, work: str
) -> tuple[list[units.Unit], dict[str, Any]]:
    """Embed all rows of an input, unit after unit, into Parquet below a work folder. Runs on: driver.

    Returns:
        The units, and facts about all of them: rows, and invalid rows by kind.

    Raises:
        InputError: if rows are invalid and that is an error, or columns clash.
    """
    outputs = _outputs(config)
    _check_columns(source, outputs, config)
    size = config.unit_bytes or _WAVES * _SPLIT_BYTES * cores(spark)
    plan = units.plan_units(source.files, size) if source.files else [[]]
    do = functools.partial(_embed_unit, spark, source, encoder, config, outputs)
    describe_job(spark, "embed")
    with arrow_batch_rows(spark, config.batch_rows):
        done = units.run_units(work, plan, do)
    info = {"rows": sum(unit.info["rows"] for unit in done), "embedding_dims": encoder.network.n_outputs}
    info["invalid"] = {fault: sum(unit.info["invalid"][fault] for unit in done) for fault in done[0].info["invalid"]}
    return done, info


def check_same_columns(spark: SparkSession, target: Target, source: Input, config: EmbedConfig) -> None:
    """Refuse to put embeddings into a table with other columns. Reads footers only. Runs on: driver.

    Raises:
        InputError: names the columns that differ.
    """
    files = target.data_files()
    if not files:
        return
    folders = {tuple(unquote(part.partition("=")[0]) for part in name.split("/")[:-1]) for name in files}
    if folders != {config.partition_by}:
        found = " and ".join(sorted("/".join(names) or "nothing" for names in folders))
        raise InputError(
            f"{target.uri} is partitioned by {found}, and embed.partition_by is "
            f"{'/'.join(config.partition_by) or 'nothing'}: set it to the same, or choose another --target"
        )
    outputs = _outputs(config)
    fields = [field for field in source.read([]).schema.fields if field.name not in source.features]
    new = {field.name: field.dataType.simpleString() for field in [*fields, *outputs.fields]}
    table = tables.read_table(spark, target.uri, DataConfig(format="parquet"))
    old = {field.name: field.dataType.simpleString() for field in table.schema.fields}
    named = config.partition_by  # their types are guessed from the names of folders
    faults = [f"{name} is only in the table" for name in old if name not in new]
    faults += [f"{name} is only in the embeddings" for name in new if name not in old]
    faults += [
        f"{name} is {old[name]} in the table and {new[name]} in the embeddings"
        for name in new
        if name in old and name not in named and old[name] != new[name]
    ]
    if faults:
        raise InputError(f"{target.uri} has other columns: {'; '.join(faults)}. Choose another --target")


def _outputs(config: EmbedConfig) -> Outputs:
    return Outputs(config.output_col, config.scores_col, config.precision == "float16")


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
    with task_errors():
        embedded = embed_frame(
            source.read(files),
            encoder,
            invalid=config.invalid,
            features=source.features,
            outputs=outputs,
            counts=counts,
        )
        embedded.write.partitionBy(*config.partition_by).parquet(folder)
    rows = tables.read_parquet(spark, folder, schema=embedded.schema).count()
    return {"rows": rows, "invalid": counts.value()}


def _check_columns(source: Input, outputs: Outputs, config: EmbedConfig) -> None:
    outputs.check_free(source.columns, "name another with --set embed.output_col or embed.scores_col")
    missing = [name for name in config.partition_by if name not in source.columns]
    if missing:
        raise InputError(
            f"embed.partition_by names {', '.join(missing)}; the embedded table has: {', '.join(source.columns)}"
        )
