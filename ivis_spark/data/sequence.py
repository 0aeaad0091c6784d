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
        The dataset of `stacked` (anchors, then positives, then negatives; (3b, ...)) and, with labels, `label` (b,) or
        (b, c); and the batches of an epoch.

    Raises:
        InputError: if a row has no negative, since all others are its neighbours.
    """
    n = len(X)
    with tf.device("CPU"):
        rows = tf.constant(X)
        row_labels = None if labels is None else tf.constant(labels)

    steps = math.ceil(n / batch_size)

    def batches(epoch: Any) -> tf.data.Dataset:
        def gather(step: Any) -> dict[str, Any]:
            triplets = epoch[:, step * batch_size : (step + 1) * batch_size]
            batch = {"stacked": tf.gather(rows, tf.reshape(triplets, [-1]))}
            if row_labels is not None:
                batch["label"] = tf.gather(row_labels, triplets[0])
            return batch

        return tf.data.Dataset.range(steps).map(gather)

    def epochs() -> Iterator[NDArray[np.int64]]:
        rng = np.random.default_rng(random_state)
        while True:
            yield draw_epoch(neighbours, rng=rng)

    indices = tf.TensorSpec((3, n), tf.int64)
    dataset = tf.data.Dataset.from_generator(epochs, output_signature=indices).prefetch(1)
    dataset = dataset.flat_map(batches).prefetch(_PREFETCH_BATCHES)
    return dataset.with_options(_one_thread()), steps


def _one_thread() -> tf.data.Options:
    """Return options that gather on a thread of its own, so that the training step keeps the others."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    return options


def draw_epoch(neighbours: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the anchors, positives and negatives of an epoch, int64 (3, n), in random order.

    Raises: InputError: if a row has no negative.
    """
    rows = np.arange(len(neighbours))
    positives = draw_positives(neighbours, draws=1, rng=rng)[:, 0]
    negatives = draw_negatives(rows, neighbours, rows, draws=1, rng=rng)[:, 0]
    order = rng.permutation(len(rows))
    return np.stack([order, positives[order], negatives[order]])
