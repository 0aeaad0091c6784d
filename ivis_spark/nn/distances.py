"""Distances between the rows of two batches of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Tensor = Any  # tensorflow ships no types

# Below these the square root and the norm have no usable gradient; the values are those that ivis's numbers rest on.
_SQUARE_FLOOR = 1e-7
_NORM_FLOOR = 1e-12


def euclidean_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the Euclidean distance of each row, shape (b, e), (b, e) -> (b, 1)."""
    return tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(x - y), axis=-1, keepdims=True), _SQUARE_FLOOR))


def manhattan_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of absolute differences of each row, shape (b, e), (b, e) -> (b, 1)."""
    return tf.reduce_sum(tf.abs(x - y), axis=-1, keepdims=True)


def chebyshev_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the largest absolute difference of each row, shape (b, e), (b, e) -> (b, 1)."""
    return tf.reduce_max(tf.abs(x - y), axis=-1, keepdims=True)


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return one minus the cosine of the angle of each row, shape (b, e), (b, e) -> (b, 1)."""
    x = tf.math.l2_normalize(x, axis=-1, epsilon=_NORM_FLOOR)
    y = tf.math.l2_normalize(y, axis=-1, epsilon=_NORM_FLOOR)
    return tf.nn.relu(1.0 - tf.reduce_sum(x * y, axis=-1, keepdims=True))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared Euclidean distances of all pairs, shape (b, e), (c, e) -> (b, c)."""
    squares = tf.reduce_sum(tf.square(x), axis=1)[:, None] + tf.reduce_sum(tf.square(y), axis=1)
    return tf.maximum(squares - 2 * tf.matmul(x, y, transpose_b=True), 0.0)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "euclidean": euclidean_distance,
    "manhattan": manhattan_distance,
    "chebyshev": chebyshev_distance,
    "cosine": cosine_distance,
}
