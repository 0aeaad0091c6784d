"""Rows from anywhere come out as the same float32 numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivis_spark.data.rows import LazyRows, as_labels, as_rows, blocks, take
from ivis_spark.errors import InputError

X = np.random.default_rng(0).integers(0, 9, size=(40, 6))
NUMBERS = np.array([7, 3, 3, 39, 0])


class Custom:
    shape = X.shape

    def __getitem__(self, number: int) -> Any:
        return X[number].tolist()


class Batched(Custom):
    def get_batch(self, numbers: list[int]) -> Any:
        assert all(type(number) is int for number in numbers)
        return [X[number] for number in numbers]


def sparse(folder: Path) -> Any:
    return pytest.importorskip("scipy.sparse").coo_matrix(X)


def hdf5(folder: Path) -> Any:
    h5py = pytest.importorskip("h5py")
    return h5py.File(folder / "rows.h5", "w").create_dataset("X", data=X)


def memory_map(folder: Path) -> Any:
    np.save(folder / "rows.npy", X)
    return np.load(folder / "rows.npy", mmap_mode="r")


def frame(folder: Path) -> Any:
    return pytest.importorskip("pandas").DataFrame(X)


LAZY = [sparse, hdf5, memory_map, lambda folder: Custom(), lambda folder: Batched()]
IN_MEMORY = [
    frame,
    lambda folder: X.tolist(),
    *(lambda folder, t=t: X.astype(t) for t in ("float64", "uint8", "int16", "float16", "object", ">f4")),
]


@pytest.mark.parametrize("make", LAZY + IN_MEMORY)
def test_same_numbers(make: Callable[[Path], Any], tmp_path: Path) -> None:
    rows = as_rows(make(tmp_path))
    assert isinstance(rows, LazyRows) == (make in LAZY)
    assert (len(rows), rows.shape) == (40, (40, 6))
    for found, expected in ((take(rows, NUMBERS), X[NUMBERS]), (np.concatenate(list(blocks(rows))), X)):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(take(rows, np.arange(5, 9)), X[5:9])
    assert as_rows(rows) is rows


def test_lazy_rows_are_read_in_blocks_of_a_few_megabytes() -> None:
    asked = []

    class Wide:
        shape = (10, 1 << 20)

        def get_batch(self, numbers: list[int]) -> Any:
            asked.append(numbers)
            return np.zeros((len(numbers), 1 << 20), np.uint8)

        def __getitem__(self, number: int) -> Any:
            raise AssertionError

    for block in blocks(as_rows(Wide())):
        assert block.nbytes <= 8 << 20
    assert [number for numbers in asked for number in numbers] == list(range(10))


def test_rows_that_cannot_be_used_are_named() -> None:
    class Wrong(Custom):
        def __getitem__(self, number: int) -> Any:
            return [np.nan] * 6 if number == 3 else [1.0] * (5 if number == 5 else 6)

    rows = as_rows(Wrong())
    with pytest.raises(InputError, match="the first is row 3"):
        take(rows, np.array([1, 3]))
    with pytest.raises(InputError, match=r"\(1, 5\).*\(1, 6\)"):
        take(rows, np.array([5]))
    with pytest.raises(InputError, match="does not hold numbers"):
        as_rows(np.array([["a", None]], dtype=object))
    with pytest.raises(InputError, match=r"shape=\(0, 3\)"):
        as_rows(pytest.importorskip("scipy.sparse").csr_matrix((0, 3)))


def test_labels() -> None:
    assert as_labels([1, 2], 2).dtype == np.int64
    assert as_labels([[1.5], [2]], 2).dtype == np.float32
    with pytest.raises(InputError, match="3 labels for 2 rows"):
        as_labels([1, 2, 3], 2)
