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
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ivis_spark.core.knn.kmeans import lloyd, means, nearest_numbers, split_rows
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.nearest import Near, merged, nearest
from ivis_spark.core.knn.overlap import CUTS
from ivis_spark.errors import UNREADABLE, ArtifactError

_FLAT_CELLS = 1024  # up to here one matrix product over all centroids is cheaper than two levels
_PROBED_GROUPS = 6
_BLOCK_ROWS = 4096
_GROUPED_ROWS = 16384  # with groups, so that each is asked by many rows at once
_SAMPLE_PER_CELL = 64
_DEPTH_ROUNDING = 1e-6  # of a depth, relative: some operations in float32
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

    FILES: ClassVar[list[str]] = ["router.json", "router.npz"]

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
            groups, members = _group(centroids, metric)
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
            centroids; 0 for the nearest cell and on the border. The cells, and the smallest of `CUTS` that is not
            below a depth, are the same whatever rows stand beside a row.
        """
        space = Space(self.metric)
        rows = space.prepare(X)
        route = space.route_queries if as_queries else space.route_rows
        width = min(width, len(self.centroids))
        numbers = np.empty((len(rows), width), dtype=np.int64)
        depths = np.empty((len(rows), width), dtype=np.float32)
        between = self._between()
        step = _GROUPED_ROWS if self.members else _BLOCK_ROWS
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            numbers[part], depths[part] = self._rank_block(route(rows[part], self.norm_bound), width, between)
        dealt = hash_ids(ids, 0)[:, None] % self.parts[numbers].astype(np.uint64)
        return (self.first_cell[numbers] + dealt.astype(np.int64)).astype(np.int32), depths

    def _rank_block(self, routed: Floats, width: int, between: tuple[Floats, float]) -> tuple[Ints, Floats]:
        """Return the numbers of the nearest centroids of routed rows and the depths, exact ones beside a cut."""
        found = self._nearest(routed, width)
        squared, squared_error = between
        if len(squared):
            apart = np.sqrt(squared[found.numbers[:, :1], found.numbers])
        else:
            apart = self._apart(found.numbers)
        depths, error = self._depths(found, apart, squared_error)
        low, high = np.searchsorted(CUTS, depths - error), np.searchsorted(CUTS, depths + error)
        if (doubt := (low != high).any(axis=1)).any():
            numbers = found.numbers[doubt]
            keys = _routing_space(self.metric).pair_keys(routed[doubt], self.centroids, numbers)
            depths[doubt] = self._depths(Near(numbers, keys, np.zeros_like(keys)), self._apart(numbers), 0.0)[0]
        return found.numbers, depths

    def _depths(self, found: Near, apart: Floats, squared_error: float) -> tuple[Floats, Floats]:
        """Return the depths of `rank` and how far they may be off.

        For L1, half the difference of the distances stands for the border's.
        """
        tiny = np.finfo(np.float32).tiny
        behind = np.maximum(found.keys - found.keys[:, :1], 0) / 2
        error = (found.slack + found.slack[:, :1]) / 2 + _DEPTH_ROUNDING * behind
        sizes = np.maximum(np.maximum(self.sizes[found.numbers], self.sizes[found.numbers[:, :1]]), tiny)
        with np.errstate(over="ignore", invalid="ignore"):  # cells of equal rows have no size: infinitely deep
            if self.metric != "manhattan":
                apart = np.maximum(apart, tiny)
                error = (error + behind * (squared_error / apart) / apart) / apart
                behind = behind / apart
            depths, error = behind / sizes, error / sizes
        depths[:, 0] = error[:, 0] = 0
        error[~np.isfinite(depths - error)] = np.finfo(np.float32).max
        return np.minimum(depths, np.finfo(np.float32).max), error

    def _apart(self, numbers: Ints) -> Floats:
        """Return the exact distances between the nearest centroid of each row and its others."""
        apart = np.empty(numbers.shape, dtype=np.float32)
        for start in range(0, len(numbers), _BLOCK_ROWS):
            some = numbers[start : start + _BLOCK_ROWS]
            apart[start : start + _BLOCK_ROWS] = Space("euclidean").pair_keys(
                self.centroids[some[:, 0]], self.centroids, some
            )
        return np.asarray(np.sqrt(apart))

    def _between(self) -> tuple[Floats, float]:
        """Return the squared distances between all centroids and their error; nothing if there are too many."""
        if self.members or self.metric == "manhattan":
            return np.zeros((0, 0), np.float32), 0.0
        target = Space("euclidean").target(self.centroids)
        squared = target.squared(self.centroids)
        return squared, float(target.slack(self.centroids, squared).max())

    def assign(
        self,
        X: npt.NDArray[Any],
        ids: Ints,
        *,
        overlap: int,
        cut: float,
        as_queries: bool = False,
        cell_rows: Ints | None = None,
        least: int = 0,
    ) -> tuple[Ints, npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return (row, cell) pairs: each row in its nearest cell, and in up to `overlap` that are nearly as near.

        Args:
            X: Rows, shape (n, d).
            ids: int64, shape (n,).
            overlap: Most cells of a row.
            cut: A further cell is taken if the row's depth behind the border to it is at most this.
            as_queries: As in `rank`.
            cell_rows: int64, shape (n_cells,): rows of each cell, none counted twice; None if all hold enough.
            least: Rows wanted in a row's cells: where they hold fewer, the next nearest are taken as well.

        Returns:
            rows int64 (p,), cells int32 (p,), home bool (p,): whether it is the row's nearest cell.
        """
        cells, depths = self.rank(X, ids, overlap, as_queries=as_queries)
        taken = depths <= np.float32(cut)
        short = np.zeros(len(cells), dtype=bool)
        if cell_rows is not None and cells.shape[1]:
            reach = np.cumsum(cell_rows[cells], axis=1)
            taken |= reach - cell_rows[cells] < least
            if cells.shape[1] < len(self.centroids):
                short = reach[:, -1] < least
                taken[short] = False
        rows, order = np.nonzero(taken)
        found = rows, cells[taken], order == 0
        if not short.any():
            return found
        numbers = np.flatnonzero(short)
        rows, further, home = self.assign(
            np.asarray(X)[numbers],
            ids[numbers],
            overlap=4 * overlap,
            cut=cut,
            as_queries=as_queries,
            cell_rows=cell_rows,
            least=least,
        )
        return (
            np.concatenate([found[0], numbers[rows]]),
            np.concatenate([found[1], further]),
            np.concatenate([found[2], home]),
        )

    def save(self, folder: str) -> list[str]:
        """Write `router.npz` and `router.json` into a local folder; return their names."""
        with open(os.path.join(folder, "router.npz"), "wb") as file:
            np.savez(file, centroids=self.centroids, parts=self.parts, sizes=self.sizes)
        head = {"format": _FORMAT, "metric": self.metric, "norm_bound": self.norm_bound, "cells": self.n_cells}
        with open(os.path.join(folder, "router.json"), "w", encoding="utf-8") as text:
            json.dump(head, text, indent=2)
        return self.FILES

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
                centroids = arrays["centroids"]
            if centroids.ndim != 2 or {parts.shape, sizes.shape} != {centroids.shape[:1]} or (parts < 1).any():
                raise ValueError(f"shapes {centroids.shape}, {parts.shape} and {sizes.shape} do not go together")
            return cls.make(head["metric"], centroids, parts, sizes, bound)
        except UNREADABLE as err:
            raise ArtifactError(f"{folder} holds no usable router ({err}); build the neighbours anew") from err

    def _nearest(self, rows: Floats, width: int) -> Near:
        """Return the `width` centroids nearest to each routed row."""
        space = _routing_space(self.metric)
        if not self.members:
            return nearest(rows, self.centroids, width, space)
        probed = min(_PROBED_GROUPS, len(self.members))
        groups = nearest(rows, self.groups, probed, space).numbers
        found = Near.empty(len(rows), probed * width)
        for group in np.unique(groups):
            row, place = np.nonzero(groups == group)
            own = self.members[group]
            near = nearest(rows[row], self.centroids[own], min(width, len(own)), space)
            columns = place[:, None] * width + np.arange(near.keys.shape[1])
            found.put((row[:, None], columns), Near(own[near.numbers], near.keys, near.slack))
        return merged(rows, self.centroids, found, width, space)


