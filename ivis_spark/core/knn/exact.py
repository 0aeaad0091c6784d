"""Exact search: every row is compared."""

from __future__ import annotations

import numpy as np

from ivis_spark.core.knn.leaves import ALL, Leaves
from ivis_spark.core.knn.merge import NO_ID, merge_top_k, without_self
from ivis_spark.core.knn.metrics import Floats, Ints

_EXACT_ROWS = 8192


def exact_neighbours(
    queries: Floats, X: Floats, k: int, metric: str, *, own: Ints | None = None, ids: Ints | None = None
) -> tuple[Ints, Floats]:
    """Search all rows for the nearest of each query, a block at a time.

    Args:
        queries: Shape (q, d).
        X: Shape (n, d).
        k: Neighbours per query.
        metric: Metric.
        own: int64 (q,): ids of the queries, to exclude themselves; None if they are not rows of X.
        ids: int64 (n,): ids of the rows; by default their positions.

    Returns:
        ids int64 (q, k) and keys float32 (q, k); see `Space.distances`.
    """
    ids = np.arange(len(X)) if ids is None else ids
    own = np.full(len(queries), NO_ID) if own is None else own
    rows = np.arange(len(queries))
    best_ids = np.full((len(queries), k), NO_ID, dtype=np.int64)
    best_keys = np.full((len(queries), k), np.inf, dtype=np.float32)
    for start in range(0, len(X), _EXACT_ROWS):
        part = slice(start, start + _EXACT_ROWS)
        block = Leaves.single(X[part], metric)
        numbers, keys = block.query(queries, min(k + 1, len(block)), ALL)
        nearest, keys = without_self(ids[part][numbers], keys, own, k)
        both = np.concatenate([best_ids, nearest]), np.concatenate([best_keys, keys])
        _, best_ids, best_keys = merge_top_k(np.concatenate([rows, rows]), *both, k)
    return best_ids, best_keys
