"""Lists of neighbours: several of one row made one, and the row itself left out.

Lists are (ids, keys) of shape (rows, k), nearest first; missing ones have id `NO_ID` and key infinity.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ivis_spark.core.knn.metrics import Floats, Ints
from ivis_spark.core.knn.topk import pack_keys, unpack_keys

NO_ID = -(2**63)  # not -1, which a table may hold as an id
_MERGE_ROWS = 8192
_NONE = np.uint64(2**64 - 1)


def ties_by_id(ids: Ints, keys: Floats) -> tuple[Ints, Floats]:
    """Return lists that are sorted by key with equal keys sorted by id."""
    tied = (keys[:, 1:] == keys[:, :-1]).any(axis=1)
    if tied.any():
        order = np.lexsort((ids[tied], keys[tied]), axis=1)
        ids = ids.copy()
        ids[tied] = np.take_along_axis(ids[tied], order, axis=1)
    return ids, keys


def without_self(ids: Ints, keys: Floats, own: Ints, k: int) -> tuple[Ints, Floats]:
    """Take each row itself out of its list, or the last entry where it is not in it; fill up to k."""
    hit = ids == own[:, None]
    if ids.shape[1] > k:
        hit[~hit.any(axis=1), -1] = True
        keep = ~hit
        return ids[keep].reshape(-1, k), keys[keep].reshape(-1, k)
    out_ids = np.full((len(ids), k), NO_ID, dtype=np.int64)
    out_keys = np.full((len(ids), k), np.inf, dtype=np.float32)
    keep = ~hit
    fill = np.arange(k) < keep.sum(axis=1)[:, None]
    out_ids[fill], out_keys[fill] = ids[keep], keys[keep]
    return out_ids, out_keys


def merge_top_k(row_ids: Ints, ids: Ints, keys: Floats, k: int) -> tuple[Ints, Ints, Floats]:
    """Merge several lists of neighbours of each row into one.

    Args:
        row_ids: int64, shape (m,): the row each list belongs to; a row may have any number of lists.
        ids: int64, shape (m, c): neighbours; `NO_ID` where a list is shorter.
        keys: float32, shape (m, c): infinity there.
        k: Neighbours to keep.

    Returns:
        rows int64 (u,), ascending, ids int64 (u, k), keys float32 (u, k): duplicates removed, nearest first, ties by
        id; `NO_ID` and infinity where a row has fewer.
    """
    order = np.argsort(row_ids, kind="stable")
    rows, starts, counts = np.unique(row_ids[order], return_index=True, return_counts=True)
    out_ids = np.full((len(rows), k), NO_ID, dtype=np.int64)
    out_keys = np.full((len(rows), k), np.inf, dtype=np.float32)
    real = ids[ids != NO_ID]
    low = int(real.min()) if real.size else 0
    narrow = not real.size or int(real.max()) - low < 2**32 - 1
    merge = _merge_narrow if narrow else _merge_wide
    for count in np.unique(counts):
        same = np.flatnonzero(counts == count)
        for at in range(0, len(same), _MERGE_ROWS):
            some = same[at : at + _MERGE_ROWS]
            lists = order[starts[some, None] + np.arange(count)]
            width = count * ids.shape[1]
            merged_ids, merged_keys = merge(ids[lists].reshape(-1, width), keys[lists].reshape(-1, width), k, low)
            out_ids[some, : merged_ids.shape[1]], out_keys[some, : merged_ids.shape[1]] = merged_ids, merged_keys
    return rows, out_ids, out_keys


def _merge_narrow(ids: Ints, keys: Floats, k: int, low: int) -> tuple[Ints, Floats]:
    """Merge by sorting one integer, key above id: half the moves of sorting two arrays."""
    signed = bool((keys < 0).any())
    packed = pack_keys(keys, ids - low, signed=signed)
    if (missing := ids == NO_ID).any():
        packed[missing] = _NONE
    packed.sort(axis=1)
    packed = _without_repeats(packed, k)
    merged_ids, merged_keys = unpack_keys(packed, signed=signed)
    merged_ids += low
    if (missing := packed == _NONE).any():
        merged_ids[missing], merged_keys[missing] = NO_ID, np.inf
    return merged_ids, merged_keys


def _without_repeats(packed: npt.NDArray[np.uint64], k: int) -> npt.NDArray[np.uint64]:
    """Return the first k different values of each sorted row; `_NONE` where there are fewer."""
    first = np.ones(packed.shape, dtype=bool)
    np.not_equal(packed[:, 1:], packed[:, :-1], out=first[:, 1:])
    if first[:, :k].all():
        return packed[:, :k]
    place = np.cumsum(first, axis=1, dtype=np.int32)
    first &= place <= k
    if (place[:, -1] >= k).all():
        return packed[first].reshape(-1, k)
    out = np.full((len(packed), k), _NONE, dtype=np.uint64)
    row, column = np.nonzero(first)
    out[row, place[row, column] - 1] = packed[row, column]
    return out


def _merge_wide(ids: Ints, keys: Floats, k: int, low: int) -> tuple[Ints, Floats]:
    """Merge ids that need 64 bits."""
    keys = np.where(ids == NO_ID, np.float32(np.inf), keys)
    for repeat in range(2):
        order = np.argsort(ids, axis=1, kind="stable")
        ids, keys = np.take_along_axis(ids, order, axis=1), np.take_along_axis(keys, order, axis=1)
        order = np.argsort(keys, axis=1, kind="stable")
        ids, keys = np.take_along_axis(ids, order, axis=1), np.take_along_axis(keys, order, axis=1)
        if repeat == 0:
            twice = (ids[:, 1:] == ids[:, :-1]) & (keys[:, 1:] == keys[:, :-1])
            ids[:, 1:][twice], keys[:, 1:][twice] = NO_ID, np.inf
    return ids[:, :k], keys[:, :k]
