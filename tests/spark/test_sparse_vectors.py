"""Sparse rows in Arrow columns, without Spark."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ivis_spark.errors import InputError
from ivis_spark.spark.vectors import from_vectors, pack_sparse, read_rows, sparse_rows, unpack_sparse

KIND = pa.struct(
    [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
)


def row(indices: Any, values: Any, size: int | None = 4) -> dict[str, Any]:
    return {"type": 0, "size": size, "indices": indices, "values": values}


GOOD = [
    row([1, 3], [5.0, -2.0]),
    {"type": 1, "size": None, "indices": None, "values": [1.0, 0.0, 0.0, 2.0]},
    row([], []),
]
MATRIX = [[0, 5, 0, -2], [1, 0, 0, 2], [0, 0, 0, 0]]


def test_rows_come_out_as_they_went_in() -> None:
    column = pa.array([row([0], [9.0]), *GOOD, row([3, 0], [1.0, 2.0], None)], KIND).slice(1)
    found, faults = sparse_rows(column, 4)
    np.testing.assert_array_equal(found.toarray(), [*MATRIX, [2, 0, 0, 1]])  # any order, and a size that is not known
    assert found.has_sorted_indices and not any(mask.any() for mask in faults.values())
    np.testing.assert_array_equal(from_vectors(column, 4)[0], found.toarray())
    packed = pack_sparse(found)
    np.testing.assert_array_equal(unpack_sparse(packed, 4).toarray(), found.toarray())
    np.testing.assert_array_equal(unpack_sparse(packed.slice(1, 2), 4).toarray(), found.toarray()[1:3])
    assert unpack_sparse(pack_sparse(found[:0]), 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (None, "null"),
        (row(None, [1.0]), "null"),
        (row([1], None), "null"),
        (row([1], [None]), "null"),
        (row([1], [1.0], 5), "width"),
        ({"type": 1, "size": None, "indices": None, "values": [1.0]}, "width"),
        (row([4], [1.0]), "indices"),
        (row([-1], [1.0]), "indices"),
        (row([None], [1.0]), "indices"),
        (row([1, 1], [1.0, 2.0]), "indices"),
        (row([1, 2], [1.0]), "indices"),
        (row([1], [float("nan")]), "nan"),
        (row([1], [1e39]), "infinite"),
    ],
)
def test_faults_are_told_apart_and_leave_other_rows_alone(bad: Any, fault: str) -> None:
    found, faults = sparse_rows(pa.array([GOOD[0], bad, *GOOD[1:]], KIND), 4)
    assert [name for name, mask in faults.items() if mask.any()] == [fault]
    assert faults[fault].tolist() == [False, True, False, False]
    np.testing.assert_array_equal(found.toarray()[[0, 2, 3]], MATRIX)


def test_indices_that_cannot_be_are_an_error_where_rows_are_embedded() -> None:
    with pytest.raises(InputError, match=r"1 of 2 rows .* repeat.*0 to 3"):
        read_rows([pa.array([GOOD[0], row([2, 2], [1.0, 1.0])], KIND)], 4, what="column 'v'", sparse=True)
