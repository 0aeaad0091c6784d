"""The journey of a row, stage after stage; what is published already is skipped.

| stage | reads | publishes |
|---|---|---|
| rows | the input table | `rows/data` (id, features, label), `rows/scaler.json` |
| neighbours | rows | `neighbours/data` (id, neighbour_ids, distances), `neighbours/index` |
| triplets | neighbours, rows | `triplets/data`, one packed block a row |
| model | triplets | `model/`: encoder, head, scaler |
| embeddings | model, rows or another table | `embeddings/data` (id, embedding, label) |
| report | embeddings, rows, model, neighbours | `report/report.html`, `metrics.json`, pictures |
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import posixpath
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ivis_spark import storage
from ivis_spark.config import Config, DataConfig
from ivis_spark.core.dense import DenseNetwork
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import InputError
from ivis_spark.storage import Manifest, RunFolder, StageBuild

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ivis_spark.spark.frames import Source
    from ivis_spark.train.job import TrainingJob

log = logging.getLogger(__name__)

STAGES = ("rows", "neighbours", "triplets", "model", "embeddings", "report")
# The command that publishes each stage, for messages.
COMMANDS = {
    "rows": "neighbours",
    "neighbours": "neighbours",
    "triplets": "triplets",
    "model": "train",
    "embeddings": "embed",
    "report": "evaluate",
}
_DENSE, _SCALER, _CHECKPOINTS = "dense.npz", "scaler.json", ".checkpoints"
_DIGEST_ON_EXECUTORS_BYTES = 1 << 30


class Pipeline:
    """The stages of one run folder. Runs on: driver.

    Args:
        output: URI of the run folder.
        config: All settings.
        get_spark: Returns the session; called when a stage needs Spark, so that training alone starts no JVM.
        input_uri: The table; only ingesting it (and embedding another one) needs it.
        overwrite: Whether stages made with other settings or input are built anew instead of refused.
    """

    def __init__(
        self,
        output: str,
        config: Config,
        *,
        get_spark: Callable[[], SparkSession],
        input_uri: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.run_folder = RunFolder(output)
        self.config = config
        self.input_uri = input_uri
        self._get_spark = get_spark
        self._overwrite = overwrite

    def run(self) -> dict[str, Manifest]:
        """Run all stages and return their manifests.

        Raises:
            IvisError: whatever a stage raises; stages published before it stay.
        """
        steps = (self.neighbours, self.triplets, self.train, self.embed, self.evaluate)
        manifests = {stage: step() for stage, step in zip(STAGES[1:], steps, strict=True)}
        return {STAGES[0]: self._require(STAGES[0]), **manifests}

    def ingest(self) -> Manifest:
        """Check, scale and keep the rows of the input table.

        Raises:
            InputError: if the table or the settings that go with it cannot be used; nothing is published then.
        """
        from ivis_spark.spark import frames, ingest

        if self.input_uri is None:
            return self._checked(self._require("rows"))
        storage.check_writable(self.run_folder.root)
        table = frames.read_table(self._get_spark(), self.input_uri, self.config.data)
        spec = self._spec("data", source=self._fingerprint(table))

        def build(stage: StageBuild) -> None:
            source = frames.resolve(table, self.config.data)
            stage.info.update(ingest.ingest(source, self.config.data, stage))
            self._check_fit(stage.info)

        return self._checked(self._stage("rows", spec, build))

    def neighbours(self) -> Manifest:
        """Find the neighbours of every row; the rows are ingested first if an input is given."""
        rows, config = self.ingest(), self.config.neighbours
        inputs: dict[str, Any] = {"rows": rows.fingerprint}
        if config.table is not None:
            inputs["table"] = self._fingerprint(self._given_neighbours())

        def build(stage: StageBuild) -> None:
            from ivis_spark.spark.by_label import build_label_neighbours
            from ivis_spark.spark.given import take_neighbours
            from ivis_spark.spark.neighbours import build_neighbours

            seed = self.config.random_state
            if config.by_label:
                labelled = self._table("rows").select("id", "label")
                stage.info.update(build_label_neighbours(labelled, k=config.k, random_state=seed, folder=stage.uri))
                return
            frame = self._table("rows").select("id", "features")
            if config.table is not None:
                table = self._given_neighbours()
                stage.info.update(take_neighbours(frame, table, config, random_state=seed, folder=stage.uri))
                return
            scaler = Scaler.from_mapping(storage.read_json(self.run_folder.path("rows", _SCALER)))
            stage.info.update(build_neighbours(frame, config, random_state=seed, folder=stage.uri, scaler=scaler))

        return self._stage("neighbours", self._spec("neighbours", "random_state", **inputs), build)

    def _given_neighbours(self) -> DataFrame:
        from ivis_spark.spark import frames

        return frames.read_table(self._get_spark(), str(self.config.neighbours.table), DataConfig(format="parquet"))

    def query(self, name: str | None = None) -> Manifest:
        """Find the neighbours, among the rows of the run, of the rows of another table.

        Args:
            name: Folder to publish; by default `queries-<table>`.
        """
        from ivis_spark.spark import frames

        neighbours, rows = self._require("neighbours"), self._require("rows")
        if self.input_uri is None:
            raise InputError("query needs the table with the new rows: --input TABLE")
        table = frames.read_table(self._get_spark(), self.input_uri, self.config.data)
        name = name or f"queries-{_table_name(self.input_uri)}"

        def build(stage: StageBuild) -> None:
            from ivis_spark.spark.query import query
            from ivis_spark.spark.session import arrow_batch_rows, describe_job, task_errors

            describe_job(self._get_spark(), "query")
            with task_errors(), arrow_batch_rows(self._get_spark(), self.config.embed.batch_rows):
                index, data = self.run_folder.path("neighbours", "index"), self._columns_of(table, rows)
                query(table, index, self.config.query.k, data=data).write.mode("overwrite").parquet(stage.path("data"))
            stage.info["rows"] = self._get_spark().read.parquet(stage.path("data")).count()

        spec = self._spec("query", neighbours=neighbours.fingerprint, source=self._fingerprint(table))
        return self._stage(name, spec, build)

    def triplets(self) -> Manifest:
        """Draw triplets and pack them into blocks."""
        rows, neighbours = self._require("rows"), self._require("neighbours")

        def build(stage: StageBuild) -> None:
            from ivis_spark.spark.triplets import build_triplets

            stage.info.update(
                build_triplets(
                    self._table("rows"),
                    self._table("neighbours"),
                    self.config.triplets,
                    n_rows=rows.info["rows"],
                    random_state=self.config.random_state,
                    folder=stage.path("data"),
                )
            )
            stage.info["dims"] = rows.info["dims"]

        spec = self._spec("triplets", "random_state", rows=rows.fingerprint, neighbours=neighbours.fingerprint)
        return self._stage("triplets", spec, build)

    def train(self) -> Manifest:
        """Train the network on the blocks: in this process, or on ranks of the Spark cluster.

        A run that was interrupted goes on from its last checkpoint.
        """
        rows, triplets = self._checked(self._require("rows")), self._require("triplets")
        spec = self._spec("train", "random_state", triplets=triplets.fingerprint)
        checkpoints = self.run_folder.path(_CHECKPOINTS, storage.fingerprint(spec))

        def build(stage: StageBuild) -> None:
            stage.info.update(self._train(self._training_job(rows, triplets, stage.uri, checkpoints)))
            storage.write_json(stage.path(_SCALER), storage.read_json(self.run_folder.path("rows", _SCALER)))

        manifest = self._stage("model", spec, build)
        storage.remove_folder(self.run_folder.path(_CHECKPOINTS))
        return manifest

    def _training_job(self, rows: Manifest, triplets: Manifest, model_uri: str, checkpoint_uri: str) -> TrainingJob:
        from ivis_spark.data.reader import TripletBlocks
        from ivis_spark.train.job import TrainingJob

        names = ("file_blocks", "block_rows", "dims", "draws", "labelled")
        blocks = TripletBlocks(
            self.run_folder.path("triplets", "data"),
            **{name: triplets.info[name] for name in names},
            group_blocks=triplets.spec["config"]["triplets"]["group_blocks"],
        )
        return TrainingJob(
            blocks,
            self.config.train,
            label_values=_label_values(rows.info),
            random_state=self.config.random_state,
            model_uri=model_uri,
            checkpoint_uri=checkpoint_uri,
            extra={"features": rows.info["features"], "scaling": self.config.data.scaling},
        )

    def _train(self, job: TrainingJob) -> dict[str, Any]:
        from ivis_spark.train.backend import resolve_backend
        from ivis_spark.train.job import run_job

        if resolve_backend(job.config) == "local":
            return run_job(job)
        from ivis_spark.spark.training import train_on_ring

        return train_on_ring(self._get_spark(), job)

    def embed(self, name: str | None = None) -> Manifest:
        """Embed the rows of the run, or those of another input table.

        Args:
            name: Folder to publish; by default `embeddings` for the rows of the run, and `embeddings-<table>` for
                another table.
        """
        from ivis_spark.spark import frames

        model, rows = self._require("model"), self._require("rows")
        other = None
        if self.input_uri is not None:
            table = frames.read_table(self._get_spark(), self.input_uri, self.config.data)
            source = self._fingerprint(table)
            if source != rows.spec["inputs"]["source"]:
                other = source
                name = name or f"embeddings-{_table_name(self.input_uri)}"
        name = name or "embeddings"

        def build(stage: StageBuild) -> None:
            if other is None:
                frame, encoder = self._table("rows"), self._encoder(scaled=True)
            else:
                frame, encoder = self._other_rows(table, rows), self._encoder(scaled=False)
            self._write_embeddings(stage, frame, encoder)

        inputs = {"model": model.fingerprint} if other is None else {"model": model.fingerprint, "source": other}
        return self._stage(name, self._spec(**inputs), build)

    def evaluate(self) -> Manifest:
        """Measure the embeddings and write the report."""
        needed = {name: self._require(name) for name in ("rows", "neighbours", "model", "embeddings")}

        def build(stage: StageBuild) -> None:
            from ivis_spark import report

            with _scratch_folder() as folder:
                figures = report.evaluate(
                    self._get_spark(),
                    rows=self._table("rows"),
                    embeddings=self._table("embeddings"),
                    training=_curves(needed["model"].info),
                    neighbours=needed["neighbours"].info,
                    config=self.config.evaluate,
                    random_state=self.config.random_state,
                    folder=folder,
                    title=f"ivis_spark: {posixpath.basename(self.run_folder.root)}",
                    settings=_settings(needed),
                )
                storage.put_folder(folder, stage.uri)
            stage.info.update(figures)

        prints = {name: manifest.fingerprint for name, manifest in needed.items()}
        return self._stage("report", self._spec("evaluate", "random_state", **prints), build)

    def _stage(self, name: str, spec: dict[str, Any], build: Callable[[StageBuild], None]) -> Manifest:
        """Build a stage unless it stands with the same settings and input."""
        command = COMMANDS.get(name, "embed")
        if self.run_folder.is_current(name, spec, overwrite=self._overwrite):
            log.info("%s: already published, skipped", name)
            return self.run_folder.require(name, command)
        log.info("%s: started", name)
        started = time.monotonic()
        with self.run_folder.build(name, spec, map_files=self._map_files) as stage:
            build(stage)
        manifest = self.run_folder.require(name, command)
        log.info("%s: published in %.1f s", name, time.monotonic() - started)
        return manifest

    def _spec(self, *sections: str, **inputs: Any) -> dict[str, Any]:
        return {"config": {name: self.config.result_settings(name) for name in sections}, "inputs": inputs}

    def _require(self, stage: str) -> Manifest:
        return self.run_folder.require(stage, COMMANDS[stage])

    def _checked(self, rows: Manifest) -> Manifest:
        self._check_fit(rows.info)
        return rows

    def _check_fit(self, info: dict[str, Any]) -> None:
        """Check settings against the rows, before any work that depends on both."""
        rows, k = info["rows"], self.config.neighbours.k
        if rows < k + 2:
            raise InputError(
                f"neighbours.k={k} needs at least {k + 2} rows, so that each has {k} neighbours and one other; the "
                f"input has {rows}. "
                + (f"Pass --set neighbours.k={rows - 2} or less" if rows > 2 else "Pass more rows")
            )
        if self.config.neighbours.by_label and info["labels"] is None:
            raise InputError("neighbours.by_label needs labels; name their column with --label-col")
        self._check_labels(info)

    def _check_labels(self, info: dict[str, Any]) -> None:
        metric, labels = self.config.train.supervision_metric, info["labels"]
        if metric is None:
            return
        if labels is None:
            raise InputError(f"train.supervision_metric={metric!r} needs labels; name their column with --label-col")
        if labels["null"]:
            raise InputError(
                f"label column {info['label_col']!r} holds null; give every row a label (for classes, -1 is no label)"
            )
        from ivis_spark.nn.supervision import count_outputs

        try:
            count_outputs(metric, np.asarray(_label_values(info)))
        except InputError as err:
            raise InputError(f"label column {info['label_col']!r}: {err}") from err

    def _fingerprint(self, table: DataFrame) -> dict[str, Any]:
        return storage.source_fingerprint(table.inputFiles())

    def _table(self, stage: str) -> DataFrame:
        return self._get_spark().read.parquet(self.run_folder.path(stage, "data"))

    def _encoder(self, *, scaled: bool) -> Any:
        """Load what executors need to embed rows, scaled already or as the user has them."""
        from ivis_spark.spark.embed import Encoder

        fs, path = storage.filesystem(self.run_folder.path("model", _DENSE))
        network = DenseNetwork.from_bytes(fs.cat_file(path))
        scaler = Scaler.from_mapping(storage.read_json(self.run_folder.path("model", _SCALER)))
        return Encoder(network, None if scaled else scaler)

    def _columns_of(self, table: DataFrame, rows: Manifest) -> DataConfig:
        """Return which columns of another table to read: those named, else those that the run's input had."""
        trained = Config.from_mapping({"data": rows.spec["config"]["data"]}).data
        given = dataclasses.replace(trained, invalid=self.config.data.invalid)
        if self.config.data.features_col or self.config.data.feature_cols or self.config.data.id_col:
            given = self.config.data
        elif not given.features_col and not given.feature_cols:
            names = tuple(rows.info["features"])
            given = dataclasses.replace(
                given, **({"features_col": names[0]} if len(names) == 1 else {"feature_cols": names})
            )
        if given.label_col not in table.columns:
            given = dataclasses.replace(given, label_col=None)
        return given

    def _other_rows(self, table: DataFrame, rows: Manifest) -> DataFrame:
        """Return another table's rows with the columns that the run's input had, ids derived if it had none."""
        from ivis_spark.spark import frames, ingest

        given = self._columns_of(table, rows)
        source: Source = frames.resolve(table, given)
        if source.width != rows.info["dims"]:
            raise InputError(
                f"the table has {source.width} features in {source.features_text}; the model was trained on "
                f"{rows.info['dims']}"
            )
        return source.frame if source.id_col else ingest.with_derived_ids(ingest.packed(source, given))

    def _write_embeddings(self, stage: StageBuild, frame: DataFrame, encoder: Any) -> None:
        from ivis_spark.spark.embed import embed_frame
        from ivis_spark.spark.session import arrow_batch_rows, describe_job, task_errors

        spark = self._get_spark()
        describe_job(spark, "embed")
        with task_errors(), arrow_batch_rows(self._get_spark(), self.config.embed.batch_rows):
            embedded = embed_frame(frame, encoder, invalid=self.config.data.invalid)
            embedded.write.mode("overwrite").parquet(stage.path("data"))
        stage.info["rows"] = spark.read.parquet(stage.path("data")).count()
        stage.info["embedding_dims"] = encoder.network.n_outputs

    def _map_files(self, function: Callable[[str], Any], uris: list[str]) -> list[Any]:
        """Apply a function to files: here if they are few and small, else in Spark tasks."""
        sizes = (storage.filesystem(uri)[0].size(storage.filesystem(uri)[1]) for uri in uris)
        if sum(sizes) < _DIGEST_ON_EXECUTORS_BYTES:
            return [function(uri) for uri in uris]
        context = self._get_spark().sparkContext
        return list(context.parallelize(uris, len(uris)).map(function).collect())


def _table_name(uri: str) -> str:
    return posixpath.basename(uri.rstrip("/")).split(".")[0]


def _curves(info: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in info.items() if isinstance(value, list)}
    plain = ("epochs", "training_seconds", "triplets_per_second", "steps_per_epoch", "margin")
    return (
        kept
        | {name: info[name] for name in plain if info.get(name) is not None}
        | {"seconds": info["training_seconds"]}
    )


def _settings(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Return the configuration that each stage was really made with."""
    merged: dict[str, Any] = {}
    for manifest in manifests.values():
        merged.update(manifest.spec["config"])
    return merged


def _label_values(info: dict[str, Any]) -> list[Any] | None:
    """Return the distinct labels; for labels too many to list (regression) any will do, since none is a class."""
    labels = info["labels"]
    if labels is None:
        return None
    width = labels.get("width", 1)
    some = [0.0, 1.0] if width == 1 else [[0.0] * width]
    return some if labels["values"] is None else list(labels["values"])


@contextlib.contextmanager
def _scratch_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ivis-spark-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
