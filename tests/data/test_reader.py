"""Batches cut from row groups: every triplet once, in order, whatever the sizes. Reading itself: tests/spark."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from ivis_spark.data.reader import _Group, _whole_batches  # noqa: E402


def groups(sizes: list[int]) -> list[_Group]:
    """Group of n triplets over 2n rows; row r of a group says where it stands."""
    made, first = [], 0
    for n in sizes:
        numbers = np.arange(first, first + n, dtype=np.float32)
        rows = np.concatenate([numbers, numbers + 0.25])[:, None]
        places = np.arange(n, dtype=np.int32)
        index = np.stack([places, places + np.int32(n), places[::-1]], axis=1)
        made.append(_Group(rows, index, numbers, -numbers))
        first += n
    return made


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 30))
def test_triplets_come_once_and_in_order_and_the_rest_waits(sizes: list[int], size: int) -> None:
    made = groups(sizes)
    wanted = np.concatenate([group.rows[group.index, 0] for group in made])
    found, weights, labels = [], [], []
    for group in _whole_batches(iter(made), size):
        assert group.index.shape[1] == 3 * size
        triplets = group.rows[group.index, 0].reshape(-1, 3, size).transpose(0, 2, 1)
        found.append(triplets.reshape(-1, 3))
        weights.append(group.weight.reshape(-1))
        labels.append(group.label.reshape(-1))
    count = sum(sizes) // size * size
    if count == 0:
        assert not found
        return
    np.testing.assert_array_equal(np.concatenate(found), wanted[:count])
    np.testing.assert_array_equal(np.concatenate(weights), np.arange(count))
    np.testing.assert_array_equal(np.concatenate(labels), -np.arange(count))
