"""The k smallest keys of each row of a matrix, and keys with numbers packed so that one integer sort ranks both."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ivis_spark.core.knn.metrics import Floats, Ints

_NARROW = 384  # below this many columns a plain partial sort is as fast as the sampled threshold
_STRIDE = 16


def smallest_columns(keys: Floats, k: int) -> Ints:
    """Return the columns of the k smallest keys of each row, in any order: int64, shape (q, k).

    A partial sort moves every column; here a threshold from a sample of the columns discards most of them first, at
    the speed of a comparison. Rows for which the guess was too low are sorted in full.
    """
    rows, columns = keys.shape
    if k >= columns:
        return np.broadcast_to(np.arange(columns), keys.shape)
    if columns < max(_NARROW, 4 * k):
        return np.argpartition(keys, k - 1, axis=1)[:, :k]
    expected = k / _STRIDE
    rank = min(int(expected + 2.5 * np.sqrt(expected) + 1), keys[:, ::_STRIDE].shape[1] - 1)
    limit = np.partition(keys[:, ::_STRIDE], rank, axis=1)[:, rank]
    flat = np.flatnonzero(keys <= limit[:, None])
    row = flat // columns
    counts = np.bincount(row, minlength=rows)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    few = np.full((rows, int(counts.max())), np.inf, dtype=np.float32)
    few[row, place] = keys.reshape(-1)[flat]
    candidates = np.zeros(few.shape, dtype=np.int64)
    candidates[row, place] = flat - row * columns
    if few.shape[1] <= k:
        return np.argpartition(keys, k - 1, axis=1)[:, :k]
    picked = np.argpartition(few, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(candidates, picked, axis=1)
    short = counts < k
    if short.any():
        values[short] = np.argpartition(keys[short], k - 1, axis=1)[:, :k]
    return values


def sortable_bits(keys: Floats, *, signed: bool) -> npt.NDArray[np.uint32]:
    """Return uint32 that order as the float32 keys do. Without negative keys the bits themselves do."""
    bits = (keys + np.float32(0)).view(np.uint32)  # + 0 makes -0 one with 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) if signed else bits


def bits_to_keys(bits: npt.NDArray[np.uint32], *, signed: bool) -> Floats:
    """Undo `sortable_bits`."""
    if signed:
        bits = np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), ~bits)
    return bits.view(np.float32)


def pack_keys(keys: Floats, numbers: npt.NDArray[Any], *, signed: bool) -> npt.NDArray[np.uint64]:
    """Return uint64 that order by key, then by number (below 2**32): one sort does for both."""
    packed = sortable_bits(keys, signed=signed).astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= numbers.view(np.uint64) if numbers.dtype == np.int64 else numbers.astype(np.uint64)
    return packed


def unpack_keys(packed: npt.NDArray[np.uint64], *, signed: bool) -> tuple[Ints, Floats]:
    """Return the numbers int64 and keys float32 of what `pack` made."""
    halves = np.ascontiguousarray(packed).view(np.uint32).reshape(*packed.shape, 2)
    low, high = (0, 1) if np.little_endian else (1, 0)
    return halves[..., low].astype(np.int64), bits_to_keys(np.ascontiguousarray(halves[..., high]), signed=signed)


def in_order(numbers: Ints, keys: Floats, k: int) -> tuple[Ints, Floats]:
    """Sort candidates by (key, number) and keep k of them."""
    signed = bool((keys < 0).any())
    packed = pack_keys(keys, numbers, signed=signed)
    packed.sort(axis=1)
    return unpack_keys(packed[:, :k], signed=signed)
