"""The stages in order; published stages are skipped. `stages/` implements each one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ivis_spark.config import Config
from ivis_spark.errors import ConfigError
from ivis_spark.runtime.publishing import StageRunner
from ivis_spark.spark.before_spark import look_at_input
from ivis_spark.spark.hadoop import check_filesystems
from ivis_spark.spark.watching import SparkProgress
from ivis_spark.stages import COMMANDS, STAGES, embeddings, model, neighbours, query, report, rows, triplets
from ivis_spark.stages.input_table import InputTable
from ivis_spark.stages.outputs import check_places
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest
from ivis_spark.train.backends import resolve_backend

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

# What the last stages import, in seconds: done while Spark starts, which leaves cores idle.
_SLOW_IMPORTS = ("ivis_spark.train.job", "ivis_spark.report.evaluate", "ivis_spark.report.figures", "sklearn.svm")


def _import_ahead() -> None:
    for name in _SLOW_IMPORTS:
        with contextlib.suppress(Exception):  # the stage that needs it says what is missing
            importlib.import_module(name)


def _check_arguments(output: Any, config: Any, get_spark: Any, input_uri: Any, source: Any) -> None:
    """Refuse arguments of other types; a session and a DataFrame are what notebooks have at hand."""
    faults = {
        "output": (isinstance(output, str), output, "the path or URI of the run folder, as text"),
        "config": (isinstance(config, Config), config, "a Config, such as load_config(...) returns"),
        "get_spark": (callable(get_spark), get_spark, "a function that returns the session: get_spark=lambda: spark"),
        "input_uri": (
            isinstance(input_uri, str | None),
            input_uri,
            "a path or URI as text; pass a DataFrame as source",
        ),
        "source": (source is None or hasattr(source, "sparkSession"), source, "a DataFrame of Spark"),
    }
    for name, (right, given, wanted) in faults.items():
        if not right:
            raise ConfigError(f"{name} is a {type(given).__name__}; it must be {wanted}")


class Pipeline:
    """The stages of one run folder. Runs on: driver.

    Args:
        output: URI of the run folder.
        config: All settings.
        get_spark: Returns the session; called only if a stage needs Spark, so that training alone starts no JVM.
        input_uri: The table; needed only to ingest it, and to embed or query another one.
        source: A DataFrame instead of that table.
        overwrite: Whether stages with other settings or input are rebuilt instead of refused.
        experiment: MLflow experiment to log to; None disables it.

    Raises:
        ConfigError: if an argument is of another type than these, or `source` is of Spark Connect.
        InputError: if `source` is a stream; if the run folder is, contains or is inside the input; if the input does
            not exist, or lacks a named column, as far as can be checked without Spark.

    Example:
        >>> from ivis_spark import Pipeline, load_config
        >>> config = load_config(None, ["data.id_col=id", "neighbours.k=5", "neighbours.recall_sample=20"])
        >>> pipeline = Pipeline("cells-run", config, get_spark=lambda: spark, input_uri="cells.parquet")
        >>> pipeline.neighbours().info["recall"]["value"]
        1.0
    """

    def __init__(
        self,
        output: str,
        config: Config,
        *,
        get_spark: Callable[[], SparkSession],
        input_uri: str | None = None,
        source: DataFrame | None = None,
        overwrite: bool = False,
        experiment: str | None = None,
    ) -> None:
        _check_arguments(output, config, get_spark, input_uri, source)
        if source is not None:
            from ivis_spark.spark.session import check_batch

            check_batch(source, "Pipeline(source=...)")
        check_places(config, output, input_uri=input_uri)
        if source is not None or input_uri is not None:
            config = dataclasses.replace(config, data=look_at_input(input_uri if source is None else None, config.data))
        runner = StageRunner(output, COMMANDS, overwrite=overwrite, experiment=experiment)

        tables = [output, config.neighbours.table, None if config.data.format == "table" else input_uri]

        def get_any_spark() -> SparkSession:
            from ivis_spark.spark.session import is_connect

            session = get_spark()
            if not is_connect(session):
                check_filesystems(session, tables)
            return session

        def get_classic() -> SparkSession:
            from ivis_spark.spark.session import refuse_connect

            return refuse_connect(get_any_spark(), "this stage")

        self._run = Run(runner, config, get_classic, InputTable(config.data, get_classic, input_uri, source))
        self._get_any_spark = get_any_spark
        self.run_folder, self.tracker = runner.folder, runner.tracker
        self.config = config

    def run(self) -> dict[str, Manifest]:
        """Run all stages and return their manifests.

        Raises:
            IvisError: any error of a stage; stages published before it are kept.
        """
        backend = resolve_backend(self.config.train)  # hours before it is needed, as are metrics of the user's own
        report.check_metrics(self.config)
        self._run.check_settings("rows", "neighbours", "triplets", "model")
        label = self.config.data.label_col
        if label is not None and not self.config.trains_on_labels:
            log.info("labels (%s) are for the report: training on them takes train.supervision_metric", label)
        if not backend.distributed and "model" not in self.run_folder.published():
            threading.Thread(target=_import_ahead, name="imports").start()
        search = functools.partial(self.neighbours, for_training=True)
        steps: tuple[Callable[[], Manifest], ...] = (search, self.triplets, self.train, self.embed, self.evaluate)
        with self._run.runner.locked(), SparkProgress():
            manifests = {stage: step() for stage, step in zip(STAGES[1:], steps, strict=True)}
        return {STAGES[0]: self._run.require(STAGES[0]), **manifests}

    def ingest(self) -> Manifest:
        """Check, scale and keep the rows of the input table.

        Raises:
            InputError: if the table or the settings that go with it cannot be used; nothing is published then.
        """
        return rows.publish(self._run)

    def neighbours(self, *, for_training: bool = False) -> Manifest:
        """Find the neighbours of every row; the rows are ingested first if an input was passed.

        Args:
            for_training: Whether the neighbours of the anchors (`triplets.anchors`) are sufficient.
        """
        if self._run.input.uri is not None:
            self._run.check_settings("rows", "neighbours")
        return neighbours.publish(self._run, for_training=for_training)

    def query(self, name: str | None = None) -> Manifest:
        """Find the nearest rows of the run for each row of another table.

        Args:
            name: Folder to publish; by default `queries-<table>`.
        """
        return query.publish(self._run, name)

    def triplets(self) -> Manifest:
        """Sample triplets and pack them into blocks."""
        return triplets.publish(self._run)

    def train(self) -> Manifest:
        """Train the network on the blocks: in this process, or on ranks of the Spark cluster.

        A run that was interrupted resumes from its last checkpoint.
        """
        return model.publish(self._run)

    def embed(self, name: str | None = None) -> Manifest:
        """Embed the rows of the run, or those of another input table.

        Args:
            name: Folder to publish; by default `embeddings` for the rows of the run, and `embeddings-<table>` for
                another table.
        """
        return embeddings.publish(self._run, name)

    def embed_into(self, uri: str, mode: str) -> dict[str, Any]:
        """Embed the input table, or without one the rows of the run, into the user's own Parquet table.

        Args:
            uri: The table's folder.
            mode: append, overwrite, or replace (only partitions present in the new data).

        Returns:
            Facts: rows, invalid rows by kind, and whether this job was already done, so that nothing was written.
        """
        return embeddings.put_into(self._run, uri, mode)

    def evaluate(self) -> Manifest:
        """Measure the embeddings and write the report; through Spark Connect too."""
        report.check_metrics(self.config)
        return report.publish(dataclasses.replace(self._run, get_spark=self._get_any_spark))
