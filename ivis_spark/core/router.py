"""The router: balanced cells of the space, learnt on a sample, that say where a row is searched.

A cell is a centroid; a row belongs to the nearest. Cells with too many rows are split by k-means on a sample of them;
where that cannot help because the rows are equal, they are dealt out by a hash of their ids to several cells with the
same centroid. Cells with too few rows are dropped, so that their rows move to the next nearest. With many cells the
centroids stand in groups, and a row looks only into its nearest groups: about sqrt(cells) distances a row.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ivis_spark.core.spaces import Floats, Ints, Space
from ivis_spark.errors import ArtifactError

_FLAT_CELLS = 1024  # up to here one matrix product over all centroids is cheaper than two levels
_PROBED_GROUPS = 6
_BLOCK_ROWS = 4096
_LLOYD_ROUNDS = 8
_SAMPLE_PER_CELL = 64
_MOST_PIECES = 128  # of one split: more cells come from splitting the pieces
_SEEDS_PER_PIECE = 32
_TYPICAL_DIMS = 8  # intrinsic dimensions by which the pieces of a split cell are taken to shrink
SPREAD = 0.6  # mean rows of a cell, as a share of the most allowed: k-means cells vary in size
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Router:
    """Where rows are searched.

    Attributes:
        metric: Metric of the rows.
        centroids: float32, shape (c, r), in the routing space of the metric.
        parts: int64, shape (c,): among how many cells the rows of a centroid are dealt out; mostly 1.
        sizes: float32, shape (c,): mean distance of a centroid's rows to it.
        norm_bound: Largest norm seen, for dot.
        groups: float32, shape (g, r), and members: list of centroid numbers of each; empty if there is one level.
    """

    metric: str
    centroids: Floats
    parts: Ints
    sizes: Floats
    norm_bound: float
    groups: Floats
    members: tuple[Ints, ...]

    @classmethod
    def make(cls, metric: str, centroids: Floats, parts: Ints, sizes: Floats, norm_bound: float) -> Router:
        """Make a router of centroids, grouping them if they are many."""
        groups: Floats = centroids[:0]
        members: tuple[Ints, ...] = ()
        if len(centroids) > _FLAT_CELLS:
            groups, members = _group(centroids, _is_l1(metric))
        centroids = np.ascontiguousarray(centroids)
        return cls(metric, centroids, np.asarray(parts, np.int64), sizes, norm_bound, groups, members)

    @property
    def n_cells(self) -> int:
        """Number of cells: centroids, times the cells that share one."""
        return int(self.parts.sum())

    @property
    def first_cell(self) -> Ints:
        """int64, shape (c,): number of the first cell of each centroid."""
        return np.asarray(np.cumsum(self.parts) - self.parts)

    def centroid_of_cell(self) -> Ints:
        """Return int64, shape (n_cells,)."""
        return np.repeat(np.arange(len(self.parts)), self.parts)

    def rank(
        self, X: npt.NDArray[Any], ids: Ints, width: int, *, as_queries: bool = False
    ) -> tuple[npt.NDArray[np.int32], Floats]:
        """Return the cells nearest to each row.

        Args:
            X: Rows as they came, shape (n, d).
            ids: int64, shape (n,); deals rows out where several cells share a centroid.
            width: How many cells to return a row.
            as_queries: For metrics that route queries and rows differently.

        Returns:
            cells int32 (n, w) and depths float32 (n, w), nearest first, w = min(width, centroids). A depth is how far
            the row is from the border to that cell, over the larger mean distance of the two cells' rows to their
            centroids; 0 for the nearest cell and on the border.
        """
        space = Space(self.metric)
        rows = space.prepare(X)
        route = space.route_queries if as_queries else space.route_rows
        width = min(width, len(self.centroids))
        numbers = np.empty((len(rows), width), dtype=np.int64)
        near = np.empty((len(rows), width), dtype=np.float32)
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            numbers[part], near[part] = self._nearest(route(rows[part], self.norm_bound), width)
        depths = self._depths(numbers, near)
        dealt = hash_ids(ids, 0)[:, None] % self.parts[numbers].astype(np.uint64)
        return (self.first_cell[numbers] + dealt.astype(np.int64)).astype(np.int32), depths

    def _depths(self, numbers: Ints, near: Floats) -> Floats:
        """Return the depths of `rank`; for L1, half the difference of the distances stands for the border's."""
        behind = (near - near[:, :1]) / 2
        if not _is_l1(self.metric):
            behind /= np.maximum(self._apart(numbers), np.finfo(np.float32).tiny)
        sizes = np.maximum(self.sizes[numbers], self.sizes[numbers[:, :1]])
        with np.errstate(over="ignore"):  # cells of equal rows have no size: all others are infinitely deep
            depths = np.maximum(behind, 0) / np.maximum(sizes, np.finfo(np.float32).tiny)
        depths[:, 0] = 0
        return np.asarray(depths, dtype=np.float32)

    def _apart(self, numbers: Ints) -> Floats:
        """Return the distances between the nearest centroid of each row and its others."""
        if self.members:
            apart = np.empty(numbers.shape, dtype=np.float32)
            for start in range(0, len(numbers), _BLOCK_ROWS):
                some = numbers[start : start + _BLOCK_ROWS]
                keys = Space("euclidean").pair_keys(self.centroids[some[:, 0]], self.centroids, some)
                apart[start : start + _BLOCK_ROWS] = np.sqrt(keys)
            return apart
        between = np.sqrt(_pair_distances(self.centroids, self.centroids, self.metric))
        return np.asarray(between[numbers[:, :1], numbers])

    def assign(
        self, X: npt.NDArray[Any], ids: Ints, *, overlap: int, cut: float, as_queries: bool = False
    ) -> tuple[Ints, npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return (row, cell) pairs: each row in its nearest cell, and in up to `overlap` that are nearly as near.

        Args:
            X: Rows, shape (n, d).
            ids: int64, shape (n,).
            overlap: Most cells of a row.
            cut: A further cell is taken if the row's depth behind the border to it is at most this.
            as_queries: As in `rank`.

        Returns:
            rows int64 (p,), cells int32 (p,), home bool (p,): whether it is the row's nearest cell.
        """
        cells, depths = self.rank(X, ids, overlap, as_queries=as_queries)
        taken = depths <= np.float32(cut)
        rows, order = np.nonzero(taken)
        return rows, cells[taken], order == 0

    def save(self, folder: str) -> list[str]:
        """Write `router.npz` and `router.json` into a local folder; return their names."""
        with open(os.path.join(folder, "router.npz"), "wb") as file:
            np.savez(file, centroids=self.centroids, parts=self.parts, sizes=self.sizes)
        head = {"format": _FORMAT, "metric": self.metric, "norm_bound": self.norm_bound, "cells": self.n_cells}
        with open(os.path.join(folder, "router.json"), "w", encoding="utf-8") as text:
            json.dump(head, text, indent=2)
        return ["router.json", "router.npz"]

    @classmethod
    def load(cls, folder: str) -> Router:
        """Read what `save` wrote. Nothing is unpickled.

        Raises:
            ArtifactError: if a file is missing or not a router's.
        """
        try:
            with open(os.path.join(folder, "router.json"), encoding="utf-8") as text:
                head = json.load(text)
            with np.load(os.path.join(folder, "router.npz"), allow_pickle=False) as arrays:
                parts, sizes, bound = arrays["parts"], arrays["sizes"], float(head["norm_bound"])
                return cls.make(head["metric"], arrays["centroids"], parts, sizes, bound)
        except (OSError, ValueError, KeyError) as err:
            raise ArtifactError(f"{folder} holds no usable router ({err}); build the neighbours anew") from err

    def _nearest(self, rows: Floats, width: int) -> tuple[Ints, Floats]:
        """Return the numbers of the `width` nearest centroids of routed rows and the keys to them, nearest first."""
        if not self.members:
            return _smallest(_pair_distances(rows, self.centroids, self.metric), width)
        probed = min(_PROBED_GROUPS, len(self.members))
        groups, _ = _smallest(_pair_distances(rows, self.groups, self.metric), probed)
        numbers = np.zeros((len(rows), probed, width), dtype=np.int64)
        keys = np.full((len(rows), probed, width), np.inf, dtype=np.float32)
        for group in np.unique(groups):
            row, place = np.nonzero(groups == group)
            own = self.members[group]
            found, near = _smallest(_pair_distances(rows[row], self.centroids[own], self.metric), min(width, len(own)))
            numbers[row, place, : found.shape[1]] = own[found]
            keys[row, place, : found.shape[1]] = near
        flat = keys.reshape(len(rows), -1)
        best, near = _smallest(flat, width)
        return np.take_along_axis(numbers.reshape(len(rows), -1), best, axis=1), near


def sample_size(n_rows: int, max_cell_rows: int, row_bytes: int, budget_bytes: int) -> int:
    """Return how many rows to sample for a router: enough a cell, and no more than the budget holds."""
    cells = max(1, round(n_rows / (SPREAD * max_cell_rows)))
    return min(n_rows, max(cells * _SAMPLE_PER_CELL, 4096), max(1024, budget_bytes // max(1, row_bytes)))


def learn_router(
    sample: npt.NDArray[Any], n_rows: int, metric: str, *, max_cell_rows: int, min_cell_rows: int, random_state: int
) -> Router:
    """Learn balanced cells on a sample.

    Runs on: driver. Deterministic. Memory: O(sample).

    Args:
        sample: Rows drawn evenly, shape (s, d).
        n_rows: Rows of the whole table.
        metric: Metric of the rows.
        max_cell_rows: Most rows of the table that may call a cell their nearest, as far as the sample can tell.
        min_cell_rows: Cells with fewer are dropped.
        random_state: Seed.
    """
    space = Space(metric)
    rows = space.prepare(sample)
    bound = space.norm_bound(rows)
    routed = space.route_rows(rows, bound)
    centre = _means(routed, np.zeros(len(routed), np.int64), metric)
    router = Router.make(metric, centre, np.ones(1, np.int64), np.ones(1, np.float32), bound)
    rng = np.random.default_rng(random_state)
    for _ in range(8):
        labels = _labels(router, routed)
        counts = np.bincount(labels, minlength=len(router.centroids)) * (n_rows / len(routed))
        changed = _rebalance(router, counts, (routed, labels), max_cell_rows, min_cell_rows, rng=rng)
        if changed is None:
            break
        router = changed
    return dataclasses.replace(router, sizes=_sizes(router, routed))


def refine(
    router: Router,
    counts: Ints,
    sample: npt.NDArray[Any],
    *,
    max_cell_rows: int,
    min_cell_rows: int,
    random_state: int,
    last: bool = False,
) -> Router | None:
    """Return a router with better balanced cells, or None if all are well.

    Args:
        router: The router to mend.
        counts: int64, shape (n_cells,): rows of the whole table that call each cell their nearest.
        sample: Rows drawn from the cells with more than `max_cell_rows`; may be empty.
        max_cell_rows: As in `learn_router`.
        min_cell_rows: As in `learn_router`.
        random_state: Seed.
        last: Deal rows out by hash instead of splitting the space: costs recall there, but always balances.
    """
    space = Space(router.metric)
    routed = space.route_rows(space.prepare(sample), router.norm_bound)
    labels = _labels(router, routed)
    by_centroid = np.bincount(router.centroid_of_cell(), weights=counts, minlength=len(router.parts))
    rng = np.random.default_rng(random_state)
    return _rebalance(router, by_centroid, (routed, labels), max_cell_rows, min_cell_rows, rng=rng, deal_only=last)


def hash_ids(ids: Ints, seed: int) -> npt.NDArray[np.uint64]:
    """Return a well mixed uint64 of each id (the finaliser of SplitMix64)."""
    z = ids.astype(np.int64).view(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (2 * seed + 1)) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _rebalance(
    router: Router,
    counts: npt.NDArray[Any],
    sample: tuple[Floats, Ints],
    max_rows: int,
    min_rows: int,
    *,
    rng: np.random.Generator,
    deal_only: bool = False,
) -> Router | None:
    """Split centroids above `max_rows` a cell, drop those below `min_rows`; None if there is nothing to do."""
    routed, labels = sample
    wanted = SPREAD * max_rows
    centroids: list[Floats] = []
    parts: list[int] = []
    sizes: list[float] = []
    changed = False
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(router.centroids) + 1))
    largest = int(np.argmax(counts))
    for number, (count, part) in enumerate(zip(counts, router.parts, strict=True)):
        centre = router.centroids[number][None]
        if count > max_rows * part:
            members = routed[order[bounds[number] : bounds[number + 1]]]
            pieces = centre if deal_only else _split(members, int(np.ceil(count / wanted)), router.metric, rng)
            if len(pieces) > 1:
                centroids += list(pieces)
                parts += [1] * len(pieces)
                sizes += [float(router.sizes[number]) * len(pieces) ** (-1 / _TYPICAL_DIMS)] * len(pieces)
            else:
                centroids.append(centre[0])
                parts.append(int(np.ceil(count / wanted)))
                sizes.append(float(router.sizes[number]))
            changed = True
        elif count >= min_rows * part or (number == largest and part == 1):
            centroids.append(centre[0])
            parts.append(int(part))
            sizes.append(float(router.sizes[number]))
        else:
            changed = True
            fewer = int(count // max(min_rows, wanted))
            if part > 1 or number == largest:
                centroids.append(centre[0])
                parts.append(max(1, min(fewer, int(part) - 1)))
                sizes.append(float(router.sizes[number]))
    if not changed:
        return None
    return Router.make(
        router.metric, np.stack(centroids), np.array(parts), np.array(sizes, np.float32), router.norm_bound
    )


def _split(members: Floats, pieces: int, metric: str, rng: np.random.Generator) -> Floats:
    """Return up to `pieces` different centroids of the members; one if they cannot be told apart."""
    pieces = min(pieces, _MOST_PIECES, len(members) // 2)
    if pieces < 2 or not np.any(members != members[0]):
        return members[:1]
    few = members[rng.choice(len(members), min(len(members), _SEEDS_PER_PIECE * pieces), replace=False)]
    centroids = _spread_out(few, pieces, metric, rng)
    for _ in range(_LLOYD_ROUNDS):
        labels = np.concatenate(
            [
                _pair_distances(members[at : at + _BLOCK_ROWS], centroids, metric).argmin(axis=1)
                for at in range(0, len(members), _BLOCK_ROWS)
            ]
        )
        centroids = _means(members, labels, metric)
        if len(centroids) < 2:
            break
    return centroids


def _spread_out(rows: Floats, pieces: int, metric: str, rng: np.random.Generator) -> Floats:
    """Choose starting centroids far from each other (k-means++); equal rows are never chosen twice."""
    chosen = [int(rng.integers(len(rows)))]
    nearest = _differences(rows, rows[chosen[0]], metric)
    while len(chosen) < pieces and nearest.any():
        chosen.append(int(rng.choice(len(rows), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, _differences(rows, rows[chosen[-1]], metric))
    return rows[chosen]


def _differences(rows: Floats, row: Floats, metric: str) -> npt.NDArray[np.float64]:
    difference = np.subtract(rows, row, dtype=np.float64)
    return np.asarray(np.abs(difference).sum(axis=1) if _is_l1(metric) else np.square(difference).sum(axis=1))


def _means(members: Floats, labels: Ints, metric: str) -> Floats:
    """Return the centre of each label that has members, as one array."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    if _is_l1(metric):
        return np.stack([np.median(part, axis=0) for part in np.split(members[order], starts[1:])]).astype(np.float32)
    sums = np.add.reduceat(members[order], starts, axis=0, dtype=np.float64)
    sizes = np.diff(starts, append=len(labels))
    return np.asarray(sums / sizes[:, None], dtype=np.float32)


def _sizes(router: Router, routed: Floats) -> Floats:
    """Return the mean distance of each centroid's rows to it; the median of all where a centroid has no rows."""
    labels, near = _nearest_one(router, routed)
    far = near.astype(np.float64) if _is_l1(router.metric) else np.sqrt(near.astype(np.float64))
    counts = np.bincount(labels, minlength=len(router.centroids))
    sizes = np.bincount(labels, weights=far, minlength=len(counts)) / np.maximum(counts, 1)
    sizes[counts == 0] = np.median(sizes[counts > 0])
    return sizes.astype(np.float32)


def _group(centroids: Floats, l1: bool) -> tuple[Floats, tuple[Ints, ...]]:
    """Return about sqrt(c) group centres and the numbers of the centroids in each."""
    metric = "manhattan" if l1 else "euclidean"
    wanted = int(np.sqrt(len(centroids)))
    few = np.random.default_rng(0).choice(len(centroids), wanted, replace=False)
    groups = centroids[np.sort(few)]
    for _ in range(_LLOYD_ROUNDS):
        labels = _pair_distances(centroids, groups, metric).argmin(axis=1)
        groups = _means(centroids, labels, metric)
    labels = _pair_distances(centroids, groups, metric).argmin(axis=1)
    used = np.unique(labels)
    return groups[used], tuple(np.flatnonzero(labels == label) for label in used)


def _labels(router: Router, routed: Floats) -> Ints:
    """Return the nearest centroid of each routed row."""
    return _nearest_one(router, routed)[0]


def _nearest_one(router: Router, routed: Floats) -> tuple[Ints, Floats]:
    """Return the nearest centroid of each routed row and the key to it."""
    if not len(routed):
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    found = [router._nearest(routed[at : at + _BLOCK_ROWS], 1) for at in range(0, len(routed), _BLOCK_ROWS)]
    return np.concatenate([part[0][:, 0] for part in found]), np.concatenate([part[1][:, 0] for part in found])


def _pair_distances(rows: Floats, centroids: Floats, metric: str) -> Floats:
    """Return float32 (n, c): squared euclidean distances, or L1 ones for manhattan."""
    if _is_l1(metric):
        return Space("manhattan").target(centroids).rank_keys(rows)
    keys = Space("euclidean").target(centroids)
    return keys.squared(rows)


def _is_l1(metric: str) -> bool:
    return metric == "manhattan"


def _smallest(keys: Floats, width: int) -> tuple[Ints, Floats]:
    """Return positions and values of the smallest keys of each row, in order."""
    if width < keys.shape[1]:
        positions = np.argpartition(keys, width - 1, axis=1)[:, :width]
    else:
        positions = np.broadcast_to(np.arange(keys.shape[1]), keys.shape)
    near = np.take_along_axis(keys, positions, axis=1)
    order = np.argsort(near, axis=1, kind="stable")
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(near, order, axis=1)
