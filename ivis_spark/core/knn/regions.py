"""The coarse quantiser: regions of the space, learnt on a sample, to which rows and queries are assigned.

A row is assigned to its nearest region, its primary partition, where its neighbours are searched, and copied to other
regions, where it can be a neighbour: those whose boundary is at most a margin away. So a row's list is made in one
place.

Only equal rows, which no boundary separates, are hash-sharded over several regions with one centroid.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.kmeans import kmeans, nearest_numbers, split_rows
from ivis_spark.core.knn.leaves import ALL, Leaves
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.errors import UNREADABLE, ArtifactError, InputError

MOST_REGIONS = 10_000
REGION_BYTES = 88 << 20  # of the rows that a region is home to
REGION_ROWS = (16_384, 250_000)  # fewest, unless bytes ask for fewer, and most
_REGION_ROOT, _WIDE = 20, 256  # rows of a region by the root of all rows, twice as many with so many features
_REGIONS = 10  # at least, so that some tasks can share a table, if its regions are then not too small
SAMPLE_BYTES = 256 << 20
_SAMPLE_ROWS, _LEAST_SAMPLE_ROWS = 48, 16  # of a region: wanted, and refused below
FLAT_REGIONS = 512  # up to here one product with all centroids is cheaper than finding near ones by an index
_ROUTING_EFFORT = 4.0
_BLOCK_VALUES = 1 << 24  # of distances to all regions
_PRODUCT_VALUES = 1 << 21  # for dot, where all of them are candidates: some 40 bytes each
_HEAVY, _LIGHT = 2.0, 0.1  # of the mean rows of a region: such are split, or their rows left to others
_ROUNDS = 6
_EQUAL_GUESTS = 32  # one of so many equal rows is enough in another region
_MARGIN_ERRORS = 1.0  # standard errors by which the sample's recall must pass the one wanted
_FORMAT = 1
REBUILD = "remove the neighbours with ivis-spark clean, and build them again"


@dataclass(frozen=True, eq=False)
class Regions:
    """Where rows lie.

    Attributes:
        metric: Metric of the rows.
        centroids: float32 (c, r), in the routing space; for dot of directions.
        parts: int64 (c,): regions over which the equal rows of a centroid are hash-sharded; mostly 1.
        sizes: float32 (c,): mean distance of a centroid's rows to it; for dot the spread of its products with rows.
        bounds: float32 (c,): for dot, the product from which a row may be a neighbour of the centroid's rows.
    """

    FILES: ClassVar[list[str]] = ["regions.json", "regions.npz"]
    _ARRAYS: ClassVar[tuple[str, ...]] = ("centroids", "parts", "sizes", "bounds")

    metric: str
    centroids: Floats
    parts: Ints
    sizes: Floats
    bounds: Floats

    def __len__(self) -> int:
        return int(self.parts.sum())

    @property
    def centroid_of(self) -> Ints:
        """int64 (n_regions,): number of the centroid of each region."""
        return np.repeat(np.arange(len(self.parts)), self.parts)

    @property
    def first(self) -> Ints:
        """int64 (c,): number of the first region of each centroid."""
        return np.asarray(np.cumsum(self.parts) - self.parts)

    @classmethod
    def one(cls, metric: str, dims: int) -> Regions:
        """Return one region for all rows."""
        one = np.ones(1, np.float32)
        return cls(metric, np.zeros((1, dims), np.float32), np.ones(1, np.int64), one, one)

    @classmethod
    def learn(
        cls, sample: npt.NDArray[Any], n_rows: int, metric: str, *, region_rows: int, seed: int, least_rows: int = 2
    ) -> Regions:
        """Learn balanced regions. Runs on: driver. Memory: O(sample).

        Args:
            sample: Rows drawn evenly, shape (s, d).
            n_rows: Rows of the whole table.
            metric: Metric of the rows.
            region_rows: Rows per region.
            seed: Seed.
            least_rows: Fewest rows of a region; those of smaller ones go to their next nearest.

        Raises:
            InputError: if the sample is too small to tell so many regions apart.
        """
        n_regions = max(1, round(n_rows / region_rows))
        if n_regions > 1 and len(sample) < min(n_rows // 4, _LEAST_SAMPLE_ROWS * n_regions):
            raise InputError(
                f"{n_regions:,} regions cannot be learnt from a sample of {len(sample):,} rows; at least "
                f"{_LEAST_SAMPLE_ROWS} per region are needed: raise neighbours.region_rows={region_rows}"
            )
        space = Space(metric)
        routed, routing = _routed(space, sample), space.routing
        rng = np.random.default_rng(seed)
        centroids = kmeans(routed, n_regions, routing, rng)
        mean = len(routed) / n_regions
        for _ in range(_ROUNDS):
            labels = nearest_numbers(routed, centroids, routing)
            counts = np.bincount(labels, minlength=len(centroids))
            heavy, light = counts > _HEAVY * mean, counts < max(_LIGHT, least_rows / region_rows) * mean
            pieces = [
                split_rows(routed[labels == number], math.ceil(counts[number] / mean), routing, rng)
                for number in np.flatnonzero(heavy)
            ]
            kept = np.concatenate([centroids[~heavy & ~light], *pieces])
            if not len(kept) or (not light.any() and all(len(piece) == 1 for piece in pieces)):
                break
            centroids = kept
        labels = nearest_numbers(routed, centroids, routing)
        counts = np.bincount(labels, minlength=len(centroids))
        parts = np.ones(len(centroids), np.int64)
        for number in np.flatnonzero(counts > _HEAVY * mean):
            values, repeats = np.unique(routed[labels == number], axis=0, return_counts=True)
            if repeats.max() > _HEAVY * mean:
                parts[number], centroids[number] = math.ceil(repeats.max() / mean), values[repeats.argmax()]
        made = cls(metric, np.ascontiguousarray(centroids), parts, *_scales(space, sample, routed, centroids, labels))
        return made

    def primary(self, X: npt.NDArray[Any], ids: Ints) -> Ints:
        """Return int64 (n,): the primary region of each row, in which its neighbours are searched."""
        routed = _routed(Space(self.metric), X)
        return self._numbered(routed, self._nearest(routed, 1)[0], ids)[:, 0]

    def depths(self, X: npt.NDArray[Any], ids: Ints, width: int) -> tuple[Ints, Floats]:
        """Return the candidate regions int64 (n, w) of each row, the primary first, and margins float32 (n, w).

        A boundary margin is the distance to the boundary of a region divided by the larger size of both; 0 in the
        primary region.

        Args:
            X: Rows as they came, shape (n, d).
            ids: int64 (n,).
            width: Maximum regions per row; for dot all, because long rows are neighbours of many.
        """
        space = Space(self.metric)
        if self.metric == "dot":
            return self._product_depths(space, X, ids)
        routed = _routed(space, X)
        numbers, keys = self._nearest(routed, min(width, len(self.centroids)))
        if space.metric == "manhattan":
            between = keys
        else:
            between = Space("euclidean").pair_keys(self.centroids[numbers[:, 0]], self.centroids, numbers)
        sizes = np.maximum(self.sizes[numbers], self.sizes[numbers[:, :1]])
        with np.errstate(over="ignore"):  # regions of equal rows have no size: infinitely deep
            depths = space.routing.border(keys, between) / np.maximum(sizes, np.finfo(np.float32).tiny)
        depths[:, 0] = 0
        return self._numbered(routed, numbers, ids), depths

    def _product_depths(self, space: Space, X: npt.NDArray[Any], ids: Ints) -> tuple[Ints, Floats]:
        routed = _routed(space, X)
        primary = self._nearest(routed, 1)[0]
        others = np.tile(np.arange(len(self.centroids)), (len(routed), 1))
        depths = ((self.bounds - space.prepare(X) @ self.centroids.T) / self.sizes).astype(np.float32)
        depths[others == primary] = np.inf
        numbers = np.concatenate([primary, others], axis=1)
        return self._numbered(routed, numbers, ids), np.concatenate([np.zeros((len(X), 1), np.float32), depths], axis=1)

    def assign(
        self, X: npt.NDArray[Any], ids: Ints, *, width: int, margin: float
    ) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
        """Return (row, region) pairs: each row in its primary region, and in others up to a boundary margin.

        Returns:
            rows int64 (p,), regions int64 (p,), is_primary bool (p,).
        """
        values = _PRODUCT_VALUES if self.metric == "dot" else _BLOCK_VALUES
        step = max(256, values // max(1, len(self.centroids)))
        parts = []
        for at in range(0, len(X), step):
            numbers, depths = self.depths(X[at : at + step], ids[at : at + step], width)
            taken = depths <= np.float32(margin)
            if (self.parts > 1).any():
                sharded = (self.parts > 1)[self.centroid_of[numbers[:, 0]]]
                taken[sharded & (hash_ids(ids[at : at + step], 2) % np.uint64(_EQUAL_GUESTS) > 0)] = False
            taken[:, 0] = True
            rows, place = np.nonzero(taken)
            parts.append((rows + at, numbers[rows, place], place == 0))
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool)
        rows, numbers, is_primary = (np.concatenate(column) for column in zip(*parts, strict=True))
        return rows, numbers, is_primary

    def _nearest(self, routed: Floats, width: int) -> tuple[Ints, Floats]:
        """Return the nearest centroids int64 (n, w) and keys: independent of the other rows of a batch."""
        flat = len(self.centroids) <= FLAT_REGIONS
        return self._index().query(routed, width, ALL if flat else _ROUTING_EFFORT)

    def _index(self) -> Any:
        if "_made" not in self.__dict__:
            metric = Space(self.metric).routing.metric
            if len(self.centroids) <= FLAT_REGIONS:
                made = _Ordered(Leaves.single(self.centroids, metric), np.arange(len(self.centroids)))
            else:
                rows = round(2 * len(self.centroids) ** 0.5)
                made = _Ordered(*Leaves.build(self.centroids, metric, leaf_rows=rows, seed=0))
            object.__setattr__(self, "_made", made)
        return self.__dict__["_made"]

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _numbered(self, routed: Floats, numbers: Ints, ids: Ints) -> Ints:
        """Return regions of centroids: of a row equal to a centroid the one that its id hashes to, else the first."""
        regions = self.first[numbers]
        if (self.parts > 1).any():
            nearest = numbers[:, 0]
            sharded = (self.parts[nearest] > 1) & (routed == self.centroids[nearest]).all(axis=1)
            share = hash_ids(ids[sharded], 0) % self.parts[nearest[sharded]].astype(np.uint64)
            regions[sharded, 0] += share.astype(np.int64)
        return regions

    def save(self, folder: str) -> list[str]:
        """Write the regions into a local folder; return the names of the files."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in self._ARRAYS}
        with open(os.path.join(folder, self.FILES[1]), "wb") as file:
            np.savez(file, **arrays)
        with open(os.path.join(folder, self.FILES[0]), "w", encoding="utf-8") as text:
            json.dump({"format": _FORMAT, "metric": self.metric, "regions": len(self)}, text, indent=2)
        return self.FILES

    @classmethod
    def load(cls, folder: str) -> Regions:
        """Read what `save` wrote. Nothing is unpickled.

        Raises:
            ArtifactError: if a file is missing or is not one.
        """
        try:
            with open(os.path.join(folder, cls.FILES[0]), encoding="utf-8") as text:
                metric = str(json.load(text)["metric"])
            with np.load(os.path.join(folder, cls.FILES[1]), allow_pickle=False) as arrays:
                arrays_read = {name: arrays[name] for name in cls._ARRAYS}
            first, *others = (arrays_read[name].shape for name in cls._ARRAYS)
            if len(first) != 2 or set(others) != {first[:1]} or (arrays_read["parts"] < 1).any():
                raise ValueError(f"shapes {first} and {others} do not match")
            return cls(metric, **arrays_read)
        except UNREADABLE as err:
            raise ArtifactError(f"{folder} holds no usable regions ({err}); {REBUILD}") from err


