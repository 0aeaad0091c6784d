"""Projection of wide rows onto their principal components, learnt on a sample; sparse rows are never made dense."""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.errors import InputError

# What a sample of rows may take in memory: a table of any size is projected by what so many rows show.
SAMPLE_BYTES = 64 << 20
LEAST_SAMPLE, MOST_SAMPLE = 1_000, 100_000  # rows
_WIDE = 16  # times SAMPLE_BYTES, which LEAST_SAMPLE wide rows may take
DISTANCE_BYTES = 64 << 20  # of what `kept_neighbours` makes at once
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
        axes: float64 (d, c), each a float32 number: what is saved is what was used.
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
        axes = (pca.components_.T * scale).astype(np.float32).astype(np.float64)
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

    def to_mapping(self) -> dict[str, Any]:
        """Return what JSON can hold; the arrays as base64 of little-endian numbers, exactly."""
        arrays = {"mean": self.mean.astype("<f8"), "axes": self.axes.astype("<f4")}
        packed = {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
        return {**packed, "explained": self.explained.tolist()}

    @classmethod
    def from_mapping(cls, mapping: Any) -> Projection:
        """Read what `to_mapping` gave. Raises KeyError, TypeError or ValueError if it is something else."""
        mean = np.frombuffer(base64.b64decode(mapping["mean"], validate=True), "<f8")
        axes = np.frombuffer(base64.b64decode(mapping["axes"], validate=True), "<f4").reshape(len(mean), -1)
        if not axes.shape[1]:
            raise ValueError("a projection has no axes")
        return cls(mean, axes.astype(np.float64), np.asarray(mapping["explained"], np.float64))


def kept_neighbours(rows: Any, projected: NDArray[np.float32], *, k: int, queries: int) -> float:
    """Return the share of the k nearest rows by all features that are among the k nearest by components.

    Runs on: driver. Memory: a float64 copy of dense rows, and 64 MiB.

    Args:
        rows: float (n, d) in random order, an array or a SciPy sparse matrix.
        projected: The same rows projected, float32 (n, c).
        k: Neighbours, fewer than n.
        queries: Number of first rows whose neighbours are compared.
    """
    neighbours = [_nearest(points, min(queries, len(projected)), k) for points in (rows, projected)]
    return float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(*neighbours, strict=True)]))


def _nearest(rows: Any, queries: int, k: int) -> NDArray[np.int64]:
    """Return the k nearest other rows of the first ones."""
    if is_sparse(rows):
        lengths = np.asarray(rows.multiply(rows).sum(axis=1)).ravel()
    else:
        rows = np.subtract(rows, rows.mean(axis=0, dtype=np.float64), dtype=np.float64)
        lengths = np.einsum("ij,ij->i", rows, rows)
    step = max(1, DISTANCE_BYTES // (5 * 8 * len(lengths)))  # products, of sparse rows twice, and places
    numbers = np.empty((queries, k), np.int64)
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        keys = rows @ rows[start:stop].T
        keys = keys.toarray() if is_sparse(keys) else keys  # the queries themselves stay sparse
        keys *= -2
        keys += lengths[:, None]
        keys[np.arange(start, stop), np.arange(stop - start)] = np.inf
        numbers[start:stop] = np.argpartition(keys, k - 1, axis=0)[:k].T
    return numbers
