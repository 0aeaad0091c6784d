"""Scaling of features: statistics that merge in any order, and the scaler they give.

Both are float64, and float32 comes last: coordinates in metres or seconds since 1970 have most of their digits in
common, and lose the others when they are made float32 as they are.
"""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.core.projection import Projection, is_sparse
from ivis_spark.errors import UNREADABLE, ArtifactError, InputError

SCALER, FORMER_SCALER = "scaler.npz", "scaler.json"  # its file, and that of older versions
_LARGEST = float(np.finfo(np.float32).max)
_LEAST_STEPS = 1_000  # of float32 between the ends of a feature, below which its values are too few
_LEAST_SPREAD = 1e-300  # its reciprocal is still a float64
_CHUNK_NUMBERS = 1 << 18
STATISTICS_BYTES = 32  # of a feature: four float64


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
    def of(cls, X: Any) -> FeatureStatistics:
        """Statistics of the rows of X, shape (n, d), finite; an array or a SciPy sparse matrix of float64."""
        if X.shape[0] == 0:
            return cls.empty(X.shape[1])
        if is_sparse(X):
            return cls._of_sparse(X)
        low, high = X.min(axis=0).astype(np.float64), X.max(axis=0).astype(np.float64)
        mean = np.clip(X.mean(axis=0, dtype=np.float64), low, high)
        m2 = ((X - mean) ** 2).sum(axis=0, dtype=np.float64)
        return cls(len(X), mean, m2, low, high)

    @classmethod
    def _of_sparse(cls, X: Any) -> FeatureStatistics:
        n, width = X.shape
        low, high = (extremes.toarray().ravel() for extremes in (X.min(axis=0), X.max(axis=0)))
        mean = np.clip(np.bincount(X.indices, X.data, width) / n, low, high)
        zeros = n - np.bincount(X.indices, minlength=width)
        m2 = np.bincount(X.indices, (X.data - mean[X.indices]) ** 2, width) + zeros * mean**2
        return cls(n, mean, m2, low, high)

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
        """Which features, as they are, are so large that distances between rows exceed float32; shape (d,)."""
        largest = np.maximum(np.abs(self.low), np.abs(self.high))
        overflow: NDArray[np.bool_] = largest > np.sqrt(_LARGEST / (4 * max(len(largest), 1)))
        return overflow

    def cut(self, features: int) -> Iterator[tuple[int, FeatureStatistics]]:
        """Yield the statistics of so many features at a time, each with the number of its first feature."""
        for first in range(0, len(self.mean), features):
            part = slice(first, first + features)
            yield first, FeatureStatistics(self.count, *(values[part] for values in self._values))

    @classmethod
    def joined(cls, parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
        """Statistics of the features of all parts, which are of the same rows, one after the other."""
        return cls(
            parts[0].count, *(np.concatenate(values) for values in zip(*(p._values for p in parts), strict=True))
        )

    @property
    def _values(self) -> tuple[NDArray[np.float64], ...]:
        return self.mean, self.m2, self.low, self.high

    def to_bytes(self) -> bytes:
        """Pack for a table's binary column."""
        return np.concatenate([[self.count], *self._values]).astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, packed: bytes) -> FeatureStatistics:
        """Unpack what `to_bytes` gave."""
        values = np.frombuffer(packed, dtype="<f8")
        mean, m2, low, high = values[1:].reshape(4, -1)
        return cls(int(values[0]), mean, m2, low, high)


