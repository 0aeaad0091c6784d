"""Scaling of features: statistics that merge in any order, and the scaler they give.

Both are float64, and float32 comes last: coordinates in metres or seconds since 1970 have most of their digits in
common, and lose the others when they are made float32 as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.errors import ArtifactError, InputError

_LARGEST = float(np.finfo(np.float32).max)
_LEAST_STEPS = 1_000  # of float32 between the ends of a feature, below which its values are too few
_LEAST_SPREAD = 1e-300  # its reciprocal is still a float64
_CHUNK_NUMBERS = 1 << 18


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
        low, high = X.min(axis=0).astype(np.float64), X.max(axis=0).astype(np.float64)
        mean = np.clip(X.mean(axis=0, dtype=np.float64), low, high)
        m2 = ((X - mean) ** 2).sum(axis=0, dtype=np.float64)
        return cls(len(X), mean, m2, low, high)

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

    @property
    def coarse(self) -> NDArray[np.bool_]:
        """Which features, cast to float32 as they are, have too few steps between their ends; shape (d,).

        A feature of one value is none of them.
        """
        largest = np.minimum(np.maximum(np.abs(self.low), np.abs(self.high)), _LARGEST)
        step = np.spacing(largest.astype(np.float32)).astype(np.float64)
        coarse: NDArray[np.bool_] = ~self.constant & (self.high - self.low < _LEAST_STEPS * step)
        return coarse

    @property
    def overflow(self) -> NDArray[np.bool_]:
        """Which features, as they are, are so large that distances between rows are no float32; shape (d,)."""
        largest = np.maximum(np.abs(self.low), np.abs(self.high))
        overflow: NDArray[np.bool_] = largest > np.sqrt(_LARGEST / (4 * max(len(largest), 1)))
        return overflow

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
    """Maps a row x to (x - offset) * factor, in float64, then to float32. Shapes (d,), float64."""

    kind: str
    offset: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def fit(cls, kind: str, statistics: FeatureStatistics) -> Scaler:
        """Make the scaler of `data.scaling`; a constant feature becomes 0 when it scales at all.

        Means depend, in their last bits, on the order in which statistics were merged; they are rounded to a millionth
        of the spread, so that the same table gives the same scaler however it was cut.
        """
        width = len(statistics.mean)
        if kind == "none":
            return cls(kind, np.zeros(width), np.ones(width))
        varies = ~statistics.constant & (statistics.high - statistics.low > _LEAST_SPREAD)
        if kind == "minmax":
            offset, spread = statistics.low, statistics.high - statistics.low
        else:
            spread = np.sqrt(statistics.m2 / max(statistics.count, 1))
            spread = _rounded(spread, 2.0**-20 * spread)
            offset = _rounded(statistics.mean, 2.0**-20 * spread)
        factor = np.divide(1.0, spread, out=np.zeros(width), where=varies & (spread > _LEAST_SPREAD))
        return cls(kind, offset, factor)

    def transform(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Scale rows. What lies so far out that it is no float32 becomes infinite; callers refuse it.

        Args:
            X: Numbers, shape (n, d), not cast to fewer digits before.

        Returns:
            float32, shape (n, d); X itself if the scaler changes nothing and X is float32.

        Raises:
            InputError: if X has another number of features than the scaler was fitted on.
        """
        if X.shape[1] != len(self.offset):
            raise InputError(f"rows have {X.shape[1]} features; the model was trained on {len(self.offset)}")
        with np.errstate(over="ignore"):
            if self.kind == "none":
                return X.astype(np.float32, copy=False)
            scaled = np.empty(X.shape, np.float32)
            step = max(1, _CHUNK_NUMBERS // max(X.shape[1], 1))
            for start in range(0, len(X), step):
                part = np.subtract(X[start : start + step], self.offset, dtype=np.float64)
                part *= self.factor
                scaled[start : start + step] = part
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
        """Return plain lists for JSON; float64 survives the way exactly."""
        return {"kind": self.kind, "offset": self.offset.tolist(), "factor": self.factor.tolist()}

    @classmethod
    def from_mapping(cls, mapping: Any) -> Scaler:
        """Read what `to_mapping` gave.

        Raises:
            ArtifactError: if it is something else.
        """
        try:
            offset = np.asarray(mapping["offset"], dtype=np.float64)
            factor = np.asarray(mapping["factor"], dtype=np.float64)
            kind = str(mapping["kind"])
        except (KeyError, TypeError, ValueError) as err:
            raise ArtifactError(f"the saved scaler is not readable: {err!r}; train the model again") from err
        if offset.ndim != 1 or offset.shape != factor.shape:
            raise ArtifactError(f"the saved scaler has shapes {offset.shape} and {factor.shape}; train the model again")
        return cls(kind, offset, factor)


def _rounded(values: NDArray[np.float64], units: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to the power of two at or below each unit, exactly; a unit of 0 leaves the value as it is."""
    _, exponents = np.frexp(units)
    steps = np.ldexp(1.0, np.maximum(exponents - 1, -1074))
    whole = values / steps
    fits = (units > 0) & (np.abs(whole) < 2.0**52)
    return np.where(fits, np.round(np.where(fits, whole, 0)) * steps, values)
