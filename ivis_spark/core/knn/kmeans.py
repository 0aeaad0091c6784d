"""k-means on a sample: centroids that tell rows apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ivis_spark.core.knn.metrics import Floats, Ints, Space

_BLOCK_ROWS, _LEAST_ROWS, _BLOCK_VALUES = 4096, 64, 1 << 20  # of products, which then stay in the processor's cache
_LLOYD_ROUNDS = 5
_MOST_PIECES = 128  # of one split: more come from splitting the pieces
_SEEDS_PER_PIECE = 32


def kmeans(rows: Floats, count: int, space: Space, rng: np.random.Generator) -> Floats:
    """Return at most `count` centroids of the rows, from random starts: for counts too large to spread them out."""
    if count < 2 or len(rows) < 2:
        return means(rows, np.zeros(len(rows), np.int64), space)
    starts = np.unique(rows[rng.choice(len(rows), min(count, len(rows)), replace=False)], axis=0)
    return lloyd(rows, starts, space)


def split_rows(members: Floats, pieces: int, space: Space, rng: np.random.Generator) -> Floats:
    """Return up to `pieces` different centroids of the members; one if they cannot be told apart."""
    pieces = min(pieces, _MOST_PIECES, len(members) // 2)
    if pieces < 2 or not np.any(members != members[0]):
        return members[:1]
    few = members[rng.choice(len(members), min(len(members), _SEEDS_PER_PIECE * pieces), replace=False)]
    centroids = _spread_out(few, pieces, space, rng)
    return lloyd(members, centroids, space)


def _spread_out(rows: Floats, pieces: int, space: Space, rng: np.random.Generator) -> Floats:
    """Choose starting centroids far from each other (k-means++); equal rows are never chosen twice."""
    chosen = [int(rng.integers(len(rows)))]
    nearest = _differences(rows, rows[chosen[0]], space)
    while len(chosen) < pieces and nearest.any():
        chosen.append(int(rng.choice(len(rows), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, _differences(rows, rows[chosen[-1]], space))
    return rows[chosen]


def _differences(rows: Floats, row: Floats, space: Space) -> npt.NDArray[np.float64]:
    difference = np.subtract(rows, row, dtype=np.float64)
    return np.asarray(
        np.abs(difference).sum(axis=1) if space.metric == "manhattan" else np.square(difference).sum(axis=1)
    )


def means(members: Floats, labels: Ints, space: Space) -> Floats:
    """Return the centre of each label that has members, as one array."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    if space.metric == "manhattan":
        return np.stack([np.median(part, axis=0) for part in np.split(members[order], starts[1:])]).astype(np.float32)
    sums = np.add.reduceat(members[order], starts, axis=0, dtype=np.float64)
    sizes = np.diff(starts, append=len(labels))
    return np.asarray(sums / sizes[:, None], dtype=np.float32)


def lloyd(rows: Floats, centroids: Floats, space: Space) -> Floats:
    """Return centroids after some rounds of moving each to the centre of its rows; those without rows are dropped."""
    for _ in range(_LLOYD_ROUNDS):
        centroids = means(rows, nearest_numbers(rows, centroids, space), space)
        if len(centroids) < 2:
            break
    return centroids


def nearest_numbers(rows: Floats, centroids: Floats, space: Space) -> Ints:
    """Return the number of the centroid nearest to each row."""
    target = space.target(centroids)
    step = min(_BLOCK_ROWS, max(_LEAST_ROWS, _BLOCK_VALUES // len(centroids)))
    blocks = (space.extend(rows[at : at + step], target.centre) for at in range(0, len(rows), step))
    parts = [target.rank_keys(block).argmin(axis=1) for block in blocks]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
