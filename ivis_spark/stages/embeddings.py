"""The stage `embeddings`: the rows of the run, or of another table, embedded into the run folder or a user's table."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import posixpath
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ivis_spark import storage
from ivis_spark.config import Config
from ivis_spark.core.sizes import BATCH_BYTES, PYTHON_BYTES, SPLIT_BYTES
from ivis_spark.progress import step
from ivis_spark.runtime.lock import RunLock
from ivis_spark.serving.folder import DENSE, HEAD, read_model
from ivis_spark.spark.causes import task_errors
from ivis_spark.spark.hadoop import check_filesystems
from ivis_spark.stages.estimate import Cluster, Estimate
from ivis_spark.stages.input_table import COLUMNS
from ivis_spark.stages.model import encoder_flops
from ivis_spark.stages.outputs import check_places
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild

if TYPE_CHECKING:
    from ivis_spark.serving.folder import ModelFolder
    from ivis_spark.spark.embedding.history import Todo
    from ivis_spark.spark.embedding.job import Input
    from ivis_spark.spark.embedding.units import Unit

log = logging.getLogger(__name__)

# Measured, in seconds of one core: the stage whatever its rows, a row, and a floating-point operation.
_FIXED, _ROW, _OPERATION = 1.1, 2.2e-6, 2e-11
_COPIES = 3  # of a batch, while it is scaled and embedded


def publish(run: Run, name: str | None) -> Manifest:
    """Embed the rows of the run, or those of another input table, into a folder of the run."""
    from ivis_spark.spark.embedding import job as embed_job
    from ivis_spark.spark.embedding import units

    manifest, model = _model(run)
    other = _other_table(run, model)
    name = run.name_of("embed", "embeddings", name or (None if other else "embeddings"), own=other is None)
    spec = _spec(run, manifest.fingerprint, other)
    work = run.folder.work(name, storage.fingerprint(spec))

    def build(stage: StageBuild) -> None:
        source = _input(run, other)
        encoder = model.encoder(scaled=other is None)
        classes = model.classes
        embed = functools.partial(embed_job.embed_input, run.get_spark(), source, encoder, run.config.embed)
        with step("embed", "embeddings: embed and write"):
            done, info = embed(work, classes=classes)
        units.move(done, stage.path("data"))
        stage.info.update(info)

    return run.publish(name, spec, build, after=lambda: storage.remove_folder(work))


def put_into(run: Run, uri: str, mode: str) -> dict[str, Any]:
    """Embed the input table, or without one the rows of the run, into a Parquet table of the user's."""
    from ivis_spark.spark.embedding import job as embed_job
    from ivis_spark.spark.embedding.history import Origin
    from ivis_spark.spark.embedding.target import Target, check_mode

    check_mode(mode, run.config.embed.partition_by)  # before Spark starts
    check_places(run.config, run.folder.root, input_uri=run.input.uri, target=uri)
    manifest, model = _model(run)
    digest = _digest(manifest)
    check_filesystems(run.get_spark(), [uri])
    other = _other_table(run, model, target=uri)
    target = Target(uri, mode, run.config.embed.partition_by)
    source = _input(run, other)
    encoder, classes = model.encoder(scaled=other is None), model.classes
    spec = {**_spec(run, digest, other), "mode": mode}
    inputs = {name: value for name, value in spec["inputs"].items() if name in ("features", "columns")}
    settings = storage.fingerprint({"config": spec["config"], "inputs": inputs})
    source = dataclasses.replace(source, files=[storage.normalise_uri(file) for file in source.files])
    states = _states(run, source, other)

    def embed(work: str, todo: Todo) -> tuple[list[Unit], dict[str, Any]]:
        again = [list(group) for group in todo.again] if source.files else []
        done, info = embed_job.embed_input(
            run.get_spark(), source, encoder, run.config.embed, work, classes=classes, files=todo.new, again=again
        )
        return [unit if unit.input else dataclasses.replace(unit, input=list(states)) for unit in done], info

    def check_columns() -> None:
        target.check_partitions()
        if mode != "overwrite":
            embed_job.check_same_columns(run.get_spark(), target, source, run.config.embed, classes=classes)

    check_columns()  # before the lock puts a file there, and within it, as another job may put a table there
    with task_errors(f"--target {uri}"), RunLock(target.lock_folder, "embed", option="--target", place=uri) as lock:
        check_columns()
        origin = Origin(digest, states, settings, run.folder.root, manifest.created)
        info, before = target.put(storage.fingerprint(spec), embed, origin, check=lock.check)
    what = "nothing new, all rows of the input are there already" if before else f"{info['rows']:,} rows"
    log.info("%s: %s", target.uri, what)
    return {**info, "done_before": before}