def sample_size(n_rows: int, max_cell_rows: int, row_bytes: int, budget_bytes: int) -> int:
    """Return how many rows to sample for a router: enough a cell, and no more than the budget holds."""
    cells = max(1, round(n_rows / (SPREAD * max_cell_rows)))
    return min(n_rows, max(cells * _SAMPLE_PER_CELL, 1024), max(1024, budget_bytes // max(1, row_bytes)))


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
    centre = means(routed, np.zeros(len(routed), np.int64), _routing_space(metric))
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
    wanted, space = SPREAD * max_rows, _routing_space(router.metric)
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
            pieces = centre if deal_only else split_rows(members, int(np.ceil(count / wanted)), space, rng)
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


def _sizes(router: Router, routed: Floats) -> Floats:
    """Return the mean distance of each centroid's rows to it; the median of all where a centroid has no rows."""
    labels, near = _nearest_one(router, routed)
    far = near.astype(np.float64) if router.metric == "manhattan" else np.sqrt(near.astype(np.float64))
    counts = np.bincount(labels, minlength=len(router.centroids))
    sizes = np.bincount(labels, weights=far, minlength=len(counts)) / np.maximum(counts, 1)
    sizes[counts == 0] = np.median(sizes[counts > 0])
    return sizes.astype(np.float32)


def _group(centroids: Floats, metric: str) -> tuple[Floats, tuple[Ints, ...]]:
    """Return about sqrt(c) group centres and the numbers of the centroids in each."""
    space = _routing_space(metric)
    few = np.random.default_rng(0).choice(len(centroids), int(np.sqrt(len(centroids))), replace=False)
    groups = lloyd(centroids, centroids[np.sort(few)], space)
    labels = nearest_numbers(centroids, groups, space)
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
    return np.concatenate([part.numbers[:, 0] for part in found]), np.concatenate([part.keys[:, 0] for part in found])


def _routing_space(metric: str) -> Space:
    """Return the space in which routed rows are compared."""
    return Space("manhattan" if metric == "manhattan" else "euclidean")
