"""Positives come from the neighbours, negatives from outside them, each row on its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivis_spark.core.sampling import draw_negatives, draw_positives
from ivis_spark.errors import InputError


def ring(n: int, k: int) -> np.ndarray:
    """Neighbours on a ring: row i is followed by i+1 .. i+k."""
    return (np.arange(n)[:, None] + np.arange(1, k + 1)) % n


@given(n=st.integers(4, 40), draws=st.integers(1, 7), seed=st.integers(0, 99), data=st.data())
def test_draws_respect_the_neighbours(n: int, draws: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n - 2))
    neighbours, anchors, rng = ring(n, k), np.arange(n), np.random.default_rng(seed)
    positives = draw_positives(neighbours, draws=draws, rng=rng)
    negatives = draw_negatives(anchors, neighbours, anchors, draws=draws, rng=rng)
    assert positives.shape == negatives.shape == (n, draws)
    for row in range(n):
        assert set(positives[row]) <= set(neighbours[row])
        assert len(set(positives[row])) == min(draws, k)
        assert not set(negatives[row]) & ({row} | set(neighbours[row]))


def test_every_row_draws_its_own_rank() -> None:
    neighbours = ring(1000, 10)
    ranks = (draw_positives(neighbours, draws=1, rng=np.random.default_rng(0))[:, 0] - np.arange(1000)) % 1000
    counts = np.bincount(ranks, minlength=11)[1:]
    assert counts.min() > 60 and counts.max() < 140  # 100 expected, standard deviation 9.5


def test_negatives_are_uniform_over_what_is_allowed() -> None:
    neighbours = np.tile([1, 2], (20_000, 1))
    drawn = draw_negatives(np.zeros(20_000, int), neighbours, np.arange(7), draws=1, rng=np.random.default_rng(0))
    counts = np.bincount(drawn[:, 0], minlength=7)
    assert counts[:3].sum() == 0
    assert np.abs(counts[3:] - 5000).max() < 300  # standard deviation 61


def test_the_same_seed_draws_the_same() -> None:
    first, second = (draw_positives(ring(50, 5), draws=3, rng=np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)


def test_no_candidate_left_is_an_error() -> None:
    with pytest.raises(InputError, match=r"row 0 has no negative: all 4 candidates .* 3 neighbours; lower k"):
        draw_negatives(np.arange(4), ring(4, 3), np.arange(4), draws=1, rng=np.random.default_rng(0))
