"""Indexes of one cell behind one small interface: exact (a matrix product and a partial sort) and Annoy.

A cell's rows are numbered 0..n-1; `query` returns such numbers and keys (see `core.spaces`) computed exactly from
differences, so two indexes that find the same rows return the same bits. Ties go to the lower number; where more rows
tie for the last places than there are, which of them are found is up to the index.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from annoy import AnnoyIndex as _Annoy

from ivis_spark.core.knn.metrics import Floats, Ints, Space, Target
from ivis_spark.errors import ArtifactError

_BLOCK_BYTES = 4 << 20  # of keys: what fits the second-level caches while it is searched
_NARROW = 384  # below this many columns a plain partial sort is as fast as the sampled threshold
_STRIDE = 16
_ANNOY_MAX_SEED = 2**31 - 1
_ANNOY_STEP = 1024


class CellIndex(Protocol):
    """What the search, the query and the tests ask of an index."""

    suffix: str

    def query(self, Q: npt.NDArray[Any], k: int) -> tuple[Ints, Floats]:
        """Return numbers int64 (q, k) and keys float32 (q, k), nearest first; k must not exceed the rows."""
        ...

    def query_all(self, k: int) -> Iterator[tuple[Ints, Floats]]:
        """Yield what `query` returns for the cell's own rows, some rows at a time, in order."""
        ...

    def save(self, path: str) -> None:
        """Write one local file that the class's `load` opens by mmap."""
        ...


