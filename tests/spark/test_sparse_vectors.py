"""Sparse rows in Arrow columns, without Spark."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.errors import InputError
from ivis_spark.serving.encoder import Encoder
from ivis_spark.spark.embedding.embed import Carried, Outputs, embed_batches
from ivis_spark.spark.neighbours import query
from ivis_spark.spark.vectors import from_vectors, pack_sparse, sparse_rows, unpack_sparse

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


def test_rows_with_wrong_indices_are_treated_as_other_invalid_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As embed.invalid and data.invalid say; indices are long where they come from a column of their own."""
    kind = pa.struct([*(field for field in KIND if field.name != "indices"), ("indices", pa.list_(pa.int64()))])
    column = pa.array([GOOD[0], row([2, 2], [1.0, 1.0]), row([2**32 + 1], [1.0]), GOOD[2]], kind)
    batch = pa.RecordBatch.from_arrays([pa.array([1, 2, 3, 4]), column], ["id", "v"])
    encoder = Encoder(DenseNetwork((DenseLayer.of(np.eye(4)[:, :2], None, "linear"),)), None)

    def embedded(invalid: str) -> dict[str, Any]:
        shared, outputs = Carried(encoder), Outputs()
        (found,) = embed_batches(
            iter([batch]), shared=shared, invalid=invalid, features=("v",), kept=[0], outputs=outputs, counts=None
        )
        return found.to_pydict()

    assert embedded("drop") == {"id": [1, 4], "embedding": [[0, 5], [0, 0]]}
    assert embedded("null") == {"id": [1, 2, 3, 4], "embedding": [[0, 5], None, None, [0, 0]]}
    with pytest.raises(InputError, match=r"2 of 4 rows .* \(indices that repeat, .* in column 'v'\): fix them, or"):
        embedded("error")

    class Index:
        dims = 4

        def transform(self, rows: Any) -> Any:
            return rows.toarray()

        def primary(self, rows: Any) -> Any:
            return np.zeros(len(rows), np.int32)

    search = functools.partial(query._with_regions, load=Index, features=("v",), carried=[0])
    (found,) = search(iter([batch]), drop=True)
    assert found.column(0).to_pylist() == [1, 4]
    with pytest.raises(InputError, match=r"2 of 4 rows .* \(indices that repeat, .* in column 'v'\): fix them, or"):
        list(search(iter([batch]), drop=False))
