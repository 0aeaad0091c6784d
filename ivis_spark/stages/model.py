"""The stage `model`: the network, trained on the blocks in this process or on ranks of the Spark cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ivis_spark import storage
from ivis_spark.config import NETWORK_UNITS, Config
from ivis_spark.config.training import multiplications
from ivis_spark.core.sizes import TENSORFLOW_BYTES
from ivis_spark.errors import ConfigError
from ivis_spark.progress import step
from ivis_spark.runtime.fitness import class_values, label_values
from ivis_spark.stages import rows as rows_stage
from ivis_spark.stages.estimate import Cluster, Estimate
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild
from ivis_spark.train.dataset.batches import batches_ahead, rows_bytes

if TYPE_CHECKING:
    from ivis_spark.train.job import TrainingJob

_CHECKPOINTS = ".checkpoints"
# Measured, in seconds of one core: starting TensorFlow, an anchor of an epoch, and a floating-point operation.
_FIXED, _ANCHOR, _OPERATION = 4.5, 2.8e-6, 5e-12
_EPOCHS = 30  # until the loss stops falling, assumed where no schedule says how many
_GROUPS = 8  # copies of a row group's rows, between its file and its batches: those read, joined and handed over


def publish(run: Run) -> Manifest:
    """Train the network. A run that was interrupted resumes from its last checkpoint."""
    rows, triplets = rows_stage.checked(run), run.require("triplets")
    spec = run.spec("train", "random_state", triplets=triplets.fingerprint)
    checkpoints = run.folder.path(_CHECKPOINTS, storage.fingerprint(spec))

    def build(stage: StageBuild) -> None:
        from ivis_spark.serving.folder import add_serving_files

        stage.info |= {"anchors": _anchors(triplets), "preset": run.config.preset}
        with step("start", "model: start TensorFlow"):
            job = _job(run, rows, triplets, stage.uri, checkpoints)
        with step("train", "model: train"):
            stage.info.update(_train(run, job))
        if run.config.train.supervision_metric is not None:
            stage.info["held_out_labels"] = triplets.info.get("held_out_labels", 0.0)
        scaler = run.scaler(rows)
        with step("save", "model: save"), storage.local_copy(stage.uri) as folder:
            read = {name: rows.info.get(name) for name in ("images", "indices_col")}
            values = class_values(rows.info, run.config.train.supervision_metric)
            classes = None if values is None else {"values": values, "type": rows.info["labels"]["type"]}
            add_serving_files(folder, features=rows.info["features"], scaler=scaler, classes=classes, **read)
            if folder != storage.local_path(stage.uri):
                storage.put_folder(folder, stage.uri)

    return run.publish("model", spec, build, after=lambda: storage.remove_folder(run.folder.path(_CHECKPOINTS)))


def _job(run: Run, rows: Manifest, triplets: Manifest, model_uri: str, checkpoint_uri: str) -> TrainingJob:
    from ivis_spark.train.dataset.blocks import TripletBlocks
    from ivis_spark.train.job import TrainingJob

    if run.config.train.needs_negatives and not triplets.info["negatives"]:
        raise ConfigError(
            f"train.distance={run.config.train.distance!r} uses negatives, but the triplets were built for a loss "
            f"without negatives: rebuild them, ivis-spark triplets --overwrite --set train.distance="
            f"{run.config.train.distance}"
        )
    names = ("file_blocks", "block_rows", "dims", "draws", "labelled", "negatives")
    blocks = TripletBlocks(
        run.folder.uri(triplets, "data"),
        **{name: triplets.info[name] for name in names},
        group_blocks=triplets.spec["config"]["triplets"]["group_blocks"],
    )
    return TrainingJob(
        blocks,
        run.config.for_rows(rows.info["rows"], anchors=_anchors(triplets)).train,
        label_values=label_values(rows.info, run.config.train.supervision_metric),
        random_state=run.config.random_state,
        model_uri=model_uri,
        checkpoint_uri=checkpoint_uri,
        extra={"features": rows.info["features"], "scaling": run.config.data.scaling},
    )


def _anchors(triplets: Manifest) -> int:
    return int(triplets.info.get("anchors", triplets.info["rows"]))  # once all rows were


def _train(run: Run, job: TrainingJob) -> dict[str, Any]:
    from ivis_spark.train.backends import resolve_backend
    from ivis_spark.train.job import run_job

    if not resolve_backend(job.config).distributed:
        job.blocks.check_ranks(1, job.config.batch_size, negatives=job.config.needs_negatives)
        return run_job(job)
    from ivis_spark.spark.training import train_on_ring

    return train_on_ring(run.get_spark(), job)


def estimate(rows: float, dims: int, config: Config, cluster: Cluster, seen: Mapping[str, Any]) -> Estimate:
    """Return what training needs, see `stages.estimate`."""
    settings, ranks = config.train, config.train.num_ranks
    anchors = config.triplets.anchors_of(int(rows)) or rows
    passes = min(
        settings.epochs, seen.get("epochs") or (_EPOCHS if settings.schedule == "constant" else settings.epochs)
    )
    flops = encoder_flops(dims, config)
    parameters = 2 * flops  # bytes: two operations for each of four
    group = rows_bytes(dims, config.triplets.group_blocks * config.triplets.block_rows)
    size = max(1, settings.batch_size // ranks)
    ready = batches_ahead(dims, size) * rows_bytes(dims, size)
    advice = []
    if ranks > cluster.slots:
        advice.append(
            f"train.num_ranks={ranks} but the cluster has {cluster.slots} cores: training will not start. Lower "
            f"train.num_ranks or add executors"
        )
    if not NETWORK_UNITS.get(settings.model):
        advice.append(f"train.model={settings.model!r} is unknown here and estimated as szubert")
    return Estimate(
        stage="model",
        tasks=ranks,
        slots=min(cluster.slots, ranks),
        fixed_seconds=_FIXED,
        core_seconds=passes * anchors * (_ANCHOR + _OPERATION * 6 * flops),
        shuffle_bytes=0.0,
        storage_bytes=3 * parameters,
        task_bytes=TENSORFLOW_BYTES + _GROUPS * group + ready + 6 * parameters,
        driver_bytes=0.0,
        formula=f"{passes} epochs of A = {anchors:,.0f} anchors, R = {ranks} ranks; seconds epochs A (a + b 6 flops) "
        "/ R: two rows, forward and backward",
        remedy="lower triplets.block_rows or triplets.group_blocks",
        slots_of_executor=1,
        advice=advice,
    )


def encoder_flops(dims: int, config: Config) -> float:
    """Return the floating-point operations of one row's way through the encoder."""
    units = NETWORK_UNITS.get(config.train.model) or NETWORK_UNITS["szubert"]
    return 2.0 * multiplications(dims, units, config.train.embedding_dims)
