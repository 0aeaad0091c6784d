"""Index libraries behind one small interface: leaves (ours) and Annoy. `register_index` adds others.

An index holds the rows of one region. Its effort sets how much of it a query inspects; `calibrate` finds the lowest
effort that reaches a recall.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from annoy import AnnoyIndex as _Annoy

from ivis_spark.core.knn.leaves import ALL, Leaf, Leaves
from ivis_spark.core.knn.merge import NO_ID, merge_top_k, ties_by_id, without_self
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.recall import shares_found
from ivis_spark.core.knn.topk import in_order
from ivis_spark.errors import ConfigError

_MARGINS = (
    0.03,
    0.06,
    0.09,
    0.12,
    0.15,
    0.18,
    0.21,
    0.24,
    0.27,
    0.3,
    0.34,
    0.38,
    0.44,
    0.5,
    0.6,
    0.7,
    0.85,
    1,
    ALL,
)
_ANNOY_MAX_SEED = 2**31 - 1
_EXACT_ROWS = 8192


@dataclass(frozen=True)
class IndexSettings:
    """Settings of an index.

    Attributes:
        leaf_rows: Rows per leaf.
        n_trees: Annoy's trees.
        search_k: Minimum nodes that Annoy inspects; -1 is n_trees * k.
        seed: Seed.
    """

    leaf_rows: int
    n_trees: int
    search_k: int = -1
    seed: int = 0


class RegionFiles(Protocol):
    """Reads the files of a saved index; each is checked against its record."""

    def local(self, suffix: str) -> AbstractContextManager[str]:
        """Return the local path of a file, copied to this machine if necessary."""
        ...

    def part(self, suffix: str, start: int, stop: int) -> bytes:
        """Return some bytes of a file, without a check."""
        ...

    def leaf(self, number: int, read: Callable[[], Leaf]) -> Leaf:
        """Return a leaf's ids and rows, read unless they were kept."""
        ...


class RegionIndex(Protocol):
    """The rows of one region, ready to be searched.

    Attributes:
        metric: Metric of the rows.
        efforts: Efforts in ascending order; the last one inspects everything.
    """

    metric: str
    efforts: Sequence[float]

    def query(self, Q: npt.NDArray[Any], k: int, effort: float) -> tuple[Ints, Floats]:
        """Return ids int64 (q, k) and keys float32 (q, k), nearest first, ties by id; k is at most the rows."""
        ...

    def save(self, path: str) -> list[str]:
        """Write files that start with a local path; return what follows it in each name."""
        ...


class LeafIndex:
    """Leaves with the ids of their rows.

    Args:
        leaves: Leaves.
        ids: int64 (n,): in the order of the leaves.
    """

    suffix = ".leaves"

    def __init__(self, leaves: Leaves, ids: Callable[[Ints], Ints]) -> None:
        self.leaves, self._ids = leaves, ids
        self.metric: str = leaves.metric
        self.efforts: Sequence[float] = _MARGINS

    @classmethod
    def build(cls, X: npt.NDArray[Any], ids: Ints, metric: str, settings: IndexSettings) -> LeafIndex:
        """Group rows, float32 (n, d), with ids int64 (n,)."""
        leaves, order = Leaves.build(X, metric, leaf_rows=settings.leaf_rows, seed=settings.seed)
        ordered = ids[order]
        return cls(leaves, lambda numbers: ordered[numbers])

    def query(self, Q: npt.NDArray[Any], k: int, effort: float) -> tuple[Ints, Floats]:
        """Return the nearest rows, as `RegionIndex.query`."""
        numbers, keys = self.leaves.query(Q, k, effort)
        return ties_by_id(self._ids(numbers), keys)

    def save(self, path: str) -> list[str]:
        """Write one file: a header with the position of each leaf, then the ids and rows of each leaf."""
        ids = self._ids(np.arange(len(self.leaves)))
        with open(path + self.suffix, "wb") as file:
            for chunk in self.leaves.dump(ids):
                file.write(chunk)
        return [self.suffix]

    @classmethod
    def load(cls, files: RegionFiles, metric: str, dims: int) -> LeafIndex:
        """Open a saved index; leaves are read on access."""
        leaves, read = Leaves.load(lambda start, stop: files.part(cls.suffix, start, stop), files.leaf)
        if leaves.metric != metric or len(leaves.centre) != dims:
            raise ValueError(f"it holds rows of {len(leaves.centre)} features, compared by {leaves.metric}")

        def ids_of(numbers: Ints) -> Ints:
            leaf = np.searchsorted(leaves.starts, numbers, side="right") - 1
            out = np.empty(numbers.shape, np.int64)
            for number in np.unique(leaf):
                here = leaf == number
                out[here] = read(int(number))[0][numbers[here] - leaves.starts[number]]
            return out

        return cls(leaves, ids_of)


