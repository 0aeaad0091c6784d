"""The k smallest of each row, and the packed order that lists are sorted by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ivis_spark.core.knn.topk import pack_keys, smallest_columns, unpack_keys

any_keys = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False))
numbers_of = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1])


@given(any_keys, st.data())
def test_packed_order_is_key_then_number(keys: np.ndarray, data: st.DataObject) -> None:
    numbers = np.array(data.draw(st.lists(numbers_of, min_size=len(keys), max_size=len(keys))), np.int64)
    signed = bool((keys < 0).any()) or data.draw(st.booleans())
    packed = pack_keys(keys, numbers, signed=signed)
    found, near = unpack_keys(np.sort(packed), signed=signed)
    order = np.lexsort((numbers, keys))
    assert np.array_equal(found, numbers[order]) and np.array_equal(near, keys[order])
    assert found.dtype == np.int64 and near.dtype == np.float32


@pytest.mark.parametrize("signed", [True, False])
def test_packed_zeros_are_one(signed: bool) -> None:
    keys, numbers = np.array([0.0, -0.0, 0.0], np.float32), np.array([3, 2, 1])
    assert unpack_keys(np.sort(pack_keys(keys, numbers, signed=signed)), signed=signed)[0].tolist() == [1, 2, 3]


def test_packed_infinities_stand_at_the_ends() -> None:
    keys = np.array([np.inf, 1, -np.inf, -1e-45, 3e38], np.float32)
    numbers, near = unpack_keys(np.sort(pack_keys(keys, np.arange(5), signed=True)), signed=True)
    assert numbers.tolist() == [2, 3, 1, 4, 0] and near.tolist() == keys[[2, 3, 1, 4, 0]].tolist()


@pytest.mark.parametrize("kind", ["normal", "few values", "ascending", "far", "near", "near in two rows", "infinite"])
@pytest.mark.parametrize("columns", [1, 5, 100, 383, 384, 1000])
@pytest.mark.parametrize("k", [1, 2, 17, 60, 999])
def test_smallest_columns_are_the_smallest(kind: str, columns: int, k: int) -> None:
    rng = np.random.default_rng(0)
    keys = (rng.normal(size=(6, columns)) + 9).astype(np.float32)
    if kind == "few values":
        keys = rng.integers(0, 3, keys.shape).astype(np.float32)
    elif kind == "ascending":
        keys = np.sort(keys, axis=1)
    elif kind == "far":  # the sampled columns know nothing of the nearest,
        keys[:, ::8] += 100
    elif kind.startswith("near"):  # or of all the others
        keys[: 2 if kind == "near in two rows" else 6, ::8] -= 100
    elif kind == "infinite":
        keys[rng.random(keys.shape) < 0.9] = np.inf
    found = np.sort(smallest_columns(keys, k), axis=1)
    k = min(k, columns)
    assert found.shape == (6, k) and (np.diff(found) > 0).all()
    assert np.array_equal(np.sort(np.take_along_axis(keys, found, axis=1)), np.sort(keys, axis=1)[:, :k])
