"""Checks of the points that are measured, and their distances, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.errors import ConfigError, InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK_BYTES = 16 * 2**20
_DIRECT_DIMS = 16


def finite_points(values: ArrayLike, name: str) -> Floats:
    """Return a matrix as float64, shape (n, d). Raises InputError if it is none, or holds NaN or infinity."""
    points = np.asarray(values, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] == 0:
        raise InputError(f"{name} has shape {points.shape}; it must be (rows, dimensions): reshape it")
    if not np.isfinite(points).all():
        bad = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise InputError(f"{name} holds NaN or infinity, first in row {bad}; drop or fix these rows")
    return points


def centred_points(values: ArrayLike, name: str, *, least: int) -> Floats:
    """Return centred float64 points; centring keeps the matrix-product form of distances accurate."""
    points = finite_points(values, name)
    if len(points) < least:
        raise InputError(f"{name} has {len(points)} rows; at least {least} are needed")
    if (points == points[0]).all():  # exactly 0, as rounding would put an order into equal distances
        return np.zeros_like(points)
    return np.ascontiguousarray(points - points.mean(axis=0))


def centred_spaces(X: ArrayLike, others: Sequence[ArrayLike], *, least: int = 2) -> list[Floats]:
    """Return features, and embeddings of the same rows, as `centred_points`. Raises InputError if they differ."""
    spaces = [centred_points(X, "X", least=least), *(centred_points(Z, "Z", least=least) for Z in others)]
    for points in spaces[1:]:
        if len(points) != len(spaces[0]):
            raise InputError(
                f"X has {len(spaces[0])} rows and Z has {len(points)}; pass the same rows in the same order"
            )
    return spaces


def centred_pair(X: ArrayLike, Z: ArrayLike, *, least: int = 2) -> tuple[Floats, Floats]:
    """Return `centred_spaces` of features and one embedding."""
    features, embedding = centred_spaces(X, [Z], least=least)
    return features, embedding


def check_count(name: str, value: int) -> None:
    """Raise ConfigError if a number of draws is less than 1."""
    if value < 1:
        raise ConfigError(f"{name}={value} must be at least 1")


def row_blocks(n_rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) so that a float64 matrix of these rows and `width` columns stays within the block size."""
    step = max(1, _BLOCK_BYTES // (8 * max(width, 1)))
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def squared_distances(A: Floats, B: Floats, squares: Floats | None = None) -> Floats:
    """Return the squared distances of points of shape (a, d) and (b, d), shape (a, b).

    Args:
        A: Some points.
        B: Others.
        squares: Squared lengths of B, shape (b,), if they are known.
    """
    if A.shape[1] <= _DIRECT_DIMS:
        # Differences are exact for equal rows, which a matrix product is not, and cheap for an embedding.
        total = np.zeros((len(A), len(B)))
        for column in range(A.shape[1]):
            difference = np.subtract.outer(A[:, column], B[:, column])
            total += np.square(difference, out=difference)
        return total
    total = A @ B.T
    total *= -2.0
    total += np.square(A).sum(axis=1)[:, np.newaxis]
    total += np.square(B).sum(axis=1) if squares is None else squares
    return np.maximum(total, 0.0, out=total)


def nearest(distances: Floats, k: int, kth: Floats | None = None) -> tuple[Ints, Ints, Floats]:
    """Return rows, columns and chances, each of shape (p,), of what may be among the k smallest distances of its row.

    By rows. The chance is 1, but for those equal to the k-th smallest, `kth` if it is known: which of them count is
    drawn at random.
    """
    cut = np.partition(distances, k - 1, axis=1)[:, k - 1] if kth is None else kth
    rows, columns = np.nonzero(distances <= cut[:, np.newaxis])
    tied = distances[rows, columns] == cut[rows]
    n_near, n_tied = (np.bincount(rows, weights, minlength=len(cut)) for weights in (None, tied))
    shares = (k - (n_near - n_tied)) / n_tied
    return rows, columns, np.where(tied, shares[rows], 1.0)


def distances_between(points: Floats, first: Ints, second: Ints) -> Floats:
    """Return the distances of pairs of points by their numbers, shape (p,)."""
    out = np.empty(len(first))
    for start, stop in row_blocks(len(first), 16 * points.shape[1]):  # what a core's cache holds
        difference = points[first[start:stop]]
        difference -= points[second[start:stop]]
        out[start:stop] = np.sqrt(np.square(difference, out=difference).sum(axis=1))
    return out


def pearson(a: Floats, b: Floats) -> float:
    """Return Pearson's correlation of two arrays of shape (n,); 0 if one is constant."""
    if a.max() == a.min() or b.max() == b.min():
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))
