"""The nearest points: those of float64 brute force, ties by number, the same in any batch."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ivis_spark.core.knn.kmeans import lloyd, split_rows
from ivis_spark.core.knn.metrics import Space
from ivis_spark.core.knn.nearest import Near, merged, nearest

SPACES = [Space("euclidean"), Space("manhattan")]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.metric)
@pytest.mark.parametrize("width", [1, 3, 40])
def test_nearest_is_brute_force(space: Space, width: int) -> None:
    rng = np.random.default_rng(0)
    rows, points = rng.normal(size=(200, 9)).astype("f4"), rng.normal(size=(40, 9)).astype("f4")
    found = nearest(rows, points, width, space)
    far = cdist(rows, points, "sqeuclidean" if space.metric == "euclidean" else "cityblock")
    assert np.array_equal(found.numbers, far.argsort(axis=1)[:, :width])
    exact = np.take_along_axis(far, found.numbers, axis=1)
    assert (np.abs(found.keys - exact) <= found.slack + 1e-6 * exact).all()


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.metric)
def test_ties_go_by_number(space: Space) -> None:
    """Rows on a lattice amid points on it, a tenth off: sums round, yet equal keys are found equal."""
    rng = np.random.default_rng(1)
    points = np.unique(rng.integers(0, 2, (60, 6)), axis=0).astype("f4") + np.float32(0.1)
    rows = np.full((50, 6), 0.6, np.float32)
    found = nearest(rows, points, 5, space)
    assert (found.numbers == np.arange(5)).all() and not found.slack.any()


def test_merged_parts_are_the_whole() -> None:
    """Points 0, 2, 4, .. and 1, 3, 5, .. searched apart; a part with fewer points than asked leaves places open."""
    rng = np.random.default_rng(2)
    rows, points = rng.normal(size=(80, 5)).astype("f4"), rng.normal(size=(9, 5)).astype("f4")
    space, found = SPACES[0], Near.empty(80, 10)
    for start in (0, 1):
        own = np.arange(start, 9, 2)
        near = nearest(rows, points[own], min(5, len(own)), space)
        columns = slice(5 * start, 5 * start + near.keys.shape[1])
        found.put((slice(None), columns), Near(own[near.numbers], near.keys, near.slack))
    assert np.array_equal(merged(rows, points, found, 5, space).numbers, nearest(rows, points, 5, space).numbers)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.metric)
def test_rows_are_split_where_they_differ(space: Space) -> None:
    rows = np.repeat(np.array([[0.0, 0], [5, 5], [9, 0]], np.float32), 20, axis=0)
    pieces = split_rows(rows, 3, space, np.random.default_rng(0))
    assert sorted(pieces.tolist()) == [[0, 0], [5, 5], [9, 0]]
    assert len(split_rows(rows[:20], 3, space, np.random.default_rng(0))) == 1
    assert len(lloyd(rows, np.array([[1, 1], [8, 1], [900, 900]], np.float32), space)) == 2
