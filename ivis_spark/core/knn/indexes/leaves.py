"""Leaves, ours: matrix products with the rows of the nearest leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ivis_spark.core.knn.indexes import IndexSettings, RegionFiles, RegionIndex
from ivis_spark.core.knn.leaves import ALL, Leaves
from ivis_spark.core.knn.merge import ties_by_id
from ivis_spark.core.knn.metrics import Floats, Ints

_HIGH_EFFORT = 4.0  # digits need 1 for a recall of .97
_EFFORTS = (*(round(0.1 * 1.15**step, 3) for step in range(45)), ALL)  # of `Leaves.query`, up to 47
# Microseconds on one core of a 2020s server: tests/bench/bench_index_costs.py measures them again.
_ROW, _PAIRS, _PAIR, _PAIR_VALUE, _NEIGHBOUR = 15.0, 5.0, 0.004, 0.00004, 0.2


class Index(RegionIndex):
    """Leaves with the ids of their rows.

    Args:
        leaves: Leaves.
        ids: int64 (n,): in the order of the leaves.
    """

    suffix = ".leaves"

    def __init__(self, leaves: Leaves, ids: Callable[[Ints], Ints]) -> None:
        self.leaves, self._ids = leaves, ids
        self.metric: str = leaves.metric
        self.efforts: Sequence[float] = _EFFORTS
        self.high_effort = ALL if leaves.projected is None else _HIGH_EFFORT

    @classmethod
    def build(cls, X: npt.NDArray[Any], ids: Ints, metric: str, settings: IndexSettings) -> Index:
        """Group rows, float32 (n, d), with ids int64 (n,)."""
        leaves, order = Leaves.build(
            X, metric, leaf_rows=settings.leaf_rows, seed=settings.seed, projects=settings.projects
        )
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
    def load(cls, files: RegionFiles, metric: str, dims: int) -> Index:
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

    @classmethod
    def cost(cls, dims: int, rows: int, k: int, settings: IndexSettings) -> float:
        """Return the microseconds of a row, as `RegionIndex.cost`."""
        pairs = min(rows, _PAIRS * max(settings.leaf_rows, k))
        return _ROW + pairs * (_PAIR + _PAIR_VALUE * dims) + _NEIGHBOUR * k
