"""k-means on small sets worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ivis_spark.core.knn.kmeans import kmeans, lloyd, split_rows
from ivis_spark.core.knn.metrics import Space

SPACES = [Space("euclidean"), Space("manhattan")]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.metric)
def test_rows_are_split_where_they_differ(space: Space) -> None:
    rows = np.repeat(np.array([[0.0, 0], [5, 5], [9, 0]], np.float32), 20, axis=0)
    pieces = split_rows(rows, 3, space, np.random.default_rng(0))
    assert sorted(pieces.tolist()) == [[0, 0], [5, 5], [9, 0]]
    assert len(split_rows(rows[:20], 3, space, np.random.default_rng(0))) == 1
    assert len(lloyd(rows, np.array([[1, 1], [8, 1], [900, 900]], np.float32), space)) == 2
    assert kmeans(rows, 1, space, np.random.default_rng(0)).shape == (1, 2)
    assert sorted(kmeans(rows, 60, space, np.random.default_rng(0)).tolist()) == [[0, 0], [5, 5], [9, 0]]
