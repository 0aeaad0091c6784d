"""The candidates of a block of query rows, while leaf after leaf is compared with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ivis_spark.core.knn.metrics import Floats, Ints
from ivis_spark.core.knn.topk import bits_to_keys, smallest_columns, sortable_bits

_QUERY_BITS, _KEY_BITS = 14, 28  # of a packed candidate; the other bits number the rows
MOST_QUERIES = 1 << _QUERY_BITS
Flags = npt.NDArray[np.bool_]


class Candidates:
    """The nearest rows that a block of query rows has met.

    They are packed as query row, key and number, so that one sort of integers ranks all of them.

    Args:
        rows: Query rows.
        width: Candidates kept for each.
        number_bits: Bits of the largest number.
    """

    def __init__(self, rows: int, width: int, number_bits: int) -> None:
        self._rows, self._width, self._bits = rows, width, np.uint64(number_bits)
        self._key_bits = min(_KEY_BITS, 64 - _QUERY_BITS - number_bits)
        self._parts: list[npt.NDArray[np.uint64]] = []
        self._best = np.zeros(0, np.uint64)
        self._counts = np.zeros(rows, np.int64)
        self._limit = np.full(rows, np.inf, np.float32)

    def add(self, row: Ints, keys: Floats, first: int) -> None:
        """Take the keys (q, n) of query rows `row` and of the rows numbered from `first`."""
        limit = self._limit[row]
        if np.isinf(limit).all() and keys.shape[1] > self._width:
            column = smallest_columns(keys, self._width)
            candidate_keys, row = np.take_along_axis(keys, column, axis=1).reshape(-1), np.repeat(row, self._width)
            column = column.reshape(-1)
        else:
            flat = np.flatnonzero(keys <= limit[:, None])
            place = flat // keys.shape[1]
            candidate_keys, row, column = keys.reshape(-1)[flat], row[place], flat - place * keys.shape[1]
        packed = row.astype(np.uint64) << np.uint64(64 - _QUERY_BITS)
        bits = sortable_bits(candidate_keys, signed=True) >> np.uint32(32 - self._key_bits)
        packed |= bits.astype(np.uint64) << self._bits
        packed |= (column + first).astype(np.uint64)
        self._parts.append(packed)

    def settle(self) -> None:
        """Keep the nearest of each query row."""
        packed = np.concatenate([self._best, *self._parts])
        self._parts.clear()
        packed.sort()
        row = (packed >> np.uint64(64 - _QUERY_BITS)).astype(np.int64)
        place = np.arange(len(packed)) - np.searchsorted(row, np.arange(self._rows))[row]
        kept = place < self._width
        self._best, self._counts = packed[kept], np.bincount(row[kept], minlength=self._rows)
        self._limit = self.limit(self._width)

    def limit(self, k: int) -> Floats:
        """Return, rounded up, the key of the k-th candidate of each row; infinity where there are fewer."""
        starts = np.cumsum(self._counts) - self._counts
        full = self._counts >= k
        last = self._best[(starts + k - 1)[full]] >> self._bits
        bits = (last & np.uint64((1 << self._key_bits) - 1)) + np.uint64(1)
        bits = np.minimum(bits << np.uint64(32 - self._key_bits), np.uint64(2**32 - 1))
        limit = np.full(self._rows, np.inf, np.float32)
        limit[full] = bits_to_keys(bits.astype(np.uint32), signed=True)
        return limit

    def best(self) -> tuple[Ints, Flags]:
        """Return the numbers kept, int64 (q, width), and which places hold none."""
        missing = np.arange(self._width) >= self._counts[:, None]
        numbers = np.zeros(missing.shape, np.int64)
        numbers[~missing] = (self._best & np.uint64((1 << int(self._bits)) - 1)).astype(np.int64)
        return numbers, missing
