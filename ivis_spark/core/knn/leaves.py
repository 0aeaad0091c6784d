"""Leaves: the rows of a region in groups of some hundred, each compared with query rows by one matrix product.

Rows of many features are laid out and, in memory, compared along the principal directions of the region, and the best
of them ranked by all features.

A query row is compared with its nearest leaf first. The distance to the k-th row found there bounds how far its
neighbours can be: another leaf is searched if its boundary is closer than that distance times the effort, divided by
the square root of its rank by distance. By boundaries alone dense places take too many leaves, by rank alone sparse
ones.
"""

from __future__ import annotations

import functools
import io
import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ivis_spark.core.knn.candidates import MOST_QUERIES, Candidates, Flags
from ivis_spark.core.knn.kmeans import kmeans, nearest_numbers, split_rows
from ivis_spark.core.knn.metrics import Floats, Ints, Space, Target, middle
from ivis_spark.core.knn.principal import principal_directions, project
from ivis_spark.core.knn.topk import in_order, smallest_columns

Leaf = tuple[Ints, Floats]

_LEAF_ROOT = 1.5  # rows of a leaf, by the root of all rows: each row is compared with every leaf's centroid too
_LEARN_PER_LEAF = 24
_HEAVY = 4  # times the wanted rows: such leaves are split again
_HEAVY_SAMPLE = 512  # rows of a heavy leaf among which the most frequent one is looked for
_SPLIT_ROUNDS = 6
_PROBES, _LEAST_PROBES = 64, 16  # most leaves a row is searched in by an effort of 1, and by any, if rows suffice
_FIRST_PROBES = 4  # leaves, the nearest first, after which the bound of each row is drawn tighter
_START_BYTES = 8  # of a file: how long its head is, and the checksum of that
_PAIRS = 1 << 21  # of rows and leaves that are ranked at once: about 70 bytes each, 200 if all leaves are searched
_KEYS = 1 << 19  # of a product: 2 MB, which stay in the cache
KEPT_BYTES = 128 << 20  # of rows in memory, whose leaves stay ready to be compared: as many bytes again
_ORIGIN = np.zeros(1, np.float32)
ALL = float("inf")  # the effort that searches every leaf


