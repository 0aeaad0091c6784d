"""Scaling of features: statistics that merge in any order, and the scaler they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.errors import ArtifactError, InputError


@dataclass(frozen=True)
class FeatureStatistics:
    """Count, mean, sum of squared deviations, minimum and maximum of each feature; float64, shape (d,).

    Partial statistics merge exactly in any order (Chan, Golub and LeVeque 1979), so Spark may cut the table anywhere.
    """

    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def empty(cls, width: int) -> FeatureStatistics:
        """Statistics of no rows."""
        zeros = np.zeros(width)
        return cls(0, zeros, zeros, np.full(width, np.inf), np.full(width, -np.inf))

    @classmethod
    def of(cls, X: NDArray[Any]) -> FeatureStatistics:
        """Statistics of the rows of X, shape (n, d), finite."""
        if len(X) == 0:
            return cls.empty(X.shape[1])
        mean = X.mean(axis=0, dtype=np.float64)
        m2 = ((X - mean) ** 2).sum(axis=0, dtype=np.float64)
        return cls(len(X), mean, m2, X.min(axis=0).astype(np.float64), X.max(axis=0).astype(np.float64))

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Statistics of the rows of both."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        return FeatureStatistics(
            count,
            self.mean + delta * (other.count / count),
            self.m2 + other.m2 + delta**2 * (self.count * other.count / count),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Which features have one value only, shape (d,)."""
        return self.low == self.high

    def to_bytes(self) -> bytes:
        """Pack for a table's binary column."""
        return np.concatenate([[self.count], self.mean, self.m2, self.low, self.high]).astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, packed: bytes) -> FeatureStatistics:
        """Unpack what `to_bytes` gave."""
        values = np.frombuffer(packed, dtype="<f8")
        mean, m2, low, high = values[1:].reshape(4, -1)
        return cls(int(values[0]), mean, m2, low, high)


@dataclass(frozen=True)
class Scaler:
    """Maps a row x to (x - offset) * factor, in float32. Shapes (d,)."""

    kind: str
    offset: NDArray[np.float32]
    factor: NDArray[np.float32]

    @classmethod
    def fit(cls, kind: str, statistics: FeatureStatistics) -> Scaler:
        """Make the scaler of `data.scaling`; a constant feature becomes 0 when it scales at all."""
        width = len(statistics.mean)
        if kind == "none":
            return cls(kind, np.zeros(width, np.float32), np.ones(width, np.float32))
        if kind == "minmax":
            offset, spread = statistics.low, statistics.high - statistics.low
        else:
            offset, spread = statistics.mean, np.sqrt(statistics.m2 / max(statistics.count, 1))
        factor = np.divide(1.0, spread, out=np.zeros(width), where=~statistics.constant & (spread > 0))
        return cls(kind, offset.astype(np.float32), factor.astype(np.float32))

    def transform(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Scale rows.

        Args:
            X: Numbers, shape (n, d).

        Returns:
            float32, shape (n, d); X itself if the scaler changes nothing and X is float32.

        Raises:
            InputError: if X has another number of features than the scaler was fitted on.
        """
        if X.shape[1] != len(self.offset):
            raise InputError(f"rows have {X.shape[1]} features; the model was trained on {len(self.offset)}")
        if self.kind == "none":
            return X.astype(np.float32, copy=False)
        scaled = np.subtract(X, self.offset, dtype=np.float32)
        scaled *= self.factor
        return scaled

    def inverse(self, values: NDArray[Any], features: Sequence[int]) -> NDArray[np.float64]:
        """Return scaled values of some features, shape (n, len(features)), as the user had them.

        A constant feature is the value it has.
        """
        places = list(features)
        factor = self.factor[places].astype(np.float64)
        unscaled = np.divide(values, factor, out=np.zeros(values.shape), where=factor != 0)
        return unscaled + self.offset[places]

    def to_mapping(self) -> dict[str, Any]:
        """Return plain lists for JSON; float32 survives the way exactly."""
        return {"kind": self.kind, "offset": self.offset.tolist(), "factor": self.factor.tolist()}

    @classmethod
    def from_mapping(cls, mapping: Any) -> Scaler:
        """Read what `to_mapping` gave.

        Raises:
            ArtifactError: if it is something else.
        """
        try:
            offset = np.asarray(mapping["offset"], dtype=np.float32)
            factor = np.asarray(mapping["factor"], dtype=np.float32)
            kind = str(mapping["kind"])
        except (KeyError, TypeError, ValueError) as err:
            raise ArtifactError(f"the saved scaler is not readable: {err!r}; train the model again") from err
        if offset.ndim != 1 or offset.shape != factor.shape:
            raise ArtifactError(f"the saved scaler has shapes {offset.shape} and {factor.shape}; train the model again")
        return cls(kind, offset, factor)
