"""Positives come from the neighbours, negatives from outside them, each row on its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivis_spark.core.triplets.sampling import (
    draw_batch_negatives,
    draw_from_lists,
    draw_negatives,
    draw_positives,
    false_negative_pairs,
    false_negatives_in_batches,
    false_negatives_in_block,
)
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


@given(n=st.integers(4, 60), k=st.integers(1, 8), seed=st.integers(0, 99), repeats=st.booleans())
def test_pairs_of_a_block_that_are_near_are_never_drawn(n: int, k: int, seed: int, repeats: bool) -> None:
    rng = np.random.default_rng(seed)
    anchors = rng.choice(10 * n, size=n, replace=repeats)
    neighbours = rng.choice(anchors, size=(n, k))
    wrong = (anchors[None, :] == anchors[:, None]) | (anchors[None, :, None] == neighbours[:, None, :]).any(axis=2)
    if wrong.all(axis=1).any():
        with pytest.raises(InputError, match="no negative"):
            false_negative_pairs(anchors, neighbours)
        return
    near = false_negative_pairs(anchors, neighbours)
    expected = np.flatnonzero(wrong & ~np.eye(n, dtype=bool))
    np.testing.assert_array_equal(near, expected)
    order = rng.permutation(n)
    drawn = draw_batch_negatives(false_negatives_in_block(near, order), n, batch_size=n, draws=5, rng=rng)
    assert drawn.min() >= 0
    assert not wrong[order[:, None], order[drawn]].any()


@given(
    n=st.integers(2, 30), size=st.integers(1, 9), start=st.integers(0, 8), k=st.integers(1, 8), seed=st.integers(0, 9)
)
def test_negatives_of_a_batch_are_its_own_rows(n: int, size: int, start: int, k: int, seed: int) -> None:
    """All that is allowed is drawn, and -1 stands where nothing is."""
    rng, start = np.random.default_rng(seed), start % size
    order, neighbours = rng.permutation(n), rng.integers(0, n, size=(n, k))
    near = false_negatives_in_batches(neighbours, order, size) if start == 0 else lambda i, j: (i + j) % 3 == 0
    drawn = draw_batch_negatives(near, n, batch_size=size, start=start, draws=150, rng=rng)
    batch = (start + np.arange(n)) // size
    for i in range(n):
        others = np.flatnonzero(batch == batch[i])
        wrong = np.isin(order[others], neighbours[order[i]]) if start == 0 else (i + others) % 3 == 0
        allowed = others[(others != i) & ~wrong]
        assert set(drawn[i]) == (set((start + allowed) % size) or {-1})


def test_batch_negatives_are_uniform_over_what_is_allowed() -> None:
    near = false_negatives_in_batches(np.array([[1], [2], [3], [4], [5], [0]]), np.arange(6), 6)
    drawn = draw_batch_negatives(near, 6, batch_size=6, draws=4000, rng=np.random.default_rng(0))
    shares = np.bincount(drawn[0], minlength=6) / 4000
    np.testing.assert_allclose(shares, [0, 0, 0.25, 0.25, 0.25, 0.25], atol=0.03)


def test_triplets_from_lists_of_any_length() -> None:
    n = 30
    lists = [np.arange(i, i + 2 + i % 4) % n for i in range(n)]  # each begins with the row itself
    rng = np.random.default_rng(0)
    seen: list[set[int]] = [set() for _ in range(n)]
    for _ in range(60):
        anchors, positives, negatives = draw_from_lists(np.arange(n), lists, np.arange(n), rng=rng)
        np.testing.assert_array_equal(anchors, np.arange(n))
        for row in range(n):
            seen[row].add(int(positives[row]))
            assert negatives[row] not in lists[row]
    assert seen == [set(near.tolist()) - {row} for row, near in enumerate(lists)]


def test_a_row_whose_only_neighbour_is_itself_is_its_own_positive() -> None:
    rng = np.random.default_rng(0)
    assert draw_from_lists(np.array([2]), [[2, 2]], np.arange(4), rng=rng)[1, 0] == 2


@pytest.mark.parametrize(
    ("near", "message"),
    [([], "row 1 has no neighbours"), ([-1], "from -1 to -1"), ([4], "from 4 to 4"), ([0, 2, 3], "no negative")],
)
def test_lists_that_cannot_be_drawn_from(near: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_from_lists(np.array([1]), [near], np.arange(4), rng=np.random.default_rng(0))
