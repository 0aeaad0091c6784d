"""What a training process does from blocks to a saved model, wherever it runs."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.config import TrainConfig
from ivis_spark.data.reader import TripletBlocks, block_dataset
from ivis_spark.nn.callbacks import ProgressLogger
from ivis_spark.nn.losses import triplet_loss
from ivis_spark.nn.model import TripletModel
from ivis_spark.nn.networks import build_encoder
from ivis_spark.nn.persistence import save_model
from ivis_spark.nn.supervision import build_head, count_outputs
from ivis_spark.train.backend import make_reduce_fn
from ivis_spark.train.loop import fit

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_MESSAGES = 2.0


def train_on_blocks(
    blocks: TripletBlocks,
    config: TrainConfig,
    *,
    label_values: NDArray[Any] | None,
    random_state: int,
    folder: str,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Train an encoder on the blocks of a `triplets` stage and save it.

    Runs on: each rank. Memory: the network and a few row groups.

    Args:
        blocks: Where the triplets are.
        config: Network and training.
        label_values: The distinct labels, shape (c,); looked at when `config.supervision_metric` is set.
        random_state: Seeds weights, dropout and the order of the data.
        folder: Local folder to save the model into.
        extra: Facts kept in the model's own description, JSON-able.

    Returns:
        Facts for the manifest: loss of each epoch and its parts, epochs, steps, seconds, triplets a second, and for a
        plain margin loss the loss of a collapsed embedding (`margin`).

    Raises:
        InputError: if the labels do not fit the supervision.
        TrainingError: if the loss is not finite.
    """
    supervised = config.supervision_metric is not None
    encoder = build_encoder(config.model, (blocks.dims,), config.embedding_dims, seed=random_state)
    head = None
    if supervised:
        outputs = count_outputs(
            config.supervision_metric or "", np.asarray([] if label_values is None else label_values)
        )
        head = build_head(config.supervision_metric or "", outputs, config.embedding_dims, seed=random_state)
    model = TripletModel(
        encoder,
        triplet_loss(config.distance, config.margin),
        head=head,
        supervision_metric=config.supervision_metric,
        supervision_weight=config.supervision_weight,
        learning_rate=config.learning_rate,
        reduce_gradients=make_reduce_fn(),
    )
    steps = blocks.steps_per_epoch(config.batch_size)
    dataset = block_dataset(blocks, batch_size=config.batch_size, random_state=random_state, labels=supervised)
    log.info(
        "%s, %d -> %d, %s loss: %d triplets an epoch in %d steps of %d",
        config.model,
        blocks.dims,
        config.embedding_dims,
        config.distance,
        blocks.rows,
        steps,
        config.batch_size,
    )
    started = time.monotonic()
    callbacks = [ProgressLogger(steps * config.batch_size, min_interval_s=_SECONDS_BETWEEN_MESSAGES)]
    history = fit(model, dataset, steps_per_epoch=steps, config=config, callbacks=callbacks)
    seconds = time.monotonic() - started
    save_model(folder, encoder, head=head, extra=extra)
    epochs = len(history["loss"])
    return {
        **history,
        "epochs": epochs,
        "steps_per_epoch": steps,
        "training_seconds": round(seconds, 3),
        "triplets_per_second": round(epochs * steps * min(config.batch_size, blocks.rows) / seconds, 1),
        "margin": None if supervised or "ratio" in config.distance else config.margin,
    }
