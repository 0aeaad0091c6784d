"""Neighbours by label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class LabeledNeighbourMap(Sequence[Any]):
    """Rows with the same label are neighbours: of row i, all rows labelled like it, itself among them.

    Args:
        labels: One label a row, shape (n,).
    """

    def __init__(self, labels: ArrayLike) -> None:
        self.labels = np.asarray(labels)
        _, codes = np.unique(self.labels, return_inverse=True)
        starts = np.cumsum(np.bincount(codes))[:-1]
        self.class_indicies: list[NDArray[np.int64]] = np.split(np.argsort(codes, kind="stable"), starts)
        self._codes = codes

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    def __getitem__(self, idx: Any) -> Any:
        """Return the numbers of the rows labelled like row `idx`, int64 (m,); of a slice a list of such."""
        if isinstance(idx, slice):
            return [self[i] for i in range(*idx.indices(len(self)))]
        return self.class_indicies[self._codes[idx]]
