"""Draw the positives and negatives of triplets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ivis_spark.errors import InputError

# Rejection sampling settles all but anchors that have almost no candidates; those are then drawn from their exact list.
_REJECTION_ROUNDS = 8


def draw_positives(neighbours: NDArray[np.int64], *, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw positives of every anchor from its neighbours, each row on its own.

    ivis draws one neighbour rank for a whole batch; here every anchor draws its own. While `draws` is at most k, an
    anchor's draws differ from one another; beyond that, the neighbours are gone through again in a new order.

    Runs on: driver or executor. Pure; deterministic for a given `rng`. Memory: O(n * max(k, draws)).

    Args:
        neighbours: Row ids of the neighbours of each anchor, itself excluded. Shape (n, k).
        draws: Positives of each anchor.
        rng: Source of randomness.

    Returns:
        Row ids, int64, shape (n, draws).
    """
    n, k = neighbours.shape
    if draws == 1:
        ranks = rng.integers(0, k, size=(n, 1))
    else:
        rounds = [np.argsort(rng.random((n, k)), axis=1) for _ in range(-(-draws // k))]
        ranks = np.concatenate(rounds, axis=1)[:, :draws]
    return np.take_along_axis(neighbours, ranks, axis=1)


def draw_negatives(
    anchors: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    candidates: NDArray[np.int64],
    *,
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw negatives of every anchor, uniformly from the candidates that are neither itself nor its neighbours.

    Runs on: driver or executor. Pure; deterministic for a given `rng`. Memory: O(n * draws * k).

    Args:
        anchors: Row ids, shape (n,).
        neighbours: Row ids of the neighbours of each anchor, shape (n, k).
        candidates: Row ids to draw from, shape (c,); they may repeat.
        draws: Negatives of each anchor, drawn with replacement.
        rng: Source of randomness.

    Returns:
        Positions in `candidates`, int64, shape (n, draws).

    Raises:
        InputError: if an anchor has no candidate outside its neighbours.
    """
    picked = rng.integers(0, len(candidates), size=(len(anchors), draws))
    for _ in range(_REJECTION_ROUNDS):
        wrong = np.nonzero(_is_forbidden(candidates[picked], anchors, neighbours))
        if len(wrong[0]) == 0:
            return picked
        picked[wrong] = rng.integers(0, len(candidates), size=len(wrong[0]))
    wrong_rows = np.nonzero(_is_forbidden(candidates[picked], anchors, neighbours).any(axis=1))[0]
    for row in wrong_rows:
        allowed = np.nonzero((candidates != anchors[row]) & ~np.isin(candidates, neighbours[row]))[0]
        if len(allowed) == 0:
            raise InputError(
                f"row {anchors[row]} has no negative: all {len(np.unique(candidates))} candidates are itself or among "
                f"its {neighbours.shape[1]} neighbours; lower k or pass more rows"
            )
        picked[row] = rng.choice(allowed, size=draws)
    return picked


def _is_forbidden(
    drawn: NDArray[np.int64], anchors: NDArray[np.int64], neighbours: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tell which draws, shape (n, draws), are their own anchor or one of its neighbours."""
    forbidden = drawn == anchors[:, None]
    for column in range(drawn.shape[1]):
        forbidden[:, column] |= (drawn[:, column, None] == neighbours).any(axis=1)
    return forbidden
