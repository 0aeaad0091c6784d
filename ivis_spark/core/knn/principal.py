"""Principal directions of a region's rows: wide rows are ranked along these first, and exactly only the best."""

from __future__ import annotations

import numpy as np

from ivis_spark.core.knn.metrics import Floats

_SAMPLE_ROWS = 2048
_LEAST_FACTOR, _MOST = 4, 128  # of directions: a product with more than a quarter of the features saves too little
_STEP = 16
_SHARE = 0.9  # of the variance; with less of it too many rows have to be ranked exactly
_FAR = 4  # times the median norm: a row further away would stand for most of the variance
_EXTRA, _ROUNDS = 10, 2  # of the randomised range finder (Halko, Martinsson and Tropp 2011)
_BLOCK_ROWS = 4096


def principal_directions(rows: Floats, centre: Floats, rng: np.random.Generator) -> Floats | None:
    """Return orthonormal directions, float32 (d, c), that hold most of the variance of the rows, float32 (n, d).

    None if that takes more than a quarter of the features, or more than 128. NumPy is enough for it, and Spark's
    workers need not import scikit-learn.
    """
    dims = rows.shape[1]
    most = min(_MOST, dims // _LEAST_FACTOR)
    if most < _STEP or len(rows) <= most + _EXTRA:
        return None
    drawn = np.sort(rng.choice(len(rows), min(len(rows), _SAMPLE_ROWS), replace=False))
    sample = rows[drawn] - centre
    if not sample.any():
        return None
    sample /= np.abs(sample).max()  # directions do not depend on it, and squares do not overflow
    norms = np.sqrt(np.einsum("ij,ij->i", sample, sample))
    limit = _FAR * np.median(norms[norms > 0])
    far = norms > limit
    sample[far] *= (limit / norms[far])[:, None]
    directions = sample.T @ rng.standard_normal((len(sample), most + _EXTRA), dtype=np.float32)
    for _ in range(_ROUNDS):
        directions = sample.T @ (sample @ np.linalg.qr(directions)[0])
    directions = np.linalg.qr(directions)[0]
    total, products = float(np.square(sample).sum(dtype=np.float64)), sample @ directions
    _, squares, turn = np.linalg.svd(products.T @ products)
    enough = np.flatnonzero(np.cumsum(squares[:most]) >= _SHARE * total)
    if not len(enough):
        return None
    count = min(most, -(-int(enough[0] + 1) // _STEP) * _STEP)
    return np.ascontiguousarray(directions @ turn[:count].T)


def project(rows: Floats, centre: Floats, directions: Floats) -> Floats:
    """Return rows, float32 (n, d), along the directions: float32 (n, c)."""
    projected = np.empty((len(rows), directions.shape[1]), np.float32)
    for at in range(0, len(rows), _BLOCK_ROWS):
        part = slice(at, at + _BLOCK_ROWS)
        np.matmul(rows[part] - centre, directions, out=projected[part])
    return projected
