"""Projection of wide rows onto their principal components, learnt on a sample; sparse rows are never made dense."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.errors import InputError

# What a sample of rows may take in memory: a table of any size is projected by what so many rows show.
SAMPLE_BYTES = 32 << 20
LEAST_SAMPLE, MOST_SAMPLE = 1_000, 100_000  # rows
_WIDE = 32  # times SAMPLE_BYTES, which LEAST_SAMPLE wide rows may take
_ROWS_AT_ONCE = 4096


def is_sparse(rows: Any) -> bool:
    """Tell whether rows are a SciPy sparse matrix."""
    return hasattr(rows, "tocsr")


def sample_rows(row_bytes: float, n_components: int) -> int:
    """Return how many rows, each of so many bytes, components are learnt from."""
    fitting = SAMPLE_BYTES / row_bytes
    return max(2 * n_components, int(min(MOST_SAMPLE, max(fitting, min(LEAST_SAMPLE, _WIDE * fitting)))))


@dataclass(frozen=True, eq=False)
class Projection:
    """Maps a row x to (x - mean) @ axes.

    The axes are orthogonal and all of one length, which gives the numbers of a projected table variance 1 on average:
    distances keep their proportions, and a network the scale that its learning rate is for.

    Attributes:
        mean: Of each feature, float64 (d,).
        axes: float64 (d, c), each a float16 number times one power of 2, which preserves distances to .03 %: what is
            saved is what was used.
        explained: Share of the variance along each component, float64 (c,); empty if it is not known.
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    explained: NDArray[np.float64]

    @classmethod
    def fit(cls, sample: Any, n_components: int, *, seed: int) -> Projection:
        """Learn the principal components of a sample of rows.

        Runs on: driver. Memory: the sample in float64 and about twice d x d numbers, of sparse rows a few times d x c.

        Args:
            sample: Rows, shape (n, d); an array, or a SciPy sparse matrix.
            n_components: c; fewer where there are fewer features, or not more rows than components.
            seed: Of the randomised solvers.

        Raises:
            InputError: if there are fewer than 2 rows or features.
        """
        from sklearn.decomposition import PCA

        n, d = sample.shape
        sparse = is_sparse(sample)
        count = min(n_components, n - 1, d - 1 if sparse else d)  # ARPACK finds all but the last
        if count < 1:
            raise InputError(
                f"rows of shape {(n, d)} have no principal components: at least 2 rows and 2 features are needed"
            )
        if sparse and (sample.max(axis=0) != sample.min(axis=0)).nnz == 0:  # rows that are all equal break ARPACK
            mean = np.asarray(sample.mean(axis=0), dtype=np.float64).ravel()
            return cls(mean, np.eye(d, count), np.zeros(count))
        pca = PCA(count, svd_solver="arpack" if sparse else "auto", random_state=seed, copy=False)
        if not sparse:  # X'X - n mean mean', which PCA solves, keeps no digits where features lie far from 0
            mean = sample.mean(axis=0, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):  # of rows that are all equal
            pca.fit(sample.astype(np.float64) if sparse else np.subtract(sample, mean, dtype=np.float64))
        spread = float(np.sqrt(np.mean(pca.explained_variance_, dtype=np.float64)))
        scale = 1.0 / spread if spread > 0 else 1.0
        axes = pca.components_.T.astype(np.float64) * scale
        axes = _halves(axes).astype(np.float64) * _unit(axes)
        explained = np.nan_to_num(pca.explained_variance_ratio_.astype(np.float64))
        return cls(np.asarray(pca.mean_, dtype=np.float64) if sparse else mean, axes, explained)

    def transform(self, rows: Any) -> NDArray[np.float32]:
        """Project rows, an array or a SciPy sparse matrix of shape (n, d), to float32 (n, c)."""
        if is_sparse(rows):
            return np.asarray(rows.astype(np.float64) @ self.axes - self.mean @ self.axes, dtype=np.float32)
        output, axes = np.empty((len(rows), self.axes.shape[1]), np.float32), self._axes
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            # Centred before it is rounded: features far from 0 keep their digits.
            np.matmul((rows[part] - self.mean).astype(np.float32), axes, out=output[part])
        return output

    @functools.cached_property
    def _axes(self) -> NDArray[np.float32]:
        return self.axes.astype(np.float32)

    def around_origin(self, projected: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return projected rows (n, c) as seen from the origin of the features, float32 (n, c + 1).

        Angles and inner products of these are those of the rows themselves, but for what the projection leaves out.
        """
        length = float(np.linalg.norm(self.axes[:, 0]))
        offset = self.mean @ self.axes
        rest = np.sqrt(max(0.0, float(self.mean @ self.mean) * length**2 - float(offset @ offset)))
        constant = np.full((len(projected), 1), rest, np.float32)
        return np.concatenate([projected + offset.astype(np.float32), constant], axis=1)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return what a file holds, exactly."""
        unit = np.asarray(_unit(self.axes))
        return {"mean": self.mean, "axes": _halves(self.axes), "unit": unit, "explained": self.explained}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Projection:
        """Read what `to_arrays` gave. Raises KeyError or ValueError if it is something else."""
        mean, axes = arrays["mean"].astype(np.float64), arrays["axes"].astype(np.float64) * float(arrays["unit"])
        if mean.ndim != 1 or axes.ndim != 2 or len(axes) != len(mean) or not axes.shape[1]:
            raise ValueError(f"a projection has a mean of shape {mean.shape} and axes of shape {axes.shape}")
        return cls(mean, axes, arrays["explained"].astype(np.float64))


def _unit(axes: NDArray[np.float64]) -> float:
    """Return the power of 2 above all elements."""
    return float(np.ldexp(1.0, int(np.frexp(np.abs(axes).max(initial=0.0))[1])))


def _halves(axes: NDArray[np.float64]) -> NDArray[np.float16]:
    return (axes / _unit(axes)).astype(np.float16)