class AnnoyIndex:
    """An Annoy forest over a region, built in one thread so that the seed decides every split.

    Its effort is `search_k`, the nodes inspected per query.
    """

    suffixes = (".ann", ".ids.npy")

    def __init__(self, index: _Annoy, ids: Ints, metric: str, least: int) -> None:
        self._index, self._ids, self._space = index, ids, Space(metric)
        self.metric: str = metric
        most = max(2 * least, 2 * len(ids) * max(1, index.get_n_trees()))
        steps = int(np.ceil(np.log2(most / max(1, least)))) + 1
        self.efforts: Sequence[float] = [float(min(most, least * 2**step)) for step in range(steps)]

    @classmethod
    def build(cls, X: npt.NDArray[Any], ids: Ints, metric: str, settings: IndexSettings) -> AnnoyIndex:
        """Index rows, float32 (n, d), with ids int64 (n,)."""
        rows = Space(metric).prepare(X)
        index = _Annoy(rows.shape[1], cast(Any, metric))
        index.set_seed(settings.seed % _ANNOY_MAX_SEED)
        for number, row in enumerate(rows):
            index.add_item(number, row)
        index.build(settings.n_trees, n_jobs=1)
        least = settings.search_k if settings.search_k > 0 else 16 * settings.n_trees
        return cls(index, ids, metric, least)

    def query(self, Q: npt.NDArray[Any], k: int, effort: float) -> tuple[Ints, Floats]:
        """Return the nearest rows, as `RegionIndex.query`; rows with fewer than k results are searched exactly."""
        queries = self._space.prepare(Q)
        nodes = max(int(effort), self._index.get_n_trees() * k) if effort < self.efforts[-1] else 2**31 - 1
        numbers = np.zeros((len(queries), k), np.int64)
        short = []
        for place, query in enumerate(queries):
            near = self._index.get_nns_by_vector(query, k, nodes)
            if len(near) < k:
                short.append(place)
            else:
                numbers[place] = near
        if short:
            everything = self._vectors(np.arange(len(self._ids)))
            numbers[short] = Leaves.single(everything, self._space.metric).query(queries[short], k, ALL)[0]
        used, inverse = np.unique(numbers, return_inverse=True)
        keys = self._space.pair_keys(queries, self._vectors(used), inverse.reshape(numbers.shape))
        numbers, keys = in_order(numbers, keys, k)
        return ties_by_id(self._ids[numbers], keys)

    def _vectors(self, numbers: Ints) -> Floats:
        rows = [self._index.get_item_vector(int(number)) for number in numbers]
        return np.array(rows, np.float32).reshape(len(rows), self._index.f)

    def save(self, path: str) -> list[str]:
        """Write Annoy's own file, and the ids."""
        self._index.save(path + self.suffixes[0])
        with open(path + self.suffixes[1], "wb") as file:
            np.save(file, self._ids)
        return list(self.suffixes)

    @classmethod
    def load(cls, files: RegionFiles, metric: str, dims: int) -> AnnoyIndex:
        """Open a saved index by mmap."""
        index = _Annoy(dims, cast(Any, metric))
        with files.local(cls.suffixes[0]) as path, files.local(cls.suffixes[1]) as ids:
            index.load(path)
            return cls(index, np.load(ids, allow_pickle=False), metric, 1)


@dataclass(frozen=True)
class IndexKind:
    """An index library, as the stage and queries use it.

    Attributes:
        build: Builds an index of rows (n, d) with ids (n,) for a metric.
        load: Opens a saved one.
        cost: Core microseconds to index and search one row, by dims, rows of the region, k and settings.
    """

    build: Callable[[npt.NDArray[Any], Ints, str, IndexSettings], RegionIndex]
    load: Callable[[RegionFiles, str, int], RegionIndex]
    cost: Callable[[int, int, int, IndexSettings], float]


# Microseconds on one core of a 2020s server: tests/bench/bench_index_costs.py measures them again.
_LEAF_ROW, _LEAF_PAIRS, _LEAF_PAIR, _LEAF_PAIR_VALUE, _LEAF_NEIGHBOUR = 15.0, 5.0, 0.004, 0.00004, 0.2
_ANNOY_NODE, _ANNOY_NODE_VALUE = 0.15, 0.0006
_ANNOY_TREE, _ANNOY_TREE_VALUE = 1.0, 0.0011


def _leaf_cost(dims: int, rows: int, k: int, settings: IndexSettings) -> float:
    pairs = min(rows, _LEAF_PAIRS * max(settings.leaf_rows, k))
    return _LEAF_ROW + pairs * (_LEAF_PAIR + _LEAF_PAIR_VALUE * dims) + _LEAF_NEIGHBOUR * k


