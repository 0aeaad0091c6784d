"""What a training process does from blocks to a saved model, wherever it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ivis_spark import storage
from ivis_spark.config import NETWORK_UNITS, TrainConfig, section_from_mapping
from ivis_spark.config.training import multiplications
from ivis_spark.core.threads import is_own_process
from ivis_spark.errors import raised_remotely
from ivis_spark.nn.callbacks import FitProgress
from ivis_spark.nn.losses import triplet_loss
from ivis_spark.nn.model import TripletModel, variables_of
from ivis_spark.nn.networks import build_encoder
from ivis_spark.nn.optimizer import make_optimizer
from ivis_spark.nn.persistence import save_model
from ivis_spark.nn.supervision import build_head, count_outputs
from ivis_spark.train.backends import Backend
from ivis_spark.train.callbacks import make_callbacks
from ivis_spark.train.checkpoints import Checkpoints
from ivis_spark.train.dataset.block_dataset import block_dataset
from ivis_spark.train.dataset.blocks import Position, TripletBlocks
from ivis_spark.train.loop import History, TrainingState, fit

log = logging.getLogger(__name__)

_SMALL_STEP = 64 << 20  # multiplications of a step's forward pass, of two rows per pair


@dataclass(frozen=True)
class TrainingJob:
    """All that a rank needs to know, as values that JSON can hold.

    Attributes:
        blocks: Where the triplets are.
        config: Network and training.
        label_values: The distinct labels; looked at when `config.supervision_metric` is set.
        random_state: Seeds weights, dropout and the order of the data.
        model_uri: Folder to save the model into, by rank 0.
        checkpoint_uri: Folder of the checkpoints.
        extra: Facts kept in the model's own description.
    """

    blocks: TripletBlocks
    config: TrainConfig
    label_values: list[float] | None
    random_state: int
    model_uri: str
    checkpoint_uri: str
    extra: dict[str, Any] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return nested plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> TrainingJob:
        """Make a job of what `to_mapping` returned, perhaps by way of JSON."""
        values = dict(mapping)
        values["blocks"] = TripletBlocks(**values["blocks"])
        values["config"] = section_from_mapping(TrainConfig, values["config"])
        return cls(**values)


def run_job(job: TrainingJob, backend: Backend | None = None) -> dict[str, Any]:
    """Train an encoder on the blocks of a `triplets` stage, from the last checkpoint if there is one, and save it.

    Runs on: each rank. Memory: the network and a few row groups.

    Args:
        job: What to train on and how.
        backend: The ranks that train together; None is one process.

    Returns:
        Facts for the manifest: loss of each epoch and its parts, epochs, steps, seconds, triplets a second, ranks, and
        for a plain margin loss the loss of a collapsed embedding (`margin`).

    Raises:
        InputError: if the labels do not fit the supervision.
        ConfigError: if a callback cannot be made.
        ArtifactError: if the blocks are not what the manifest says.
        TrainingError: if the loss is not finite.
    """
    backend = backend or Backend()
    started = time.monotonic()
    limit_threads(job)
    model = _build_model(job, backend)
    with tempfile.TemporaryDirectory(prefix="ivis-spark-") as scratch:
        logs = os.path.join(scratch, "logs")
        history, first, seconds = _train(job, backend, model, logs)
        if backend.rank == 0:
            _save(job, model, scratch)
            storage.put_folder(scratch, job.model_uri)
        backend.leave()
    return _facts(job, backend, history, first, seconds) | {"job_seconds": round(time.monotonic() - started, 3)}


def limit_threads(job: TrainingJob) -> None:
    """Compute the operations of small steps in one thread each, if this process is ours and TensorFlow not in use yet.

    Cutting the products of a small step into parts for several threads costs more than it saves: szubert on 50 columns
    takes 1.7 ms of CPU per step of 512 pairs in one thread and 2.4 in two, which are no sooner done.
    """
    units = NETWORK_UNITS.get(job.config.model)
    if not units or not is_own_process() or "TF_NUM_INTRAOP_THREADS" in os.environ:
        return
    if 2 * job.config.batch_size * multiplications(job.blocks.dims, units, job.config.embedding_dims) <= _SMALL_STEP:
        with contextlib.suppress(RuntimeError):  # TensorFlow keeps the threads that it began with
            tf.config.threading.set_intra_op_parallelism_threads(1)


def _build_model(job: TrainingJob, backend: Backend) -> TripletModel:
    config, head = job.config, None
    metric = config.supervision_metric
    encoder = build_encoder(
        config.model,
        (job.blocks.dims,),
        config.embedding_dims,
        seed=job.random_state,
        dropout=config.dropout,
        precision=config.compute_precision,
    )
    if metric is not None:
        outputs = count_outputs(metric, np.asarray(job.label_values or []))
        head = build_head(metric, outputs, config.embedding_dims, seed=job.random_state)
    model = TripletModel(
        encoder,
        triplet_loss(config.distance, config.margin, config.temperature, config.clip, config.shared_negatives),
        head=head,
        supervision_metric=metric,
        supervision_weight=config.supervision_weight,
        global_weight=config.global_weight,
        gather_negatives=config.gather_negatives,
        optimizer=make_optimizer(config, encoder),
        reducer=backend,
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _train(job: TrainingJob, backend: Backend, model: TripletModel, logs: str) -> tuple[History, TrainingState, float]:
    """Train and return the figures of all epochs, where this process began, and its seconds."""
    config = job.config
    steps = job.blocks.steps_per_epoch(config.batch_size)
    checkpoints = Checkpoints(job.checkpoint_uri, config, steps_per_epoch=steps, logs=logs)
    state = _synchronise(backend, model, checkpoints)
    _describe(job, backend, state, steps)
    dataset = block_dataset(
        job.blocks,
        batch_size=config.batch_size,
        random_state=job.random_state,
        labels=config.supervision_metric is not None,
        negatives=model.count_negatives(config.negatives),
        position=Position(backend.rank, backend.n_ranks, state.epoch, state.step),
        reader=config.reader,
    )

    def save(state: TrainingState) -> None:
        if backend.rank == 0 and checkpoints.save_if_due(model, state):
            log.debug("checkpoint after epoch %d, step %d", state.epoch, state.step)

    first, started = dataclasses.replace(state), time.monotonic()
    with _reading_errors():
        history = fit(
            model,
            dataset,
            steps_per_epoch=steps,
            config=config,
            callbacks=_callbacks(job, backend, steps, logs),
            state=state,
            on_progress=save,
        )
    return history, first, time.monotonic() - started


@contextlib.contextmanager
def _reading_errors() -> Iterator[None]:
    """Raise what the reader raised on purpose, instead of TensorFlow's account of it.

    Raises:
        IvisError: of the reader's class, with its message.
    """
    try:
        yield
    except tf.errors.OpError as err:
        ours = raised_remotely(str(err))
        if ours is None:
            raise
        raise ours from err


def _synchronise(backend: Backend, model: TripletModel, checkpoints: Checkpoints) -> TrainingState:
    """Give every rank the values and the place of rank 0: those of the last checkpoint, or fresh ones."""
    checkpoint = checkpoints.restore(model) if backend.rank == 0 else None
    position = backend.broadcast_object(None if checkpoint is None else dataclasses.asdict(checkpoint))
    variables = list(variables_of(model).values())
    backend.broadcast_variables(variables)
    for variable in variables:
        if str(variable.dtype) == "uint32":  # states of dropout: each rank drops other units
            variable.assign(np.asarray(variable) + np.array([backend.rank, 0], np.uint32))
    return TrainingState() if position is None else TrainingState(**position)


def _callbacks(job: TrainingJob, backend: Backend, steps: int, logs: str) -> list[keras.callbacks.Callback]:
    """Return the callbacks of this rank: the user's own run on rank 0 alone, unless they are for every rank."""
    callbacks = make_callbacks(job.config.rank_callbacks, logs)
    if backend.rank == 0:
        callbacks += make_callbacks(job.config.callbacks, logs)
        callbacks.append(FitProgress(steps * job.config.batch_size))
    return callbacks


