"""Batches cut from row groups."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ivis_spark.train.dataset.batches import TripletGroup, slice_batches, whole_batches


def groups(sizes: list[int]) -> list[TripletGroup]:
    """Group of n triplets over 2n rows; row r of a group says where it stands."""
    made, first = [], 0
    for n in sizes:
        numbers = np.arange(first, first + n, dtype=np.float32)
        rows = np.concatenate([numbers, numbers + 0.25])[:, None]
        places = np.arange(n, dtype=np.int32)
        index = np.stack([places, places + np.int32(n)], axis=1)
        made.append(TripletGroup(rows, index, places[:, None] + first, numbers, -numbers))
        first += n
    return made


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 30))
def test_pairs_come_once_and_in_order_and_the_rest_waits(sizes: list[int], size: int) -> None:
    made = groups(sizes)
    wanted = np.concatenate([group.rows[group.index, 0] for group in made])
    found, negatives, weights, labels = [], [], [], []
    for group in whole_batches(iter(made), size):
        assert group.index.shape[1] == 2 * size
        pairs = group.rows[group.index, 0].reshape(-1, 2, size).transpose(0, 2, 1)
        found.append(pairs.reshape(-1, 2))
        negatives.append(group.negative.reshape(-1))
        weights.append(group.weight.reshape(-1))
        labels.append(group.label.reshape(-1))
    count = sum(sizes) // size * size
    if count == 0:
        assert not found
        return
    np.testing.assert_array_equal(np.concatenate(found), wanted[:count])
    for column in (negatives, weights):
        np.testing.assert_array_equal(np.concatenate(column), np.arange(count))
    np.testing.assert_array_equal(np.concatenate(labels), -np.arange(count))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 9), st.integers(0, 12))
def test_a_slice_of_batches_is_that_slice(sizes: list[int], size: int, first: int, count: int) -> None:
    def weights(stream) -> np.ndarray:
        return np.concatenate([np.zeros((0, size)), *(group.weight for group in stream)])

    whole = weights(whole_batches(iter(groups(sizes)), size))
    part = weights(slice_batches(whole_batches(iter(groups(sizes)), size), first, first + count))
    np.testing.assert_array_equal(part, whole[first : first + count])