@dataclass(frozen=True)
class _Ordered:
    """Leaves whose rows are known by other numbers."""

    leaves: Leaves
    order: Ints

    def query(self, Q: Floats, k: int, effort: float) -> tuple[Ints, Floats]:
        numbers, keys = self.leaves.query(Q, k, effort)
        return self.order[numbers], keys


def least_region_rows(config: NeighboursConfig, n_rows: int, sample: int) -> int:
    """Return the fewest rows per region: so that there are not too many, and a sample of so many tells them apart."""
    sampled = max(1, sample // _LEAST_SAMPLE_ROWS)
    least = max(4 * (config.k + 1), math.ceil(n_rows / min(MOST_REGIONS, sampled)))
    return max(config.region_rows or 0, least)


def region_rows(config: NeighboursConfig, n_rows: int, dims: int) -> list[int]:
    """Return the rows per region to try, ascending: the first of which copies few enough rows is taken.

    A row is compared with fewer rows in a small region, and copied to fewer large ones. By measurement the work is
    least near a multiple of the square root of all rows, more for wide rows, which cost more to copy.
    """
    bound, (least, most) = least_region_rows(config, n_rows, SAMPLE_BYTES // (4 * dims)), REGION_ROWS
    if config.region_rows is not None:
        return [bound]
    most = max(bound, min(max(least, n_rows // _REGIONS), most, max(1024, REGION_BYTES // (4 * dims))))
    rows = max(bound, least, round(_REGION_ROOT * (1 + dims / _WIDE) * n_rows**0.5))
    sizes = itertools.takewhile(lambda size: 1.5 * size < most, (rows * 2**step for step in itertools.count()))
    return [*sizes, most]


def sample_size(n_rows: int, dims: int, rows: int) -> int:
    """Return how many rows to learn regions of `rows` rows from."""
    n_regions = max(1, round(n_rows / rows))
    return (
        0 if n_regions == 1 else min(n_rows, max(1024, _SAMPLE_ROWS * n_regions), max(1024, SAMPLE_BYTES // (4 * dims)))
    )


def shared_target(aim: float) -> float:
    """Return the share of neighbours to find in one region: half of those missed are missed where regions meet."""
    return 1 - (1 - aim) / 2


def choose_margin(depths: Floats, target: float) -> tuple[float, float]:
    """Return the smallest margin with which rows find a share of their neighbours in one region, and the share.

    Args:
        depths: float32 (q, k): boundary margins of the neighbours of q rows, towards the primary region of the row;
            infinity where it is not a candidate region of the neighbour, NaN where it does not count.
        target: Share to reach; the largest margin if none reaches it.
    """
    depths = depths[~np.isnan(depths).all(axis=1)]
    if not len(depths):
        return 0.0, 1.0
    counted = (~np.isnan(depths)).sum(axis=1)
    finite = np.unique(depths[np.isfinite(depths)])
    if not len(finite):
        return 0.0, 0.0
    low, high = 0, len(finite) - 1
    while low < high:
        middle = (low + high) // 2
        shares = (depths <= finite[middle]).sum(axis=1) / counted
        enough = shares.mean() - _MARGIN_ERRORS * shares.std() / len(shares) ** 0.5 >= target
        low, high = (low, middle) if enough else (middle + 1, high)
    return float(finite[low]), float(((depths <= finite[low]).sum(axis=1) / counted).mean())


def hash_ids(ids: Ints, seed: int) -> npt.NDArray[np.uint64]:
    """Return a well mixed uint64 of each id (the finaliser of SplitMix64)."""
    z = ids.astype(np.int64).view(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (2 * seed + 1)) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _routed(space: Space, X: npt.NDArray[Any]) -> Floats:
    """Return rows in the space of the regions: for dot their directions, since a query's length does not matter."""
    return Space("angular").prepare(X) if space.metric == "dot" else space.prepare(X)


def _scales(space: Space, sample: Any, routed: Floats, centroids: Floats, labels: Ints) -> tuple[Floats, Floats]:
    """Return the sizes and, for dot, the bounds of centroids."""
    bounds = np.zeros(len(centroids), np.float32)
    if space.metric == "dot":
        rows, spreads = space.prepare(sample).T, np.empty(len(centroids), np.float32)
        step = max(1, _BLOCK_VALUES // rows.shape[1])
        for at in range(0, len(centroids), step):
            part = slice(at, at + step)
            products = centroids[part] @ rows
            spreads[part], bounds[part] = products.std(axis=1), products.max(axis=1)
        return np.maximum(spreads, np.finfo(np.float32).tiny), bounds
    keys = np.empty(len(routed), np.float64)
    for at in range(0, len(routed), 4096):
        part = slice(at, at + 4096)
        keys[part] = space.routing.pair_keys(routed[part], centroids, labels[part, None])[:, 0]
    far = keys if space.metric == "manhattan" else np.sqrt(keys)
    counts = np.bincount(labels, minlength=len(centroids))
    sizes = np.bincount(labels, weights=far, minlength=len(counts)) / np.maximum(counts, 1)
    sizes[counts == 0] = np.median(sizes[counts > 0])
    return sizes.astype(np.float32), bounds
