"""What is read and what is written keep apart, on every command and API."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping

from ivis_spark import storage
from ivis_spark.config import Config
from ivis_spark.errors import InputError
from ivis_spark.storage import Place

_SCRATCH = ("spark.local.dir", "spark.eventLog.dir", "spark.sql.warehouse.dir")


def check_places(
    config: Config,
    output: str,
    *,
    input_uri: str | None = None,
    target: str | None = None,
    log_file: str | None = None,
    config_file: str | None = None,
    spark_conf: Mapping[str, str] | None = None,
) -> None:
    """Refuse what would write into something that is read. Nothing is written. Runs on: driver.

    Args:
        config: Names tables that are read too.
        output: The run folder.
        input_uri: The input table.
        target: The table that embeddings are put into.
        log_file: Where the log goes.
        config_file: The file of settings.
        spark_conf: Settings of Spark, which name folders for temporary files.

    Raises:
        InputError: naming both places.
    """
    table = None if config.data.format == "table" else input_uri  # a name in a catalog
    inputs = {"neighbours.table": config.neighbours.table, "--config": config_file}
    scratch = {"the temporary folder": tempfile.gettempdir()}
    scratch |= {name: value for name, value in (spark_conf or {}).items() if name in _SCRATCH}
    outputs = {"--output": output, "--target": target, "--log-file": log_file}
    storage.keep_apart(outputs, {"--input": table}, scratch=scratch, patterns=config.data.glob)
    storage.keep_apart(outputs, inputs, scratch=scratch)
    storage.keep_apart({"--target": target}, {"the run folder": output})
    storage.keep_apart({"--log-file": log_file}, {"--target": target})


def check_table(files: Iterable[str], roots: Iterable[str], output: str) -> None:
    """Refuse to write where a table is read from, which a name in a catalog or a DataFrame does not tell.

    Args:
        files: URIs of the table's files.
        roots: URIs of the files and folders that the table was opened by.
        output: The run folder or a target.

    Raises:
        InputError: naming both places.
    """
    folders = {uri.rpartition("/")[0] for uri in files}
    for root in roots:
        storage.keep_apart({"the output": output}, {"the input table": root})
    for folder in folders:
        if Place(output).holds(Place(folder)):
            raise InputError(
                f"{output} holds the input table, whose files are in {folder}: writing there would modify it. Choose "
                f"another place"
            )
