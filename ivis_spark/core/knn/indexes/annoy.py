"""Annoy, an approximate index by random trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from annoy import AnnoyIndex as _Annoy

from ivis_spark.core.knn.indexes import IndexSettings, RegionFiles, RegionIndex
from ivis_spark.core.knn.leaves import ALL, Leaves
from ivis_spark.core.knn.merge import ties_by_id
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.topk import in_order

_MAX_SEED = 2**31 - 1
# Microseconds on one core of a 2020s server: tests/bench/bench_index_costs.py measures them again.
_NODE, _NODE_VALUE, _TREE, _TREE_VALUE = 0.15, 0.0006, 1.0, 0.0011


class Index(RegionIndex):
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
    def build(cls, X: npt.NDArray[Any], ids: Ints, metric: str, settings: IndexSettings) -> Index:
        """Index rows, float32 (n, d), with ids int64 (n,)."""
        rows = Space(metric).prepare(X)
        index = _Annoy(rows.shape[1], cast(Any, metric))
        index.set_seed(settings.seed % _MAX_SEED)
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
            nearest = self._index.get_nns_by_vector(query, k, nodes)
            if len(nearest) < k:
                short.append(place)
            else:
                numbers[place] = nearest
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
    def load(cls, files: RegionFiles, metric: str, dims: int) -> Index:
        """Open a saved index by mmap."""
        index = _Annoy(dims, cast(Any, metric))
        with files.local(cls.suffixes[0]) as path, files.local(cls.suffixes[1]) as ids:
            index.load(path)
            return cls(index, np.load(ids, allow_pickle=False), metric, 1)

    @classmethod
    def cost(cls, dims: int, rows: int, k: int, settings: IndexSettings) -> float:
        """Return the microseconds of a row, as `RegionIndex.cost`."""
        nodes = min(rows, settings.n_trees * k if settings.search_k < 0 else settings.search_k)
        splitting = settings.n_trees * (_TREE + _TREE_VALUE * dims)
        return float(nodes * (_NODE + _NODE_VALUE * dims) + splitting * np.log2(max(2, rows)))
