"""Neighbours by label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ivis_spark.data.arrays import Ints
from ivis_spark.errors import InputError


class LabeledNeighbourMap(Sequence[Any]):
    """Rows with the same label are neighbours: of row i, all rows with its label, including itself.

    Args:
        labels: One label per row, shape (n,).

    Example:
        >>> from ivis_spark.data.neighbour_retrieval import LabeledNeighbourMap
        >>> LabeledNeighbourMap(["a", "b", "a"])[0]
        array([0, 2])
    """

    def __init__(self, labels: ArrayLike) -> None:
        self.labels = np.asarray(labels)
        _, self._codes = np.unique(self.labels, return_inverse=True)
        self._counts = np.bincount(self._codes)
        self._starts = np.cumsum(self._counts) - self._counts
        self._order = np.argsort(self._codes, kind="stable")  # class after class
        self._places = np.argsort(self._order)  # of every row in that order

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    def __getitem__(self, idx: Any) -> Any:
        """Return the indices of the rows with the label of row `idx`, int64 (m,); a list of them for a slice."""
        if isinstance(idx, slice):
            return [self[i] for i in range(*idx.indices(len(self)))]
        code = self._codes[idx]
        return self._order[self._starts[code] : self._starts[code] + self._counts[code]]

    def draw(self, anchors: Ints, rng: np.random.Generator) -> Ints:
        """Sample a positive and a negative for every anchor without listing its neighbours.

        Args:
            anchors: Row numbers, shape (b,).
            rng: Source of randomness.

        Returns:
            Anchors, positives and negatives, int64, shape (3, b). A row alone in its class is its own positive.

        Raises:
            InputError: if all rows have one label.
        """
        if len(self._counts) == 1:
            raise InputError(f"all {len(self)} rows are labelled {self.labels[0]}, so none has a negative")
        codes = self._codes[anchors]
        starts, counts = self._starts[codes], self._counts[codes]
        steps = 1 + rng.integers(0, np.maximum(counts - 1, 1))
        positives = starts + (self._places[anchors] - starts + steps) % counts
        negatives = rng.integers(0, len(self) - counts)
        negatives += np.where(negatives >= starts, counts, 0)
        return np.stack([anchors, self._order[positives], self._order[negatives]])