@dataclass(frozen=True)
class Scaler:
    """Maps a row x to (x - offset) * factor, in float64, then to float32. Shapes (d,), float64.

    With a projection, scaled rows are projected onto principal components before they are made float32. All that takes
    a scaler, such as an encoder or an index, then takes rows as the user has them, dense or sparse.
    """

    kind: str
    offset: NDArray[np.float64]
    factor: NDArray[np.float64]
    projection: Projection | None = None

    @property
    def n_inputs(self) -> int:
        """Features of a row as the user has it."""
        return len(self.offset)

    @property
    def n_outputs(self) -> int:
        """Numbers of a row that was transformed."""
        return self.n_inputs if self.projection is None else self.projection.axes.shape[1]

    @classmethod
    def of_projection(cls, projection: Projection) -> Scaler:
        """Return what projects alone."""
        width = len(projection.mean)
        return cls("none", np.zeros(width), np.ones(width), projection)

    @functools.cached_property
    def _folded(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The scaling folded into the projection: axes (d, c) and constant (c,), so that sparse rows stay sparse."""
        projection = self.projection
        if projection is None:
            raise ValueError("there is no projection")
        return self.factor[:, None] * projection.axes, (self.offset * self.factor + projection.mean) @ projection.axes

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

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Scale rows, and project them. Values beyond float32 become infinite, which callers refuse.

        Args:
            X: Numbers, shape (n, d), not cast to fewer digits before; an array, or a SciPy sparse matrix, which is made
                dense a chunk at a time if there is no projection.

        Returns:
            float32, shape (n, n_outputs); X itself if the scaler changes nothing and X is float32.

        Raises:
            InputError: if X has another number of features than the scaler was fitted on.
        """
        if X.shape[1] != len(self.offset):
            raise InputError(f"rows have {X.shape[1]} features; the model was trained on {len(self.offset)}")
        with np.errstate(over="ignore", invalid="ignore"):
            if is_sparse(X) and self.projection is not None:
                axes, constant = self._folded
                return np.asarray(X.astype(np.float64) @ axes - constant, dtype=np.float32)
            if self.kind == "none" and self.projection is None and not is_sparse(X):
                return np.asarray(X.astype(np.float32, copy=False))
            output = np.empty((X.shape[0], self.n_outputs), np.float32)
            step = max(1, _CHUNK_NUMBERS // max(X.shape[1], 1))
            for start in range(0, X.shape[0], step):
                part = X[start : start + step]
                part = np.subtract(part.toarray() if is_sparse(X) else part, self.offset, dtype=np.float64)
                part *= self.factor
                output[start : start + step] = part if self.projection is None else self.projection.transform(part)
        return output

    def scale(self, X: Any) -> Any:
        """Return rows scaled and not projected, float64 (n, d); sparse ones times the factor alone stay sparse."""
        if is_sparse(X):
            return X.multiply(self.factor[None, :]).tocsr()
        rows = np.subtract(X, self.offset, dtype=np.float64)
        rows *= self.factor
        return rows

    def inverse(self, values: NDArray[Any], features: Sequence[int]) -> NDArray[np.float64]:
        """Return scaled values of some features, shape (n, len(features)), as the user had them.

        A constant feature is the value it has.
        """
        places = list(features)
        factor = self.factor[places].astype(np.float64)
        unscaled = np.divide(values, factor, out=np.zeros(values.shape), where=factor != 0)
        return unscaled + self.offset[places]

    def to_bytes(self) -> bytes:
        """Return the scaler as a compressed npz file: arrays, nothing that could run, and every number exactly."""
        buffer = io.BytesIO()
        arrays = {} if self.projection is None else self.projection.to_arrays()
        np.savez_compressed(buffer, kind=np.asarray(self.kind), offset=self.offset, factor=self.factor, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Scaler:
        """Read what `to_bytes` gave, or the JSON that older versions kept of a scaling without a projection.

        Raises:
            ArtifactError: if it is something else.
        """
        try:
            if content[:1] == b"{":  # JSON, of an older version
                arrays: Any = {name: np.asarray(value) for name, value in json.loads(content).items()}
            else:
                with np.load(io.BytesIO(content), allow_pickle=False) as held:
                    arrays = dict(held)
            if "projection" in arrays:
                raise ValueError("its projection is of an older version")
            kind, offset, factor = (arrays[name] for name in ("kind", "offset", "factor"))
            projection = Projection.from_arrays(arrays) if "axes" in arrays else None
            offset, factor = offset.astype(np.float64), factor.astype(np.float64)
        except UNREADABLE as err:
            raise ArtifactError(f"the saved scaler cannot be read: {err!r}; run again") from err
        if offset.ndim != 1 or offset.shape != factor.shape:
            raise ArtifactError(f"the saved scaler has shapes {offset.shape} and {factor.shape}; run again")
        if projection is not None and len(projection.mean) != len(offset):
            raise ArtifactError("the saved projection is of other features than the scaler; run again")
        return cls(str(kind), offset, factor, projection)

    def to_text(self) -> str:
        """Return `to_bytes` as JSON can hold it."""
        return base64.b64encode(self.to_bytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> Scaler:
        """Read what `to_text` gave. Raises ArtifactError if it is something else."""
        try:
            content = base64.b64decode(text, validate=True)
        except (TypeError, ValueError) as err:
            raise ArtifactError(f"the saved scaler cannot be read: {err!r}; run again") from err
        return cls.from_bytes(content)


def _rounded(values: NDArray[np.float64], units: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to the power of two at or below each unit, exactly; a unit of 0 leaves the value as it is."""
    _, exponents = np.frexp(units)
    steps = np.ldexp(1.0, np.maximum(exponents - 1, -1074))
    whole = values / steps
    fits = (units > 0) & (np.abs(whole) < 2.0**52)
    return np.where(fits, np.round(np.where(fits, whole, 0)) * steps, values)
