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
import functools
import logging
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ivis_spark import storage
from ivis_spark.config import Config, DataConfig
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import ConfigError, InputError
from ivis_spark.runtime.fitness import check_fit, label_values
from ivis_spark.runtime.lock import RunLock
from ivis_spark.runtime.stages import StageRunner
from ivis_spark.serving.folder import read_model
from ivis_spark.storage import Manifest, StageBuild

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ivis_spark.report.colouring import Wanted
    from ivis_spark.serving.folder import ModelFolder
    from ivis_spark.spark.embedding.job import Input
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
_SCALER, _CHECKPOINTS = "scaler.json", ".checkpoints"
_DIGEST_ON_EXECUTORS_BYTES, _DIGEST_TASK_BYTES = 1 << 30, 64 << 20


class Pipeline:
    """The stages of one run folder. Runs on: driver.

    Args:
        output: URI of the run folder.
        config: All settings.
        get_spark: Returns the session; called when a stage needs Spark, so that training alone starts no JVM.
        input_uri: The table; only ingesting it (and embedding another one) needs it.
        source: A DataFrame in the place of that table.
        overwrite: Whether stages made with other settings or input are built anew instead of refused.
        experiment: MLflow experiment to report to; None reports to nobody.
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
        self._stages = StageRunner(output, COMMANDS, overwrite=overwrite, experiment=experiment)
        self.run_folder = self._stages.folder
        self.config = config
        self.input_uri = input_uri
        self._source = source
        self._get_spark = get_spark
        self.tracker = self._stages.tracker

    def run(self) -> dict[str, Manifest]:
        """Run all stages and return their manifests.

        Raises:
            IvisError: whatever a stage raises; stages published before it stay.
        """
        steps = (self.neighbours, self.triplets, self.train, self.embed, self.evaluate)
        with self._stages.locked():
            manifests = {stage: step() for stage, step in zip(STAGES[1:], steps, strict=True)}
        return {STAGES[0]: self._require(STAGES[0]), **manifests}

    def ingest(self) -> Manifest:
        """Check, scale and keep the rows of the input table.

        Raises:
            InputError: if the table or the settings that go with it cannot be used; nothing is published then.
        """
        from ivis_spark.spark.rows import columns as frames
        from ivis_spark.spark.rows import ingest

        table = self._input()
        if table is None:
            return self._checked(self._require("rows"))
        storage.check_writable(self.run_folder.root)
        spec = self._spec("data", source=self._fingerprint(table))

        def build(stage: StageBuild) -> None:
            source = frames.resolve(table, self.config.data)
            stage.info.update(ingest.ingest(source, self.config.data, stage))
            check_fit(stage.info, self.config)

        return self._checked(self._stage("rows", spec, build))

    def neighbours(self) -> Manifest:
        """Find the neighbours of every row; the rows are ingested first if an input is given."""
        rows = self.ingest()
        config = self.config.for_rows(rows.info["rows"]).neighbours
        inputs: dict[str, Any] = {"rows": rows.fingerprint}
        if config.table is not None:
            inputs["table"] = self._fingerprint(self._given_neighbours())

        def build(stage: StageBuild) -> None:
            from ivis_spark.spark.neighbours.by_label import build_label_neighbours
            from ivis_spark.spark.neighbours.from_table import take_neighbours
            from ivis_spark.spark.neighbours.stage import build_neighbours

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
            scaler = storage.read_json(self.run_folder.path("rows", _SCALER), Scaler.from_mapping)
            stage.info.update(build_neighbours(frame, config, random_state=seed, folder=stage.uri, scaler=scaler))

        return self._stage("neighbours", self._spec("neighbours", "random_state", **inputs), build)

    def _given_neighbours(self) -> DataFrame:
        from ivis_spark.spark.rows import columns as frames

        return frames.read_table(self._get_spark(), str(self.config.neighbours.table), DataConfig(format="parquet"))

    def query(self, name: str | None = None) -> Manifest:
        """Find the neighbours, among the rows of the run, of the rows of another table.

        Args:
            name: Folder to publish; by default `queries-<table>`.
        """
        from ivis_spark.spark.rows import columns as frames

        neighbours, rows = self._require("neighbours"), self._require("rows")
        if self.input_uri is None:
            raise InputError("query needs the table with the new rows: --input TABLE")
        table = frames.read_table(self._get_spark(), self.input_uri, self.config.data)
        name = name or f"queries-{_table_name(self.input_uri)}"

        def build(stage: StageBuild) -> None:
            from ivis_spark.spark.neighbours.query import query
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
        negatives = self.config.train.needs_negatives

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
                    negatives=negatives,
                )
            )
            stage.info["dims"] = rows.info["dims"]

        inputs = {"rows": rows.fingerprint, "neighbours": neighbours.fingerprint}
        spec = self._spec("triplets", "random_state", **inputs, negatives=negatives)
        return self._stage("triplets", spec, build)

    def train(self) -> Manifest:
        """Train the network on the blocks: in this process, or on ranks of the Spark cluster.

        A run that was interrupted goes on from its last checkpoint.
        """
        rows, triplets = self._checked(self._require("rows")), self._require("triplets")
        spec = self._spec("train", "random_state", triplets=triplets.fingerprint)
        checkpoints = self.run_folder.path(_CHECKPOINTS, storage.fingerprint(spec))

        def build(stage: StageBuild) -> None:
            from ivis_spark.serving.folder import add_serving_files

            stage.info.update(self._train(self._training_job(rows, triplets, stage.uri, checkpoints)))
            scaler = storage.read_json(self.run_folder.path("rows", _SCALER))
            with storage.local_copy(stage.uri) as folder:
                images = rows.info.get("images")
                add_serving_files(folder, features=rows.info["features"], scaler=scaler, images=images)
                if folder != storage.local_path(stage.uri):
                    storage.put_folder(folder, stage.uri)

        manifest = self._stage("model", spec, build)
        storage.remove_folder(self.run_folder.path(_CHECKPOINTS))
        return manifest

    def _training_job(self, rows: Manifest, triplets: Manifest, model_uri: str, checkpoint_uri: str) -> TrainingJob:
        from ivis_spark.train.job import TrainingJob
        from ivis_spark.train.reading.reader import TripletBlocks

        if self.config.train.needs_negatives and not triplets.info["negatives"]:
            raise ConfigError(
                f"train.distance={self.config.train.distance!r} reads negatives, and the triplets were built for a "
                "loss that reads none: build them for this one, ivis-spark triplets --overwrite --set train.distance="
                f"{self.config.train.distance}"
            )
        names = ("file_blocks", "block_rows", "dims", "draws", "labelled", "negatives")
        blocks = TripletBlocks(
            self.run_folder.path("triplets", "data"),
            **{name: triplets.info[name] for name in names},
            group_blocks=triplets.spec["config"]["triplets"]["group_blocks"],
        )
        return TrainingJob(
            blocks,
            self.config.for_rows(rows.info["rows"]).train,
            label_values=label_values(rows.info),
            random_state=self.config.random_state,
            model_uri=model_uri,
            checkpoint_uri=checkpoint_uri,
            extra={"features": rows.info["features"], "scaling": self.config.data.scaling},
        )

    def _train(self, job: TrainingJob) -> dict[str, Any]:
        from ivis_spark.train.backends.horovod import resolve_backend
        from ivis_spark.train.job import run_job

        if resolve_backend(job.config) == "local":
            job.blocks.check_ranks(1, job.config.batch_size, negatives=job.config.needs_negatives)
            return run_job(job)
        from ivis_spark.spark.training import train_on_ring

        return train_on_ring(self._get_spark(), job)

    def embed(self, name: str | None = None) -> Manifest:
        """Embed the rows of the run, or those of another input table.

        Args:
            name: Folder to publish; by default `embeddings` for the rows of the run, and `embeddings-<table>` for
                another table.
        """
        from ivis_spark.spark.embedding import job as embed_job
        from ivis_spark.spark.embedding import units

        fingerprint, model = self._model()
        other = self._other_table(model)
        if other and self.input_uri:
            name = name or f"embeddings-{_table_name(self.input_uri)}"
        name = name or "embeddings"
        spec = self._embed_spec(fingerprint, other)
        work = self.run_folder.path(".building", f"{name}-{storage.fingerprint(spec)}")

        def build(stage: StageBuild) -> None:
            source = embed_job.input_of_rows(self._table("rows")) if other is None else other[0]
            encoder = model.encoder(scaled=other is None)
            done, info = embed_job.embed_input(self._get_spark(), source, encoder, self.config.embed, work)
            units.move(done, stage.path("data"))
            stage.info.update(info)

        manifest = self._stage(name, spec, build)
        units.remove(work)
        return manifest

    def embed_into(self, uri: str, mode: str) -> dict[str, Any]:
        """Embed the input table, or without one the rows of the run, into a Parquet table of the user's.

        Args:
            uri: The table's folder.
            mode: append, overwrite, or replace (of the partitions that something comes for).

        Returns:
            Facts: rows, invalid rows by kind, and whether this very job was done before and nothing was written.
        """
        from ivis_spark.spark.embedding import job as embed_job
        from ivis_spark.spark.embedding.target import Target

        (fingerprint, model), target = self._model(), Target(uri, mode, self.config.embed.partition_by)
        other = self._other_table(model, always=True)
        source = embed_job.input_of_rows(self._table("rows")) if other is None else other[0]
        encoder = model.encoder(scaled=other is None)
        spec = {**self._embed_spec(fingerprint, other), "mode": mode}
        embed = functools.partial(embed_job.embed_input, self._get_spark(), source, encoder, self.config.embed)
        with RunLock(target.uri, "embed"):
            info, before = target.put(storage.fingerprint(spec), embed)
        log.info("%s: %s", target.uri, "this job was done before, skipped" if before else f"{info['rows']:,} rows")
        return {**info, "done_before": before}

    def evaluate(self) -> Manifest:
        """Measure the embeddings and write the report."""
        needed = {name: self._require(name) for name in ("rows", "neighbours", "model", "embeddings")}
        made = needed["embeddings"].spec["config"]["embed"]
        if made["output_col"] != "embedding" or made["precision"] != "float32":
            raise ConfigError(
                f"the report reads embeddings made with the defaults of embed.output_col and embed.precision, not "
                f"{made['output_col']!r} and {made['precision']}: embed once more with --overwrite"
            )

        wanted = self._wanted_columns(needed["rows"])

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
                    wanted=wanted,
                )
                storage.put_folder(folder, stage.uri)
            stage.info.update(figures)

        prints: dict[str, Any] = {name: manifest.fingerprint for name, manifest in needed.items()}
        if wanted.table is not None:
            prints["table"] = self._fingerprint(wanted.table)
        return self._stage("report", self._spec("evaluate", "random_state", **prints), build)

    def _wanted_columns(self, rows: Manifest) -> Wanted:
        from ivis_spark.report.colouring import find_columns

        data = rows.spec["config"]["data"]
        return find_columns(
            self.config.evaluate.colour_by,
            features=rows.info["features"],
            width=rows.info["dims"],
            scaling=data["scaling"],
            id_col=data["id_col"],
            read_table=self._input,
        )

    def _stage(self, name: str, spec: dict[str, Any], build: Callable[[StageBuild], None]) -> Manifest:
        # Other tables may be embedded side by side; the stages of a run may not be built twice at once.
        lock = "run" if name in STAGES else name
        return self._stages.publish(name, spec, build, lock=lock, map_files=self._map_files)

    def _spec(self, *sections: str, **inputs: Any) -> dict[str, Any]:
        return {"config": {name: self.config.result_settings(name) for name in sections}, "inputs": inputs}

    def _require(self, stage: str) -> Manifest:
        return self._stages.require(stage)

    def _checked(self, rows: Manifest) -> Manifest:
        check_fit(rows.info, self.config)
        return rows

    def _fingerprint(self, table: DataFrame) -> dict[str, Any]:
        from ivis_spark.spark.rows.columns import input_files

        found = storage.source_fingerprint(input_files(table))
        return found if self._source is None else {**found, "plan": table.semanticHash()}

    def _table(self, stage: str) -> DataFrame:
        return self._get_spark().read.parquet(self.run_folder.path(stage, "data"))

    def _input(self) -> DataFrame | None:
        """Return the table to read, if one is given."""
        from ivis_spark.spark.rows import columns as frames

        if self._source is not None or self.input_uri is None:
            return self._source
        return frames.read_table(self._get_spark(), self.input_uri, self.config.data)

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

    def _model(self) -> tuple[str, ModelFolder]:
        """Return the fingerprint of the model and the model itself, its files checked."""
        return self._require("model").fingerprint, read_model(self.run_folder.root)

    def _embed_spec(self, model: str, other: tuple[Input, dict[str, Any]] | None) -> dict[str, Any]:
        """Return what decides how embeddings come out; the sizes of batches and units do not."""
        inputs: dict[str, Any] = {"model": model}
        if other is not None:
            inputs |= {"source": other[1], "features": list(other[0].features)}
        spec = self._spec("embed", **inputs)
        kept = {k: v for k, v in spec["config"]["embed"].items() if k not in ("batch_rows", "unit_bytes")}
        return {**spec, "config": {"embed": kept}}

    def _other_table(self, model: ModelFolder, *, always: bool = False) -> tuple[Input, dict[str, Any]] | None:
        """Return the input table and its fingerprint if it is not the one that the rows of the run came from."""
        from ivis_spark.spark.embedding import job as embed_job

        table = self._input()
        if table is None:
            return None
        source, rows = self._fingerprint(table), self.run_folder.manifest("rows")
        if not always and rows is not None and source == rows.spec["inputs"]["source"]:
            return None
        data, invalid = self.config.data, self.config.embed.invalid
        return embed_job.input_of_table(table, self.input_uri or "", data, model, invalid=invalid), source

    def _map_files(self, function: Callable[[str], Any], uris: list[str]) -> list[Any]:
        """Apply a function to files: here if they are few and small, else in Spark tasks."""
        size = sum(storage.filesystem(uri)[0].size(storage.filesystem(uri)[1]) for uri in uris)
        if size < _DIGEST_ON_EXECUTORS_BYTES:
            return [function(uri) for uri in uris]
        # An index has a small file for each cell, and a task costs more than reading one; large files stand side by
        # side in the list, so each task gets every n-th.
        tasks = min(len(uris), -(-size // _DIGEST_TASK_BYTES))
        dealt = self._get_spark().sparkContext.parallelize([uris[i::tasks] for i in range(tasks)], tasks)
        found = dict(dealt.flatMap(functools.partial(_apply_to_each, function=function)).collect())
        return [found[uri] for uri in uris]


def _apply_to_each(uris: list[str], *, function: Callable[[str], Any]) -> list[tuple[str, Any]]:
    return [(uri, function(uri)) for uri in uris]


def _table_name(uri: str) -> str:
    return posixpath.basename(uri.rstrip("/")).split(".")[0]


def _curves(info: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in info.items() if isinstance(value, list)}
    plain = ("epochs", "training_seconds", "triplets_per_second", "steps_per_epoch", "margin")
    return kept | {name: info[name] for name in plain if info.get(name) is not None}


def _settings(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Return the configuration that each stage was really made with."""
    merged: dict[str, Any] = {}
    for manifest in manifests.values():
        merged.update(manifest.spec["config"])
    return merged


@contextlib.contextmanager
def _scratch_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ivis-spark-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
