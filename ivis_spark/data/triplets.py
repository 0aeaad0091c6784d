"""Triplets of rows by number: all at once in memory, or a batch at a time from anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ivis_spark.core.triplets.sampling import (
    avoid_anchors,
    draw_batch_negatives,
    draw_from_lists,
    draw_negatives,
    draw_positives,
    either_way_round,
    false_negatives_in_batches,
)
from ivis_spark.data.arrays import Floats, Ints
from ivis_spark.data.rows import Rows, take
from ivis_spark.errors import InputError

# Batches gathered ahead of the training step.
_PREFETCH_BATCHES = 8
# Negatives are drawn from the anchors of a batch where it holds so many that are allowed, on average.
_LEAST_CANDIDATES = 8

Seed = int | Sequence[int]


def triplet_dataset(
    X: Rows,
    neighbours: Sequence[Any] | Ints,
    *,
    labels: NDArray[Any] | None = None,
    batch_size: int,
    random_state: Seed,
    shuffle: bool | str = True,
    negatives: int = 1,
) -> tuple[tf.data.Dataset, int]:
    """Make an endless dataset of triplet batches.

    In each epoch every row is an anchor once, with a fresh positive from its neighbours and fresh negatives from
    outside them. The last batch of an epoch may be smaller. Without negatives and labels, which belong to the anchor,
    half the pairs are exchanged.

    Rows and neighbours in memory, in a fresh order: negatives are drawn from the anchors of the batch, which pass the
    encoder once; a row that is near all others of its batch has none. All else (and batches too small for that): one
    negative of each anchor, drawn from all rows.

    Runs on: each rank. Memory: with X and neighbours in memory a copy of X, and for each of two epochs 16 bytes a row
    and 4 a negative; else a few batches, and the numbers of the rows.

    Args:
        X: Rows, shape (n, ...).
        neighbours: Row numbers of each row's neighbours: an array of shape (n, k), or a list for each row.
        labels: Shape (n,) or (n, c); None leaves them out.
        batch_size: Anchors of a batch.
        random_state: Seed.
        shuffle: True draws a fresh order of all rows in each epoch; "batch" a fresh order of batches of adjacent rows,
            which files read faster; False keeps the order of X.
        negatives: Negatives of each anchor; 0 if the loss reads none.

    Returns:
        The dataset of batches as `nn.model.TripletModel.train_step` takes them; and the batches of an epoch.

    Raises:
        InputError: if a row has no negative, since all others are its neighbours.
    """
    steps = math.ceil(len(X) / batch_size)
    if isinstance(X, np.ndarray) and isinstance(neighbours, np.ndarray) and shuffle is True:
        dataset = _gather_epochs(X, neighbours, labels, batch_size, random_state, negatives)
    else:
        dataset = _read_batches(X, neighbours, labels, batch_size, random_state, shuffle, bool(negatives))
    return dataset.with_options(_one_thread()), steps


class TripletReader:
    """Draws and reads the triplets of some anchors.

    Args:
        X: Rows, shape (n, ...).
        neighbours: Row numbers of each row's neighbours; `get_batch(numbers)` is used where there is one, and
            `draw(anchors, rng)` where neighbours are too many to be listed.

    Raises:
        InputError: if there is not one list of neighbours per row.
    """

    def __init__(self, X: Rows, neighbours: Sequence[Any] | Ints) -> None:
        if len(neighbours) != len(X):
            raise InputError(
                f"neighbour_matrix has {len(neighbours)} rows and X has {len(X)}: pass one list of neighbours per row"
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


def draw_epoch(neighbours: Ints, *, rng: np.random.Generator) -> Ints:
    """Draw the anchors and positives of an epoch, int64 (2, n), in random order."""
    rows = np.arange(len(neighbours))
    positives = avoid_anchors(draw_positives(neighbours, draws=1, rng=rng)[:, 0], rows, neighbours, rng=rng)
    return np.stack([rows, positives])[:, rng.permutation(len(rows))]


def _gather_epochs(
    X: Floats, neighbours: Ints, labels: NDArray[Any] | None, batch_size: int, random_state: Seed, negatives: int
) -> tf.data.Dataset:
    """Draw a whole epoch at once and let TensorFlow gather its batches."""
    n, k = neighbours.shape
    in_batch = negatives > 0 and (min(batch_size, n) - 1) * (n - 1 - k) >= _LEAST_CANDIDATES * (n - 1) > 0
    with tf.device("CPU"):
        rows = tf.constant(X)
        row_labels = None if labels is None else tf.constant(labels)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def batches(epoch: dict[str, Any]) -> tf.data.Dataset:
        @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
        def gather(step: Any) -> dict[str, Any]:
            here = slice(step * batch_size, (step + 1) * batch_size)
            drawn = epoch["drawn"][:, here]
            batch = {name: epoch[name][here] for name in epoch if name != "drawn"}
            batch["stacked"] = tf.gather(rows, tf.reshape(drawn, [-1]))
            if row_labels is not None:
                batch["label"] = tf.gather(row_labels, drawn[0])
            return batch

        return tf.data.Dataset.range(math.ceil(n / batch_size)).map(gather)

    def epochs() -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(random_state)
        while True:
            drawn = draw_epoch(neighbours, rng=rng)
            if in_batch:
                is_false_negative = false_negatives_in_batches(neighbours, drawn[0], batch_size)
                places = draw_batch_negatives(is_false_negative, n, batch_size=batch_size, draws=negatives, rng=rng)
                yield {"drawn": drawn, "negative": places}
            elif negatives:
                rows = np.arange(n)
                apart = draw_negatives(rows, neighbours, rows, draws=1, rng=rng)[drawn[0]]
                yield {"drawn": np.concatenate([drawn, apart.T])}
            else:
                yield {"drawn": either_way_round(drawn, rng=rng) if labels is None else drawn}

    signature = {"drawn": tf.TensorSpec((3 if negatives and not in_batch else 2, n), tf.int64)}
    if in_batch:
        signature["negative"] = tf.TensorSpec((n, negatives), tf.int32)
    dataset = tf.data.Dataset.from_generator(epochs, output_signature=signature).prefetch(1)
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
                drawn = reader.draw(anchors, rng)
                if not negatives:
                    drawn = either_way_round(drawn[:2], rng=rng) if labels is None else drawn[:2]
                batch = {"stacked": reader.read(drawn)}
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