def _describe(job: TrainingJob, backend: Backend, state: TrainingState, steps: int) -> None:
    config, blocks = job.config, job.blocks
    if backend.rank:
        return
    log.info(
        "%s, %d -> %d, %s loss: %d triplets per epoch in %d steps of %d (%d are left out of each epoch), %d rank(s)",
        config.model,
        blocks.dims,
        config.embedding_dims,
        config.distance,
        blocks.rows,
        steps,
        config.batch_size,
        max(0, blocks.rows - steps * config.batch_size),
        backend.n_ranks,
    )
    if state.epoch or state.step:
        log.info("resuming from the checkpoint after epoch %d, step %d", state.epoch, state.step)


def _save(job: TrainingJob, model: TripletModel, folder: str) -> None:
    """Save the encoder and head."""
    save_model(folder, model.encoder, head=model.head, extra=job.extra)


def _is_hinge(config: TrainConfig) -> bool:
    """Tell whether the loss is that of the margin alone."""
    others = config.supervision_metric or config.global_weight or not config.needs_negatives
    return not others and "ratio" not in config.distance


def _facts(
    job: TrainingJob, backend: Backend, history: History, first: TrainingState, seconds: float
) -> dict[str, Any]:
    """Describe the training; the rate is that of this process's own epochs."""
    config, blocks = job.config, job.blocks
    epochs, steps = len(history["loss"]), blocks.steps_per_epoch(config.batch_size)
    done = (epochs - first.epoch) * steps - first.step
    return {
        **history,
        "epochs": epochs,
        "steps_per_epoch": steps,
        "ranks": backend.n_ranks,
        "training_seconds": round(seconds, 3),
        "triplets_per_second": round(done * min(config.batch_size, blocks.rows) / seconds, 1),
        "margin": config.margin if _is_hinge(config) else None,
    }
