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
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ivis_spark import storage
from ivis_spark.config import Config
from ivis_spark.core.dense import DenseNetwork
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.runtime.stages import StageRunner
from ivis_spark.storage import Manifest, StageBuild

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ivis_spark.spark.frames import Source

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
_DENSE, _SCALER = "dense.npz", "scaler.json"
_DIGEST_ON_EXECUTORS_BYTES = 1 << 30


class Pipeline:
    """The stages of one run folder. Runs on: driver.

    Args:
        output: URI of the run folder.
        config: All settings.
        get_spark: Returns the session; called when a stage needs Spark, so that training alone starts no JVM.
        input_uri: The table; only ingesting it (and embedding another one) needs it.
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
        overwrite: bool = False,
        experiment: str | None = None,
    ) -> None:
        self._stages = StageRunner(output, COMMANDS, overwrite=overwrite, experiment=experiment)
        self.run_folder = self._stages.folder
        self.config = config
        self.input_uri = input_uri
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
        rows = self.ingest()

        def build(stage: StageBuild) -> None:
            from ivis_spark.spark.neighbours import build_neighbours

            frame = self._table("rows").select("id", "features")
            stage.info.update(
                build_neighbours(frame, self.config.neighbours, random_state=self.config.random_state, folder=stage.uri)
            )

        return self._stage("neighbours", self._spec("neighbours", "random_state", rows=rows.fingerprint), build)

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
        """Train the network on the blocks, in this process."""
        rows, triplets = self._checked(self._require("rows")), self._require("triplets")

        def build(stage: StageBuild) -> None:
            from ivis_spark.data.reader import TripletBlocks
            from ivis_spark.train.job import train_on_blocks

            info = triplets.info
            names = ("file_blocks", "block_rows", "dims", "draws", "labelled")
            blocks = TripletBlocks(self.run_folder.path("triplets", "data"), **{name: info[name] for name in names})
            with _scratch_folder() as folder:
                stage.info.update(
                    train_on_blocks(
                        blocks,
                        self.config.train,
                        label_values=None if rows.info["labels"] is None else np.asarray(_label_values(rows.info)),
                        random_state=self.config.random_state,
                        folder=folder,
                        extra={"features": rows.info["features"], "scaling": self.config.data.scaling},
                    )
                )
                _add_serving_files(folder)
                storage.put_folder(folder, stage.uri)
            storage.write_json(stage.path(_SCALER), storage.read_json(self.run_folder.path("rows", _SCALER)))

        return self._stage("model", self._spec("train", "random_state", triplets=triplets.fingerprint), build)

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
                name = name or f"embeddings-{posixpath.basename(self.input_uri.rstrip('/')).split('.')[0]}"
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
        # Other tables may be embedded side by side; the stages of a run may not be built twice at once.
        lock = "run" if name in STAGES else name
        return self._stages.publish(name, spec, build, lock=lock, map_files=self._map_files)

    def _spec(self, *sections: str, **inputs: Any) -> dict[str, Any]:
        settings = self.config.to_mapping()
        return {"config": {name: settings[name] for name in sections}, "inputs": inputs}

    def _require(self, stage: str) -> Manifest:
        return self._stages.require(stage)

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

    def _other_rows(self, table: DataFrame, rows: Manifest) -> DataFrame:
        """Return another table's rows with the columns that the run's input had, ids derived if it had none."""
        from ivis_spark.spark import frames, ingest

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
        source: Source = frames.resolve(table, given)
        if source.width != rows.info["dims"]:
            raise InputError(
                f"the table has {source.width} features in {source.features_text}; the model was trained on "
                f"{rows.info['dims']}"
            )
        return source.frame if source.id_col else ingest.with_derived_ids(ingest.packed(source, given))

    def _write_embeddings(self, stage: StageBuild, frame: DataFrame, encoder: Any) -> None:
        from ivis_spark.spark.embed import embed_frame
        from ivis_spark.spark.session import describe_job, task_errors

        spark = self._get_spark()
        describe_job(spark, "embed")
        setting = "spark.sql.execution.arrow.maxRecordsPerBatch"
        before = spark.conf.get(setting)
        spark.conf.set(setting, str(self.config.embed.batch_rows))
        try:
            with task_errors():
                embedded = embed_frame(frame, encoder, invalid=self.config.data.invalid)
                embedded.write.mode("overwrite").parquet(stage.path("data"))
        finally:
            spark.conf.set(setting, str(before))
        stage.info["rows"] = spark.read.parquet(stage.path("data")).count()
        stage.info["embedding_dims"] = encoder.network.n_outputs

    def _map_files(self, function: Callable[[str], Any], uris: list[str]) -> list[Any]:
        """Apply a function to files: here if they are few and small, else in Spark tasks."""
        sizes = (storage.filesystem(uri)[0].size(storage.filesystem(uri)[1]) for uri in uris)
        if sum(sizes) < _DIGEST_ON_EXECUTORS_BYTES:
            return [function(uri) for uri in uris]
        context = self._get_spark().sparkContext
        return list(context.parallelize(uris, len(uris)).map(function).collect())


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


def _label_values(info: dict[str, Any]) -> list[float] | None:
    """Return the distinct labels; for labels too many to list (regression) any will do, since none is a class."""
    labels = info["labels"]
    if labels is None:
        return None
    return [0.0, 1.0] if labels["values"] is None else list(labels["values"])


def _add_serving_files(folder: str) -> None:
    """Save the encoder once more as plain arrays, which executors run without TensorFlow."""
    from ivis_spark.nn.networks import dense_network
    from ivis_spark.nn.persistence import load_model

    network = dense_network(load_model(folder).encoder)
    if network is None:
        raise ArtifactError("the encoder has layers that cannot run outside TensorFlow")
    with open(os.path.join(folder, _DENSE), "wb") as file:
        file.write(network.to_bytes())


@contextlib.contextmanager
def _scratch_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ivis-spark-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