@dataclass(frozen=True, eq=False)
class Leaves:
    """Rows grouped in leaves, numbered in their order.

    Attributes:
        metric: Metric of the rows.
        centroids: float32 (m, r), in the routing space of the metric.
        starts: int64 (m + 1,): leaf i has the rows starts[i] to starts[i + 1].
        centre: float32 (d,), taken off before products so that these cancel little.
        norm_bound: Largest norm of the rows, for dot; else 0.
        read: Returns the rows, prepared by the metric's `Space`, of a leaf: float32 (n, d).
        rows: All of them, float32 (n, d), if they are in memory.
        directions: float32 (d, c), along which leaves are laid out; None for all features.
        projected: float32 (n, c): the rows along these, if they are in memory.
    """

    metric: str
    centroids: Floats
    starts: Ints
    centre: Floats
    norm_bound: float
    read: Callable[[int], Floats]
    rows: Floats | None = None
    directions: Floats | None = None
    projected: Floats | None = None

    @classmethod
    def build(
        cls, X: npt.NDArray[Any], metric: str, *, leaf_rows: int, seed: int, projects: bool = False
    ) -> tuple[Leaves, Ints]:
        """Group rows; return the leaves and, int64 (n,), which row each number stands for.

        Args:
            X: Rows as they came, shape (n, d).
            metric: Metric.
            leaf_rows: Rows per leaf.
            seed: Seed.
            projects: Whether wide rows are compared along their principal directions first.
        """
        space, rng = Space(metric), np.random.default_rng(seed)
        rows = space.prepare(X)
        centre, bound = middle(rows), space.norm_bound(rows)
        directions = principal_directions(rows, centre, rng) if projects and space.projects else None
        routed = space.route_rows(rows, bound) if directions is None else project(rows, centre, directions)
        centroids, leaf_of = _learn(rows, routed, space.routing, leaf_rows, rng)
        order = np.argsort(leaf_of, kind="stable")
        starts = np.searchsorted(leaf_of[order], np.arange(len(centroids) + 1))
        rows, projected = rows[order], None if directions is None else routed[order]
        read = lambda leaf: rows[starts[leaf] : starts[leaf + 1]]  # noqa: E731
        return cls(metric, centroids, starts, centre, bound, read, rows, directions, projected), order

    @classmethod
    def single(cls, X: npt.NDArray[Any], metric: str) -> Leaves:
        """Return one leaf with all rows, in their order."""
        space = Space(metric)
        rows = space.prepare(X)
        centroid = space.route_queries(np.zeros((1, rows.shape[1]), np.float32), 0.0)
        return cls(metric, centroid, np.array([0, len(rows)]), middle(rows), 0.0, lambda leaf: rows, rows)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def dump(self, ids: Ints) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a file: what a head is like, the head, and the ids and rows of each leaf in turn.

        Args:
            ids: int64 (n,): of the rows, in the order of the leaves.
        """
        leaves = range(len(self.centroids))
        named = [np.ascontiguousarray(ids[self.starts[i] : self.starts[i + 1]], "<i8") for i in leaves]
        rows = [np.ascontiguousarray(self.read(leaf), "<f4") for leaf in leaves]  # views: no copy
        sums = [zlib.crc32(own.data, zlib.crc32(name.data)) for name, own in zip(named, rows, strict=True)]
        room = io.BytesIO()
        arrays: dict[str, Any] = {"centroids": self.centroids, "starts": self.starts, "centre": self.centre}
        arrays |= {"sums": np.array(sums, np.uint32), "norm_bound": self.norm_bound, "metric": self.metric}
        arrays |= {} if self.directions is None else {"directions": self.directions}
        np.savez(room, **arrays)
        head = room.getvalue()
        yield np.array([len(head), zlib.crc32(head)], "<u4").tobytes() + head
        for name, own in zip(named, rows, strict=True):
            yield name.data
            yield own.data

    @classmethod
    def load(
        cls, part: Callable[[int, int], bytes], keep: Callable[[int, Callable[[], Leaf]], Leaf]
    ) -> tuple[Leaves, Callable[[int], Leaf]]:
        """Open what `dump` gave; leaves are read on access.

        Args:
            part: Returns the bytes of the file from one place to another.
            keep: Given a leaf's number and what reads it, returns it, read or remembered.

        Returns:
            The leaves, and a function that returns the ids int64 (n,) and rows float32 (n, d) of one.

        Raises:
            ValueError: if the head is not what was written; the function, if a leaf is not.
        """
        length, checksum = np.frombuffer(part(0, _START_BYTES), "<u4").tolist()
        first = _START_BYTES + length
        if zlib.crc32(body := part(_START_BYTES, first)) != checksum:
            raise ValueError("its head is not what was written")
        with np.load(io.BytesIO(body), allow_pickle=False) as head:
            centroids, starts, centre, sums = (head[name] for name in ("centroids", "starts", "centre", "sums"))
            metric, bound = str(head["metric"]), float(head["norm_bound"])
            directions = head["directions"] if "directions" in head else None
        width = 8 + 4 * len(centre)

        def read(number: int) -> Leaf:
            body = part(first + int(starts[number]) * width, first + int(starts[number + 1]) * width)
            rows = int(starts[number + 1] - starts[number])
            if len(body) != rows * width or zlib.crc32(body) != sums[number]:
                raise ValueError(f"leaf {number} is not what was written")
            values = np.frombuffer(body, "<f4", offset=8 * rows).reshape(rows, len(centre))
            return np.frombuffer(body, "<i8", count=rows), values

        def kept(number: int) -> Leaf:
            return keep(number, lambda: read(number))

        leaves = cls(metric, centroids, starts, centre, bound, lambda number: kept(number)[1], directions=directions)
        return leaves, kept

    def query(self, Q: npt.NDArray[Any], k: int, effort: float) -> tuple[Ints, Floats]:
        """Return the numbers int64 (q, k) and keys float32 (q, k) of near rows, nearest first, ties by number.

        Args:
            Q: Rows as they came, shape (q, d).
            k: Rows per query, at most all: more leaves are searched until a query has as many.
            effort: As above, positive; `ALL` searches every leaf.
        """
        queries = Space(self.metric).prepare(Q)
        step = min(MOST_QUERIES, max(256, _PAIRS // self._width(effort)))
        parts = [self._block(queries[at : at + step], k, effort) for at in range(0, len(queries), step)]
        if not parts:
            return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _block(self, queries: Floats, k: int, effort: float) -> tuple[Ints, Floats]:
        width = self._width(effort)
        probes = self._probes(queries, k, width)
        # Keys of products are rounded, and those along some directions too small: so more rows are ranked again
        if self.projected is None or effort == ALL:
            space, target, wide = Space(self.metric), self._target, k + 2 + k // 16
            extended = space.extend(queries, self.centre)
        else:
            space, target = Space(self.metric).routing, functools.partial(self._projected_target, self.projected)
            wide, extended = k + 8 + k // 2, space.extend(self._routed(queries), _ORIGIN)
        squares = space.squares(extended)
        candidates = Candidates(len(queries), min(wide, len(self)), len(self).bit_length())
        self._search(extended, probes.leaves, probes.needed, candidates, target)
        done = probes.needed
        for stop in (width,) if effort == ALL else (_FIRST_PROBES, width):
            chosen = ~done
            if effort != ALL:
                reach = space.reach(candidates.limit(k), squares, self.norm_bound)
                chosen &= probes.depth < (reach * np.float32(effort))[:, None]
                chosen[:, stop:] = False
            self._search(extended, probes.leaves, chosen, candidates, target)
            done = done | chosen
        return self._exact(queries, *candidates.best(), k)

    def _width(self, effort: float) -> int:
        """Return among how many leaves a row's are chosen: those further away hardly ever are."""
        return len(self.centroids) if effort == ALL else max(_LEAST_PROBES, round(_PROBES * effort))

    def _probes(self, queries: Floats, k: int, width: int) -> _Probes:
        """Rank the leaves of each row, as many as are needed for k rows at least."""
        space = Space(self.metric)
        keys = space.routing.distance_keys(self._routed(queries), self.centroids)
        sizes = np.diff(self.starts)
        while True:
            width = min(width, len(self.centroids))
            leaves = smallest_columns(keys, width)
            leaves, leaf_keys = in_order(leaves, np.take_along_axis(keys, leaves, axis=1), width)
            rows = sizes[leaves]
            before = np.cumsum(rows, axis=1) - rows
            if width == len(self.centroids) or (before[:, -1] + rows[:, -1] >= k).all():
                break
            width *= 4
        depth = space.routing.border(leaf_keys, self._between(leaves))
        alike = self._alike[leaves]  # leaves of one centroid hold equal rows: one of them has enough
        depth[:, 1:][alike[:, 1:] == alike[:, :-1]] = np.inf
        depth *= np.sqrt(np.arange(1, width + 1, dtype=np.float32))
        return _Probes(leaves, depth, before < k)

    def _routed(self, queries: Floats) -> Floats:
        """Return queries in the space that leaves are laid out in."""
        if self.directions is not None:
            return project(queries, self.centre, self.directions)
        return Space(self.metric).route_queries(queries, self.norm_bound)

    @functools.cached_property
    def _alike(self) -> Ints:
        """int64 (m,): equal numbers for leaves with equal centroids."""
        return np.unique(self.centroids, axis=0, return_inverse=True)[1].reshape(-1)

    def _between(self, leaves: Ints) -> Floats:
        """Return the keys between the nearest leaf of each row and its others."""
        space = Space(self.metric).routing
        first, place = np.unique(leaves[:, 0], return_inverse=True)
        table = space.distance_keys(self.centroids[first], self.centroids)
        return np.asarray(table[place[:, None], leaves])

    def _search(
        self, extended: Floats, leaves: Ints, chosen: Flags, candidates: Candidates, target: Callable[[int], Target]
    ) -> None:
        """Compare rows with the leaves chosen for each, and keep those nearer than what they have."""
        row, place = np.nonzero(chosen)
        leaf = leaves[row, place]
        order = np.argsort(leaf.astype(np.min_scalar_type(len(self.centroids))), kind="stable")  # 16 bits: by radix
        row, leaf = row[order], leaf[order]
        bounds = np.flatnonzero(np.diff(leaf, prepend=-1, append=-2))
        for start, stop in itertools.pairwise(bounds):
            number = int(leaf[start])
            if self.starts[number] == self.starts[number + 1]:
                continue
            rows, step = target(number), max(64, _KEYS // int(self.starts[number + 1] - self.starts[number]))
            for at in range(start, stop, step):
                asking = row[at : min(at + step, stop)]
                candidates.add(asking, rows.rank_keys(extended[asking]), int(self.starts[number]))
        candidates.settle()

    def _target(self, number: int) -> Target:
        return self._kept(number, Space(self.metric), self.rows, lambda: self.read(number), self.centre)

    def _projected_target(self, projected: Floats, number: int) -> Target:
        part = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return self._kept(-1 - number, Space(self.metric).routing, projected, lambda: projected[part], _ORIGIN)

    def _kept(self, name: int, space: Space, rows: Floats | None, leaf: Callable[[], Floats], centre: Floats) -> Target:
        """Return a leaf ready to be compared; it stays so if all rows are in memory and few: it is asked for often."""
        target = self._targets.get(name)
        if target is None:
            target = space.target(leaf(), centre)
            if rows is not None and rows.nbytes <= KEPT_BYTES:
                self._targets[name] = target
        return target

    @functools.cached_property
    def _targets(self) -> dict[int, Target]:
        return {}

    def _exact(self, queries: Floats, numbers: Ints, missing: Flags, k: int) -> tuple[Ints, Floats]:
        """Rank candidates by keys computed from differences."""
        rows, place = (self.rows, numbers) if self.rows is not None else self._read_rows(numbers)
        keys = Space(self.metric).pair_keys(queries, rows, place)
        keys[missing] = np.inf
        return in_order(numbers, keys, k)

    def _read_rows(self, numbers: Ints) -> tuple[Floats, Ints]:
        """Return the rows of these numbers, each once, and the place of each number among them."""
        used, place = np.unique(numbers, return_inverse=True)
        leaf = np.searchsorted(self.starts, used, side="right") - 1
        rows = np.empty((len(used), len(self.centre)), np.float32)
        bounds = np.flatnonzero(np.diff(leaf, prepend=-1, append=-2))
        for start, stop in itertools.pairwise(bounds):
            inside = used[start:stop] - self.starts[leaf[start]]
            rows[start:stop] = self.read(int(leaf[start]))[inside]
        return rows, place.reshape(numbers.shape)


def rows_per_leaf(least: int, rows: float) -> int:
    """Return how many rows a leaf has where so many rows, in one region, are laid out in leaves."""
    return max(least, round(_LEAF_ROOT * rows**0.5))


@dataclass(frozen=True)
class _Probes:
    """Leaves near rows, (q, w), nearest first; how far behind the border each is, by rank; whether it is needed."""

    leaves: Ints
    depth: Floats
    needed: Flags


def _learn(rows: Floats, routed: Floats, space: Space, leaf_rows: int, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Return centroids and the leaf of each row; equal rows that fill more than some leaves are split by number."""
    n_leaves = max(1, round(len(routed) / leaf_rows))
    drawn = rng.choice(len(routed), min(len(routed), n_leaves * _LEARN_PER_LEAF), replace=False)
    centroids = kmeans(routed[np.sort(drawn)], n_leaves, space, rng)
    for _ in range(_SPLIT_ROUNDS):
        leaf_of = nearest_numbers(routed, centroids, space)
        counts = np.bincount(leaf_of, minlength=len(centroids))
        heavy = np.flatnonzero(counts > _HEAVY * leaf_rows)
        pieces = [split_rows(routed[leaf_of == leaf], round(counts[leaf] / leaf_rows), space, rng) for leaf in heavy]
        if all(len(piece) == 1 for piece in pieces):
            break
        kept = np.setdiff1d(np.flatnonzero(counts), heavy)
        centroids = np.concatenate([centroids[kept], *pieces])
    else:
        leaf_of = nearest_numbers(routed, centroids, space)
    counts = np.bincount(leaf_of, minlength=len(centroids))
    for leaf in np.flatnonzero(counts > _HEAVY * leaf_rows):
        inside = np.flatnonzero(leaf_of == leaf)
        few = inside[:: max(1, len(inside) // _HEAVY_SAMPLE)]
        _, first, repeats = np.unique(rows[few], axis=0, return_index=True, return_counts=True)
        common = few[first[repeats.argmax()]]
        equal = inside[(rows[inside] == rows[common]).all(axis=1)]  # projections of equal rows may differ by rounding
        if len(equal) > leaf_rows:
            leaf_of[equal] = len(centroids) + np.arange(len(equal)) // leaf_rows
            centroids = np.concatenate([centroids, np.repeat(routed[[common]], -(-len(equal) // leaf_rows), axis=0)])
    return np.ascontiguousarray(centroids), leaf_of
