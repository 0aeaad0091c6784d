"""A third index library, as a user may write it: all rows, compared with every query."""

from __future__ import annotations

import numpy as np

from ivis_spark.core.knn.exact import exact_neighbours
from ivis_spark.core.knn.indexes import RegionIndex


class Index(RegionIndex):
    efforts = (1.0,)

    def __init__(self, rows, ids, metric) -> None:
        self.rows, self.ids, self.metric = rows, ids, metric

    @classmethod
    def build(cls, X, ids, metric, settings) -> Index:
        return cls(X, ids, metric)

    @classmethod
    def load(cls, files, metric, dims) -> Index:
        with files.local(".npz") as path, np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["rows"], arrays["ids"], metric)

    @classmethod
    def cost(cls, dims, rows, k, settings) -> float:
        return 0.5

    def query(self, Q, k, effort):
        return exact_neighbours(Q, self.rows, k, self.metric, ids=self.ids)

    def save(self, path) -> list[str]:
        np.savez(path + ".npz", rows=self.rows, ids=self.ids)
        return [".npz"]