def _states(run: Run, source: Input, other: tuple[Input, dict[str, Any]] | None) -> dict[str, str]:
    """Return the state of each file of the input, or of the whole if that is not read file by file."""
    identity = {} if other is None else other[1]
    if not source.files:
        digest = storage.fingerprint(identity)
        return {identity.get("uri") or digest: digest}
    version = run.config.data.version if identity else None
    described = storage.describe_files(source.files)
    return {name: f"{size} {changed}" if version is None else version for name, size, changed in described}


def _input(run: Run, other: tuple[Input, dict[str, Any]] | None) -> Input:
    from ivis_spark.spark.embedding import job as embed_job

    if other is not None:
        return other[0]
    rows = run.require("rows")
    return embed_job.input_of_rows(run.table(rows), rows.info)


def _model(run: Run) -> tuple[Manifest, ModelFolder]:
    """Return the manifest of the model and the model itself, its files checked."""
    manifest = run.require("model")
    return manifest, read_model(run.folder.root, manifest)


def _digest(manifest: Manifest) -> str:
    """Return a digest of the weights of the model: another training has another, also with the same settings."""
    files = {posixpath.basename(record["path"]): record["sha256"] for record in manifest.files}
    arrays = {name: digest for name, digest in files.items() if name in (DENSE, HEAD)}
    return storage.fingerprint(arrays if DENSE in arrays else files)  # those of Keras hold the time, too


def _spec(run: Run, model: str, other: tuple[Input, dict[str, Any]] | None) -> dict[str, Any]:
    """Return what decides how embeddings come out; the sizes of batches and units do not."""
    inputs: dict[str, Any] = {"model": model}
    if other is not None:
        inputs |= {"source": other[1], "features": list(other[0].features), "columns": list(other[0].columns)}
    spec = run.spec("embed", **inputs)
    kept = {k: v for k, v in spec["config"]["embed"].items() if k not in ("batch_rows", "unit_bytes")}
    return {**spec, "config": {"embed": kept}}


def _other_table(run: Run, model: ModelFolder, *, target: str | None = None) -> tuple[Input, dict[str, Any]] | None:
    """Return the input table and its fingerprint; None if there is none, or it goes into the run and was its input."""
    from ivis_spark.spark.embedding import job as embed_job

    table = run.input.read()
    if table is None:
        return None
    source, rows = run.source(table, *([target] if target else [])), run.folder.manifest("rows")
    if target is None and rows is not None and source == rows.spec["inputs"]["source"]:
        settings, own = run.config.to_mapping()["data"], rows.spec["config"]["data"]
        if all(settings[name] in (None, [], own.get(name)) for name in COLUMNS):
            return None
    uri = run.input.uri or "" if run.input.frame is None else ""
    return embed_job.input_of_table(table, uri, run.config.data, model), source


def estimate(rows: float, dims: int, config: Config, cluster: Cluster, seen: Mapping[str, Any]) -> Estimate:
    """Return what embedding the rows of the run needs, see `stages.estimate`."""
    vector, width = 4.0 * dims, 4 * config.train.embedding_dims
    tasks = max(cluster.slots, math.ceil(rows * vector / SPLIT_BYTES))
    return Estimate(
        stage="embeddings",
        tasks=tasks,
        slots=min(cluster.slots, tasks),
        fixed_seconds=_FIXED,
        core_seconds=rows * (_ROW + _OPERATION * encoder_flops(dims, config)),
        shuffle_bytes=0.0,
        storage_bytes=rows * (width + 8),
        task_bytes=PYTHON_BYTES + _COPIES * min(config.embed.batch_rows * (vector + width), BATCH_BYTES),
        driver_bytes=0.0,
        formula="stores N (4 e + 8) B; seconds N (a + b flops); no shuffle",
        remedy="lower embed.batch_rows",
    )
