"""Triplets of rows by number: all at once in memory, or a batch at a time from anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ivis_spark.core.sampling import avoid_anchors, draw_from_lists, draw_negatives, draw_positives
from ivis_spark.data.arrays import Floats, Ints
from ivis_spark.data.rows import Rows, take
from ivis_spark.errors import InputError

# Batches gathered ahead of the training step.
_PREFETCH_BATCHES = 8

Seed = int | Sequence[int]


def triplet_dataset(
    X: Rows,
    neighbours: Sequence[Any] | Ints,
    *,
    labels: NDArray[Any] | None = None,
    batch_size: int,
    random_state: Seed,
    shuffle: bool | str = True,
    negatives: bool = True,
) -> tuple[tf.data.Dataset, int]:
    """Make an endless dataset of triplet batches.

    In each epoch every row is an anchor once, with a fresh positive from its neighbours and a fresh negative from
    outside them. The last batch of an epoch may be smaller.

    Runs on: each rank. Memory: with X and neighbours in memory a copy of X, and three index arrays of n for each of two
    epochs; else a few batches, and the numbers of the rows.

    Args:
        X: Rows, shape (n, ...).
        neighbours: Row numbers of each row's neighbours: an array of shape (n, k), or a list for each row.
        labels: Shape (n,) or (n, c); None leaves them out.
        batch_size: Anchors of a batch.
        random_state: Seed.
        shuffle: True draws a fresh order of all rows in each epoch; "batch" a fresh order of batches of adjacent rows,
            which files read faster; False keeps the order of X.
        negatives: Whether the loss reads negatives.

    Returns:
        The dataset of `stacked` (anchors, then positives, then negatives if they are read; (3b, ...)) and, with
        labels, `label` (b,) or (b, c); and the batches of an epoch.

    Raises:
        InputError: if a row has no negative, since all others are its neighbours.
    """
    steps = math.ceil(len(X) / batch_size)
    if isinstance(X, np.ndarray) and isinstance(neighbours, np.ndarray) and shuffle is True:
        dataset = _gather_epochs(X, neighbours, labels, batch_size, random_state, negatives)
    else:
        dataset = _read_batches(X, neighbours, labels, batch_size, random_state, shuffle, negatives)
    return dataset.with_options(_one_thread()), steps


class TripletReader:
    """Draws and reads the triplets of some anchors.

    Args:
        X: Rows, shape (n, ...).
        neighbours: Row numbers of each row's neighbours; `get_batch(numbers)` is used where there is one, and
            `draw(anchors, rng)` where neighbours are too many to be listed.

    Raises:
        InputError: if there is not one list of neighbours a row.
    """

    def __init__(self, X: Rows, neighbours: Sequence[Any] | Ints) -> None:
        if len(neighbours) != len(X):
            raise InputError(
                f"neighbour_matrix has {len(neighbours)} rows and X has {len(X)}: give one list of neighbours a row"
            )
        self._X = X
        self._neighbours = neighbours
        self._candidates = np.arange(len(X))

    def draw(self, anchors: Ints, rng: np.random.Generator) -> Ints:
        """Return anchors, positives and negatives, int64 (3, b), see `core.sampling.draw_from_lists`."""
        if hasattr(self._neighbours, "draw"):
            drawn: Ints = self._neighbours.draw(anchors, rng)
            return drawn
        return draw_from_lists(anchors, self._lists(anchors), self._candidates, rng=rng)

    def read(self, triplets: Ints) -> Floats:
        """Return the rows of triplets or pairs, int64 (3, b) -> float32 (3b, ...): anchors, positives, negatives."""
        return take(self._X, triplets.reshape(-1))

    def _lists(self, anchors: Ints) -> Sequence[Any]:
        if hasattr(self._neighbours, "get_batch"):
            lists: Sequence[Any] = self._neighbours.get_batch(anchors)
        else:
            lists = [self._neighbours[row] for row in anchors.tolist()]
        with_distances = getattr(self._neighbours, "include_distances", False)
        return [numbers for numbers, _ in lists] if with_distances else lists


def batches_of(n: int, batch_size: int, shuffle: bool | str, rng: np.random.Generator) -> Iterator[Ints]:
    """Yield the anchors of each batch of an epoch, see `triplet_dataset`."""
    order = rng.permutation(n) if shuffle is True else np.arange(n)
    starts = np.arange(0, n, batch_size)
    for start in rng.permutation(starts) if shuffle == "batch" else starts:
        yield order[start : start + batch_size]


def draw_epoch(neighbours: Ints, *, rng: np.random.Generator, negatives: bool = True) -> Ints:
    """Draw the anchors, positives and negatives of an epoch, int64 (3, n), in random order; of pairs, (2, n).

    Raises: InputError: if a row has no negative.
    """
    rows = np.arange(len(neighbours))
    positives = avoid_anchors(draw_positives(neighbours, draws=1, rng=rng)[:, 0], rows, neighbours, rng=rng)
    drawn = [rows, positives]
    if negatives:
        drawn.append(draw_negatives(rows, neighbours, rows, draws=1, rng=rng)[:, 0])
    return np.stack(drawn)[:, rng.permutation(len(rows))]


def _gather_epochs(
    X: Floats, neighbours: Ints, labels: NDArray[Any] | None, batch_size: int, random_state: Seed, negatives: bool
) -> tf.data.Dataset:
    """Draw a whole epoch at once and let TensorFlow gather its batches."""
    n = len(X)
    with tf.device("CPU"):
        rows = tf.constant(X)
        row_labels = None if labels is None else tf.constant(labels)

    def batches(epoch: Any) -> tf.data.Dataset:
        def gather(step: Any) -> dict[str, Any]:
            triplets = epoch[:, step * batch_size : (step + 1) * batch_size]
            batch = {"stacked": tf.gather(rows, tf.reshape(triplets, [-1]))}
            if row_labels is not None:
                batch["label"] = tf.gather(row_labels, triplets[0])
            return batch

        return tf.data.Dataset.range(math.ceil(n / batch_size)).map(gather)

    def epochs() -> Iterator[Ints]:
        rng = np.random.default_rng(random_state)
        while True:
            yield draw_epoch(neighbours, rng=rng, negatives=negatives)

    indices = tf.TensorSpec((3 if negatives else 2, n), tf.int64)
    dataset = tf.data.Dataset.from_generator(epochs, output_signature=indices).prefetch(1)
    return dataset.flat_map(batches).prefetch(_PREFETCH_BATCHES)


def _read_batches(
    X: Rows,
    neighbours: Sequence[Any] | Ints,
    labels: NDArray[Any] | None,
    batch_size: int,
    random_state: Seed,
    shuffle: bool | str,
    negatives: bool,
) -> tf.data.Dataset:
    """Draw and read a batch at a time, on a thread beside the training step."""
    reader = TripletReader(X, neighbours)
    signature = {"stacked": tf.TensorSpec((None, *X.shape[1:]), tf.float32)}
    if labels is not None:
        signature["label"] = tf.TensorSpec((None, *labels.shape[1:]), labels.dtype)

    def batches() -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(random_state)
        while True:
            for anchors in batches_of(len(X), batch_size, shuffle, rng):
                batch = {"stacked": reader.read(reader.draw(anchors, rng)[: 3 if negatives else 2])}
                if labels is not None:
                    batch["label"] = labels[anchors]
                yield batch

    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(_PREFETCH_BATCHES)


def _one_thread() -> tf.data.Options:
    """Return options that gather on a thread of its own, so that the training step keeps the others."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    return options
