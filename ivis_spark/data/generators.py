"""Batches of triplets by number, with ivis's names."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.config import Config, TrainConfig
from ivis_spark.core.seeds import RandomState, to_seed
from ivis_spark.data.rows import as_labels, as_rows
from ivis_spark.data.triplets import TripletReader
from ivis_spark.errors import ConfigError


class TripletGenerator(Sequence[Any]):
    """Batch i holds rows i * batch_size and on as anchors; their positives and negatives are drawn afresh each time."""

    def __init__(
        self,
        X: Any,
        neighbour_matrix: Sequence[Any],
        batch_size: int = TrainConfig.batch_size,
        random_state: RandomState = Config.random_state,
    ) -> None:
        """Set up.

        Args:
            X: Rows: an array, or anything `Ivis` takes.
            neighbour_matrix: Row numbers of each row's neighbours; lists may differ in length.
            batch_size: Anchors of a batch; the last may hold fewer.
            random_state: Seed, as in `Ivis`.

        Raises:
            ConfigError: if a batch would hold more than all rows.
            InputError: if rows or neighbours cannot be used.
        """
        rows = as_rows(X)
        if batch_size > len(rows):
            raise ConfigError(f"batch_size={batch_size} must be at most the number of rows, {len(rows)}; lower it")
        self.batch_size = batch_size
        self._rows = len(rows)
        self._reader = TripletReader(rows, neighbour_matrix)
        self._rng = np.random.default_rng(to_seed(random_state))

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return math.ceil(self._rows / self.batch_size)

    def __getitem__(self, idx: Any) -> Any:
        """Return (anchors, positives, negatives), float32 (b, ...) each, and the labels of the anchors."""
        start = range(len(self))[idx] * self.batch_size
        anchors = np.arange(start, min(start + self.batch_size, self._rows))
        stacked = self._reader.read(self._reader.draw(anchors, self._rng))
        return tuple(np.split(stacked, 3)), self._labels(anchors)

    @abstractmethod
    def _labels(self, anchors: NDArray[np.int64]) -> Any:
        """Return what stands beside a batch."""


class UnsupervisedTripletGenerator(TripletGenerator):
    """Triplets without labels; zeros stand in their place."""

    def _labels(self, anchors: NDArray[np.int64]) -> Any:
        return np.zeros(len(anchors), dtype=np.uint8)


class SupervisedTripletGenerator(TripletGenerator):
    """Triplets with the labels of the anchors, twice: for the triplet loss and for the supervised one."""

    def __init__(
        self,
        X: Any,
        Y: ArrayLike,
        neighbour_matrix: Sequence[Any],
        batch_size: int = TrainConfig.batch_size,
        random_state: RandomState = Config.random_state,
    ) -> None:
        """Set up as `TripletGenerator`; Y holds one label per row."""
        super().__init__(X, neighbour_matrix, batch_size, random_state)
        self._Y = as_labels(Y, self._rows)

    def _labels(self, anchors: NDArray[np.int64]) -> Any:
        return self._Y[anchors], self._Y[anchors]


def generator_from_neighbour_matrix(
    X: Any, Y: ArrayLike | None, neighbour_matrix: Sequence[Any], batch_size: int
) -> TripletGenerator:
    """Return the generator for data with or without labels."""
    if Y is None:
        return UnsupervisedTripletGenerator(X, neighbour_matrix, batch_size)
    return SupervisedTripletGenerator(X, Y, neighbour_matrix, batch_size)
