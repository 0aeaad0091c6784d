"""Triplets of row groups cut into batches, without copying their rows."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# tf.data runs the reader in a thread of its own, this far ahead: at most so many batches, and bytes, which should stay
# in the processor's caches.
_BATCHES_AHEAD, _BYTES_AHEAD = 64, 32 << 20


def rows_bytes(dims: int, triplets: int) -> int:
    """Return the bytes of the anchors and positives of some triplets."""
    return 2 * 4 * dims * triplets


def batches_ahead(dims: int, size: int) -> int:
    """Return how many batches of `size` triplets are ready at most."""
    return min(_BATCHES_AHEAD, max(2, _BYTES_AHEAD // rows_bytes(dims, size)))


@dataclass(frozen=True, eq=False)
class TripletGroup:
    """Triplets over shared rows.

    Attributes:
        rows: float32 (r, d).
        index: int32 (n, 2): places in `rows` of anchor and positive; of whole batches (batches, 2b).
        negative: int32 (n, negatives): places of the negatives in the batch; of whole batches (batches, b, negatives).
        weight: float32 (n,); of whole batches (batches, b). label: the same; zeros without
            labels; arrays of labels have c numbers more.
    """

    rows: NDArray[np.float32]
    index: NDArray[np.int32]
    negative: NDArray[np.int32]
    weight: NDArray[np.float32]
    label: NDArray[np.float32]

    def with_pairs(
        self, rows: NDArray[np.float32], index: NDArray[np.int32], cut: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> TripletGroup:
        """Return other pairs with what `cut` leaves of the columns that describe them."""
        return TripletGroup(rows, index, cut(self.negative), cut(self.weight), cut(self.label))


def _cut_batches(column: NDArray[Any], *, size: int, batches: int) -> NDArray[Any]:
    return column[: batches * size].reshape(batches, size, *column.shape[1:])


def whole_batches(groups: Iterator[TripletGroup], size: int) -> Iterator[TripletGroup]:
    """Cut groups into batches; the triplets that are left of a group go before those of the next."""
    left: TripletGroup | None = None
    for group in groups:
        if left is not None:
            group = TripletGroup(
                np.concatenate([left.rows, group.rows]),
                np.concatenate([left.index, group.index + np.int32(len(left.rows))]),
                np.concatenate([left.negative, group.negative]),
                np.concatenate([left.weight, group.weight]),
                np.concatenate([left.label, group.label]),
            )
        batches, rest = divmod(len(group.index), size)
        left = None
        if rest:
            places = group.index[-rest:]
            moved = np.arange(places.size, dtype=np.int32).reshape(places.shape)
            left = group.with_pairs(group.rows[places.reshape(-1)], moved, operator.itemgetter(slice(-rest, None)))
        if batches:
            cut = functools.partial(_cut_batches, size=size, batches=batches)
            index = cut(group.index).transpose(0, 2, 1).reshape(batches, -1)
            yield group.with_pairs(group.rows, index, cut)


def slice_batches(groups: Iterator[TripletGroup], first: int, stop: int) -> Iterator[TripletGroup]:
    """Yield the batches from `first` to before `stop`, and read no further."""
    done = 0
    for group in groups:
        count = len(group.index)
        kept = slice(max(first - done, 0), stop - done)
        if kept.start < count:
            yield group.with_pairs(group.rows, group.index[kept], operator.itemgetter(kept))
        done += count
        if done >= stop:
            return
