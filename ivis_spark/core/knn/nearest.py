"""The nearest of some points to each row, the same in any batch of rows.

A matrix product compares them, and its rounding depends on the rows beside a row. Where that leaves the order open,
and only there, keys are computed anew from differences, which depend on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ivis_spark.core.knn.metrics import Floats, Ints, Space


@dataclass(frozen=True)
class Near:
    """Points near rows, nearest first, ties by number.

    Attributes:
        numbers: int64, shape (n, w): of the points.
        keys: float32, shape (n, w): squared euclidean distances, or L1 ones; infinity where there is no point.
        slack: float32, shape (n, w): how far a key may be off.
    """

    numbers: Ints
    keys: Floats
    slack: Floats

    @classmethod
    def empty(cls, rows: int, width: int) -> Near:
        """Return room for the points of some rows."""
        keys = np.full((rows, width), np.inf, dtype=np.float32)
        return cls(np.zeros((rows, width), np.int64), keys, np.zeros((rows, width), np.float32))

    def put(self, where: Any, other: Near) -> None:
        """Write other points to some places."""
        self.numbers[where], self.keys[where], self.slack[where] = other.numbers, other.keys, other.slack

    def first(self, width: int) -> Near:
        """Return the nearest `width` points."""
        places, _ = smallest(self.keys, min(width, self.keys.shape[1]))
        numbers, keys = np.take_along_axis(self.numbers, places, axis=1), np.take_along_axis(self.keys, places, axis=1)
        return Near(numbers, keys, np.take_along_axis(self.slack, places, axis=1))


def nearest(rows: Floats, points: Floats, width: int, space: Space) -> Near:
    """Return the `width` nearest points of each row.

    Args:
        rows: float32, shape (n, r).
        points: float32, shape (c, r), c >= width.
        width: Points wanted.
        space: The euclidean or the manhattan one.
    """
    target = space.target(points)
    keys = target.squared(rows) if space.metric == "euclidean" else target.rank_keys(rows)
    numbers, near = smallest(keys, min(width + 1, len(points)))
    found = Near(numbers, near, target.slack(rows, near))
    doubt = _open_order(found, width)
    found = found.first(width)
    if doubt.any():
        limit = found.keys[doubt, -1:] + 3 * found.slack[doubt, -1:]
        count = int((keys[doubt] <= limit).sum(axis=1).max())
        among = smallest(keys[doubt], max(width, count))[0]
        found.put(doubt, _exactly(rows[doubt], points, among, width, space))
    return found


def merged(rows: Floats, points: Floats, found: Near, width: int, space: Space) -> Near:
    """Return the `width` nearest among points that were found in several places, without repeats, in any order."""
    first = found.first(width + 1)
    doubt = _open_order(first, width)
    first = first.first(width)
    if doubt.any():
        missing = np.isinf(found.keys[doubt])
        first.put(doubt, _exactly(rows[doubt], points, found.numbers[doubt], width, space, missing=missing))
    return first


def pairwise(rows: Floats, points: Floats, space: Space) -> Floats:
    """Return float32 (n, c): squared euclidean distances, or L1 ones, within rounding."""
    target = space.target(points)
    return target.squared(rows) if space.metric == "euclidean" else target.rank_keys(rows)


def smallest(keys: Floats, width: int) -> tuple[Ints, Floats]:
    """Return positions and values of the smallest keys of each row, in order."""
    if width < keys.shape[1]:
        positions = np.argpartition(keys, width - 1, axis=1)[:, :width]
    else:
        positions = np.broadcast_to(np.arange(keys.shape[1]), keys.shape)
    near = np.take_along_axis(keys, positions, axis=1)
    order = np.argsort(near, axis=1, kind="stable")
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(near, order, axis=1)


def _open_order(found: Near, width: int) -> Any:
    """Return for each row whether rounding leaves open which points are the `width` nearest, or their order."""
    low, high = found.keys[:, 1:] - found.slack[:, 1:], found.keys[:, :-1] + found.slack[:, :-1]
    return (low <= high)[:, :width].any(axis=1)


def _exactly(rows: Floats, points: Floats, among: Ints, width: int, space: Space, *, missing: Any = False) -> Near:
    """Return the `width` nearest by exact key and number; `among` has shape (n, m)."""
    order = np.argsort(among, axis=1)
    among = np.take_along_axis(among, order, axis=1)
    keys = space.pair_keys(rows, points, among)
    if missing is not False:
        keys[np.take_along_axis(missing, order, axis=1)] = np.inf
    best = np.argsort(keys, axis=1, kind="stable")[:, :width]
    keys = np.take_along_axis(keys, best, axis=1)
    return Near(np.take_along_axis(among, best, axis=1), keys, np.zeros_like(keys))