class ExactIndex:
    """All rows of a cell, searched exactly.

    Args:
        X: Rows as they came, shape (n, d).
        metric: str.
    """

    suffix = ".vectors.npy"

    def __init__(self, X: npt.NDArray[Any], metric: str) -> None:
        self._space = Space(metric)
        self._rows = self._space.prepare(X)
        self._target: Target | None = None

    def query(self, Q: npt.NDArray[Any], k: int) -> tuple[Ints, Floats]:
        """Return the nearest rows, as `CellIndex.query`. Memory: O(block)."""
        queries, step = self._space.prepare(Q), self._step()
        parts = [queries[start : start + step] for start in range(0, len(queries), step)]
        found = [self._pick(part, self._ready().rank_keys(part), k) for part in parts]
        if not found:
            return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
        return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])

    def query_all(self, k: int) -> Iterator[tuple[Ints, Floats]]:
        """Yield the nearest rows of the cell's own, as `CellIndex.query_all`."""
        start = 0
        for keys in self._ready().rank_keys_of_all(self._step()):
            yield self._pick(self._rows[start : start + len(keys)], keys, k)
            start += len(keys)

    def _step(self) -> int:
        return max(16, _BLOCK_BYTES // (4 * max(1, len(self._rows))))

    def _ready(self) -> Target:
        if self._target is None:
            self._target = self._space.target(self._rows)
        return self._target

    def _pick(self, queries: Floats, rank_keys: Floats, k: int) -> tuple[Ints, Floats]:
        """Choose candidates by rounded keys, then rank them by exact ones."""
        found = smallest_columns(rank_keys, min(len(self._rows), k + 2 + k // 16))
        return _in_order(found, self._space.pair_keys(queries, self._rows, found), k)

    def save(self, path: str) -> None:
        """Write the prepared rows as an .npy file."""
        with open(path, "wb") as file:
            np.save(file, self._rows)

    @classmethod
    def load(cls, path: str, metric: str, dims: int) -> ExactIndex:
        """Open a saved index by mmap. Raises ArtifactError if it is not one."""
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as err:
            raise ArtifactError(f"index file {path} cannot be read ({err}); build the neighbours anew") from err
        if rows.ndim != 2 or rows.shape[1] != dims:
            raise ArtifactError(f"index file {path} holds shape {rows.shape}, not (rows, {dims}); build it anew")
        index = cls.__new__(cls)
        index._space, index._rows, index._target = Space(metric), rows, None
        return index


class AnnoyIndex:
    """An Annoy forest over a cell. Built in one thread, so that `seed` decides every split.

    Args:
        X: Rows as they came, shape (n, d).
        metric: str.
        n_trees: Trees of the forest.
        search_k: Nodes inspected a query; -1 is n_trees * k.
        seed: Seed of the splits.
    """

    suffix = ".ann"

    def __init__(self, X: npt.NDArray[Any], metric: str, *, n_trees: int, search_k: int = -1, seed: int = 0) -> None:
        self._space, self._search_k = Space(metric), search_k
        self._rows: Floats = self._space.prepare(X)
        self._index = _Annoy(self._rows.shape[1], cast(Any, metric))
        self._index.set_seed(seed % _ANNOY_MAX_SEED)
        for number, row in enumerate(self._rows):
            self._index.add_item(number, row)
        self._index.build(n_trees, n_jobs=1)

    def query(self, Q: npt.NDArray[Any], k: int) -> tuple[Ints, Floats]:
        """Return near rows, as `CellIndex.query`; queries for which Annoy finds fewer than k are searched exactly."""
        queries = self._space.prepare(Q)
        numbers = np.zeros((len(queries), k), dtype=np.int64)
        short = []
        for at, query in enumerate(queries):
            found = self._index.get_nns_by_vector(query, k, self._search_k)
            if len(found) < k:
                short.append(at)
            else:
                numbers[at] = found
        if short:
            exact = ExactIndex.__new__(ExactIndex)
            exact._space, exact._rows, exact._target = self._space, self._rows, None
            numbers[short] = exact.query(queries[short], k)[0]
        numbers.sort(axis=1)
        return _in_order(numbers, self._space.pair_keys(queries, self._rows, numbers), k)

    def query_all(self, k: int) -> Iterator[tuple[Ints, Floats]]:
        """Yield the near rows of the cell's own, as `CellIndex.query_all`."""
        for start in range(0, len(self._rows), _ANNOY_STEP):
            yield self.query(self._rows[start : start + _ANNOY_STEP], k)

    def save(self, path: str) -> None:
        """Write Annoy's own file."""
        self._index.save(path)

    @classmethod
    def load(cls, path: str, metric: str, dims: int, *, search_k: int = -1) -> AnnoyIndex:
        """Open a saved index by mmap. Raises ArtifactError if Annoy cannot read it."""
        index = cls.__new__(cls)
        index._space, index._search_k, index._index = Space(metric), search_k, _Annoy(dims, cast(Any, metric))
        try:
            index._index.load(path)
        except OSError as err:
            raise ArtifactError(f"index file {path} cannot be read ({err}); build the neighbours anew") from err
        count = index._index.get_n_items()
        rows = np.array([index._index.get_item_vector(number) for number in range(count)], dtype=np.float32)
        index._rows = rows.reshape(count, dims)
        return index


@dataclass(frozen=True)
class BackendChoice:
    """Which index was picked, and why in words."""

    backend: str
    reason: str


@dataclass(frozen=True)
class IndexSettings:
    """What an index may be built with: Annoy's trees, nodes a query (-1: n_trees * k) and the seed of its splits."""

    n_trees: int
    search_k: int
    seed: int = 0


@dataclass(frozen=True)
class IndexKind:
    """All that the stage, the query and `auto` need to know of an index. A new one joins by `register_index`.

    Attributes:
        build: Makes an index of rows (n, d) under a metric.
        load: Opens a saved one by mmap: path, metric, dims, search_k.
        cost: Microseconds a row of building and searching: metric, dims, rows of the cell, k, settings.
        keeps_home: Whether it is so cheap to build that it is kept anew for only the rows at home in a cell.
    """

    build: Callable[[npt.NDArray[Any], str, IndexSettings], CellIndex]
    load: Callable[[str, str, int, int], CellIndex]
    cost: Callable[[str, int, int, int, IndexSettings], float]
    keeps_home: bool = False


# Microseconds on one core of a 2020s server: tests/bench/bench_index_costs.py measures them anew.
_EXACT_PER_VALUE = {"manhattan": 0.00045}
_EXACT_PER_VALUE_PRODUCT = 0.00004
_EXACT_PER_COLUMN = 0.004
_ANNOY_PER_NODE = 0.15
_ANNOY_PER_NODE_VALUE = 0.0006
_ANNOY_BUILD_PER_TREE_VALUE = 0.0011
_ANNOY_BUILD_PER_TREE = 1.0


def _exact_cost(metric: str, dims: int, cell_rows: int, k: int, settings: IndexSettings) -> float:
    return cell_rows * (_EXACT_PER_COLUMN + _EXACT_PER_VALUE.get(metric, _EXACT_PER_VALUE_PRODUCT) * dims)


def _annoy_cost(metric: str, dims: int, cell_rows: int, k: int, settings: IndexSettings) -> float:
    nodes = min(cell_rows, settings.n_trees * k if settings.search_k < 0 else settings.search_k)
    searching = nodes * (_ANNOY_PER_NODE + _ANNOY_PER_NODE_VALUE * dims)
    splitting = settings.n_trees * (_ANNOY_BUILD_PER_TREE + _ANNOY_BUILD_PER_TREE_VALUE * dims)
    return float(searching + splitting * np.log2(max(2, cell_rows)))


INDEXES: dict[str, IndexKind] = {
    "exact": IndexKind(
        build=lambda X, metric, settings: ExactIndex(X, metric),
        load=lambda path, metric, dims, search_k: ExactIndex.load(path, metric, dims),
        cost=_exact_cost,
        keeps_home=True,
    ),
    "annoy": IndexKind(
        build=lambda X, metric, settings: AnnoyIndex(X, metric, **dataclasses.asdict(settings)),
        load=lambda path, metric, dims, search_k: AnnoyIndex.load(path, metric, dims, search_k=search_k),
        cost=_annoy_cost,
    ),
}


def register_index(name: str, kind: IndexKind) -> None:
    """Add an index under the name that `neighbours.backend` gives it; in executors too, so from an imported module."""
    INDEXES[name] = kind


def estimate_costs(metric: str, *, dims: int, cell_rows: int, k: int, n_trees: int, search_k: int) -> dict[str, float]:
    """Return the microseconds a row, on one core, that each index is expected to take."""
    settings = IndexSettings(n_trees, search_k)
    return {name: kind.cost(metric, dims, cell_rows, k, settings) for name, kind in INDEXES.items()}


def choose_backend(
    metric: str, *, dims: int, cell_rows: int, k: int, n_trees: int, search_k: int, requested: str = "auto"
) -> BackendChoice:
    """Pick the index that searches a cell faster, by a model whose constants were measured.

    Args:
        metric: str.
        dims: Features of a row.
        cell_rows: Rows of a typical cell, those that overlap into it included.
        k: Neighbours wanted.
        n_trees: Annoy's trees.
        search_k: Annoy's nodes a query; -1 is n_trees * k.
        requested: `auto`, or the name of an index, which is then taken.
    """
    found = estimate_costs(metric, dims=dims, cell_rows=cell_rows, k=k, n_trees=n_trees, search_k=search_k)
    listed = ", ".join(f"{name} about {cost:.0f} us a row" for name, cost in found.items())
    costs = f"{cell_rows} rows a cell, {dims} dims, k={k}: {listed}"
    if requested != "auto":
        return BackendChoice(requested, f"asked for ({costs})")
    return BackendChoice(min(found, key=lambda name: found[name]), f"cheaper by the cost model ({costs})")


def make_index(backend: str, X: npt.NDArray[Any], metric: str, *, n_trees: int, search_k: int, seed: int) -> CellIndex:
    """Build an index of the rows of a cell."""
    return INDEXES[backend].build(X, metric, IndexSettings(n_trees, search_k, seed))


def load_index(backend: str, path: str, metric: str, dims: int, *, search_k: int) -> CellIndex:
    """Open a saved index by mmap.

    Raises:
        ArtifactError: if the file is missing or cannot be read.
    """
    if not os.path.exists(path):
        raise ArtifactError(f"index file {path} is missing; build the neighbours anew")
    return INDEXES[backend].load(path, metric, dims, search_k)


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
    found = np.take_along_axis(candidates, picked, axis=1)
    short = counts < k
    if short.any():
        found[short] = np.argpartition(keys[short], k - 1, axis=1)[:, :k]
    return found


def sortable_bits(keys: Floats, *, signed: bool) -> npt.NDArray[np.uint32]:
    """Return uint32 that order as the float32 keys do. Without negative keys the bits themselves do."""
    bits = (keys + np.float32(0)).view(np.uint32)  # + 0 makes -0 one with 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) if signed else bits


def bits_to_keys(bits: npt.NDArray[np.uint32], *, signed: bool) -> Floats:
    """Undo `sortable_bits`."""
    if signed:
        bits = np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), ~bits)
    return bits.view(np.float32)


def pack(keys: Floats, numbers: npt.NDArray[Any], *, signed: bool) -> npt.NDArray[np.uint64]:
    """Return uint64 that order by key, then by number (below 2**32): one sort does for both."""
    packed = sortable_bits(keys, signed=signed).astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= numbers.view(np.uint64) if numbers.dtype == np.int64 else numbers.astype(np.uint64)
    return packed


def unpack(packed: npt.NDArray[np.uint64], *, signed: bool) -> tuple[Ints, Floats]:
    """Return the numbers int64 and keys float32 of what `pack` made."""
    halves = np.ascontiguousarray(packed).view(np.uint32).reshape(*packed.shape, 2)
    low, high = (0, 1) if np.little_endian else (1, 0)
    return halves[..., low].astype(np.int64), bits_to_keys(np.ascontiguousarray(halves[..., high]), signed=signed)


def _in_order(numbers: Ints, keys: Floats, k: int) -> tuple[Ints, Floats]:
    """Sort candidates by (key, number) and keep k of them."""
    signed = bool((keys < 0).any())
    packed = pack(keys, numbers, signed=signed)
    packed.sort(axis=1)
    return unpack(packed[:, :k], signed=signed)