def _annoy_cost(dims: int, rows: int, k: int, settings: IndexSettings) -> float:
    nodes = min(rows, settings.n_trees * k if settings.search_k < 0 else settings.search_k)
    splitting = settings.n_trees * (_ANNOY_TREE + _ANNOY_TREE_VALUE * dims)
    return float(nodes * (_ANNOY_NODE + _ANNOY_NODE_VALUE * dims) + splitting * np.log2(max(2, rows)))


INDEXES: dict[str, IndexKind] = {
    "leaves": IndexKind(LeafIndex.build, LeafIndex.load, _leaf_cost),
    "annoy": IndexKind(AnnoyIndex.build, AnnoyIndex.load, _annoy_cost),
}


def register_index(name: str, kind: IndexKind) -> None:
    """Register an index library under a name for `neighbours.backend`; executors need it too, so call it on import."""
    INDEXES[name] = kind


def index_kind(name: str) -> IndexKind:
    """Return an index library by name.

    Raises:
        ConfigError: if there is none of that name; lists the valid ones.
    """
    if name not in INDEXES:
        raise ConfigError(f"neighbours.backend={name!r} is not one of: auto, {', '.join(INDEXES)}")
    return INDEXES[name]


@dataclass(frozen=True)
class BackendChoice:
    """Which index library was picked, and why."""

    backend: str
    reason: str


def choose_backend(requested: str, dims: int, rows: int, k: int, settings: IndexSettings) -> BackendChoice:
    """Pick the library that searches a region faster, by measured costs; `requested` if it is not `auto`."""
    costs = {name: kind.cost(dims, rows, k, settings) for name, kind in INDEXES.items()}
    listed = ", ".join(f"{name} about {cost:.0f} us per row" for name, cost in costs.items())
    if requested != "auto":
        index_kind(requested)
        return BackendChoice(requested, f"requested ({listed})")
    return BackendChoice(min(costs, key=lambda name: costs[name]), f"lowest estimated cost ({listed})")


def calibrate(index: RegionIndex, X: Floats, ids: Ints, sample: Ints, k: int, target: float) -> float:
    """Return the lowest effort whose recall, on rows of the region, is at least the target.

    Args:
        index: Index of the region.
        X: Its rows, float32 (n, d).
        ids: int64 (n,): their ids, ascending.
        sample: Positions of the rows to measure on, int64 (q,).
        k: Neighbours of a row.
        target: Recall to reach within the region; 1 uses the last effort.
    """
    low, high = 0, len(index.efforts) - 1
    if target >= 1 or not len(sample):
        return index.efforts[-1]
    _, true_keys = exact_neighbours(X[sample], X, k, index.metric, own=ids[sample], ids=ids)
    while low < high:
        middle = (low + high) // 2
        near, keys = index.query(X[sample], k + 1, index.efforts[middle])
        shares = shares_found(without_self(near, keys, ids[sample], k)[1], true_keys)
        low, high = (low, middle) if shares.mean() >= target else (middle + 1, high)
    return index.efforts[low]


def exact_neighbours(
    queries: Floats, X: Floats, k: int, metric: str, *, own: Ints | None = None, ids: Ints | None = None
) -> tuple[Ints, Floats]:
    """Search all rows for the nearest of each query, a block at a time.

    Args:
        queries: Shape (q, d).
        X: Shape (n, d).
        k: Neighbours per query.
        metric: Metric.
        own: int64 (q,): ids of the queries, to exclude themselves; None if they are not rows of X.
        ids: int64 (n,): ids of the rows; by default their positions.

    Returns:
        ids int64 (q, k) and keys float32 (q, k); see `Space.distances`.
    """
    ids = np.arange(len(X)) if ids is None else ids
    own = np.full(len(queries), NO_ID) if own is None else own
    rows = np.arange(len(queries))
    best_ids = np.full((len(queries), k), NO_ID, dtype=np.int64)
    best_keys = np.full((len(queries), k), np.inf, dtype=np.float32)
    for start in range(0, len(X), _EXACT_ROWS):
        part = slice(start, start + _EXACT_ROWS)
        block = Leaves.single(X[part], metric)
        numbers, keys = block.query(queries, min(k + 1, len(block)), ALL)
        near, keys = without_self(ids[part][numbers], keys, own, k)
        both = np.concatenate([best_ids, near]), np.concatenate([best_keys, keys])
        _, best_ids, best_keys = merge_top_k(np.concatenate([rows, rows]), *both, k)
    return best_ids, best_keys


@contextmanager
def blas_threads(limit: int) -> Iterator[int]:
    """Give BLAS `limit` threads and yield how many Python threads to run beside each other."""
    try:
        import threadpoolctl
    except ImportError:
        yield 1  # BLAS uses all cores by itself; threads on top of it would only compete
        return
    with threadpoolctl.threadpool_limits(limit):
        yield os.cpu_count() or 1
