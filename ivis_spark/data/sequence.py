"""Triplets of data that fits in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ivis_spark.core.sampling import draw_negatives, draw_positives

# Batches gathered ahead of the training step.
_PREFETCH_BATCHES = 8


def triplet_dataset(
    X: NDArray[np.float32],
    neighbours: NDArray[np.int64],
    *,
    labels: NDArray[Any] | None = None,
    batch_size: int,
    random_state: int,
) -> tuple[tf.data.Dataset, int]:
    """Make an endless dataset of triplet batches.

    In each epoch every row is an anchor once, in a fresh order, with a fresh positive from its neighbours and a fresh
    negative from outside them. The last batch of an epoch may be smaller.

    Runs on: each rank. Memory: a copy of X, and three index arrays of n for each of two epochs.

    Args:
        X: Rows, shape (n, ...).
        neighbours: Row numbers of each row's neighbours, itself excluded, shape (n, k).
        labels: Shape (n,) or (n, c); None leaves them out.
        batch_size: Anchors of a batch.
        random_state: Seed.

    Returns:
        The dataset of `anchor`, `positive`, `negative` and, with labels, `label`; and the batches of an epoch.

    Raises:
        InputError: if a row has no negative, since all others are its neighbours.
    """
    n = len(X)
    with tf.device("CPU"):
        rows = tf.constant(X)
        row_labels = None if labels is None else tf.constant(labels)

    steps = math.ceil(n / batch_size)

    def batches(order: Any, positives: Any, negatives: Any) -> tf.data.Dataset:
        def gather(step: Any) -> dict[str, Any]:
            anchors = order[step * batch_size : (step + 1) * batch_size]
            batch = {
                "anchor": tf.gather(rows, anchors),
                "positive": tf.gather(rows, positives[step * batch_size : (step + 1) * batch_size]),
                "negative": tf.gather(rows, negatives[step * batch_size : (step + 1) * batch_size]),
            }
            if row_labels is not None:
                batch["label"] = tf.gather(row_labels, anchors)
            return batch

        return tf.data.Dataset.range(steps).map(gather)

    def epochs() -> Iterator[tuple[NDArray[np.int64], ...]]:
        rng = np.random.default_rng(random_state)
        while True:
            yield draw_epoch(neighbours, rng=rng)

    indices = tf.TensorSpec((n,), tf.int64)
    dataset = tf.data.Dataset.from_generator(epochs, output_signature=(indices, indices, indices)).prefetch(1)
    return dataset.flat_map(batches).prefetch(_PREFETCH_BATCHES), steps


def draw_epoch(
    neighbours: NDArray[np.int64], *, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Draw the anchors, positives and negatives of an epoch, int64 (n,) each, in random order.

    Raises: InputError: if a row has no negative.
    """
    rows = np.arange(len(neighbours))
    positives = draw_positives(neighbours, draws=1, rng=rng)[:, 0]
    negatives = draw_negatives(rows, neighbours, rows, draws=1, rng=rng)[:, 0]
    order = rng.permutation(len(rows))
    return order, positives[order], negatives[order]
