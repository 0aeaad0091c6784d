"""How well an embedding keeps what the features say: figures on arrays, accumulated in float64.

All distances are Euclidean. Every function returns finite numbers, also on constant data; each docstring says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.errors import ConfigError, DependencyError, InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK_BYTES = 64 * 2**20
_DIRECT_DIMS = 16


@dataclass(frozen=True)
class PairDistances:
    """Distances of random pairs of rows in the features and in the embedding.

    Attributes:
        first: int64 (p,), the number of one row of each pair.
        second: int64 (p,), that of the other.
        original: float64 (p,), their distance in the features.
        embedded: float64 (p,), their distance in the embedding.
    """

    first: Ints
    second: Ints
    original: Floats
    embedded: Floats

    def correlations(self) -> tuple[float, float]:
        """Return Pearson's and Spearman's correlation of the two distances, as `distance_correlation` says."""
        ranks = (_mean_ranks(self.original), _mean_ranks(self.embedded))
        return _pearson(self.original, self.embedded), _pearson(*ranks)

    def bins(self, n_bins: int) -> tuple[Floats, Ints]:
        """Cut the range of the original distances into bins; ivis draws a box of embedded distances for each.

        The bins are equally wide but for the outermost two, which reach to the extremes: a few outliers would else take
        most of the range. Equal distances are one bin.

        Returns:
            The edges, float64 (bins + 1,), and the bin of each pair, int64 (p,).
        """
        low, high = np.percentile(self.original, [1, 99])
        if not high > low:
            return np.array([self.original.min(), self.original.max()]), np.zeros(len(self.original), np.int64)
        inner = np.linspace(low, high, n_bins + 1)[1:-1]
        edges = np.array([self.original.min(), *inner, self.original.max()])
        return edges, np.searchsorted(inner, self.original, side="right").astype(np.int64)


def trustworthiness(X: ArrayLike, Z: ArrayLike, k: int) -> float:
    """Return how far the k nearest rows in the embedding `Z` are also near in `X`; 1 is best, about .5 is chance.

    The figure of Venna and Kaski (2001): 1 - 2 / (n k (2n - 3k - 1)) * sum of (rank in X - k) over neighbours in Z that
    are not among the k nearest in X. Ranks count rows strictly nearer, so equal rows never cost anything: constant `X`
    gives 1.0. Which of equally near rows of `Z` are neighbours depends on the order of the rows: shuffle them if it
    has a meaning.

    Runs on: driver. Memory: O(n d) plus blocks of 64 MiB; time O(n^2 (d + log n)).

    Args:
        X: Features, shape (n, d).
        Z: Embedding, shape (n, e), row i belonging to row i of `X`.
        k: Neighbours, fewer than n / 2.

    Returns: The figure, at most 1.

    Raises:
        ConfigError: if k is not in [1, n / 2).
        InputError: if the arrays differ in rows, are not 2-d or hold NaN or infinity.
    """
    features, embedding = _pair(X, Z)
    n = len(features)
    if not 1 <= k < n / 2:
        raise ConfigError(f"k={k} must be at least 1 and less than half of the {n} rows; lower k or pass more rows")
    excess = 0
    for start, stop in _row_blocks(n, n):
        near = _nearest(_without_self(embedding, start, stop), k)
        distances = _without_self(features, start, stop)
        reached = np.take_along_axis(distances, near, axis=1)
        distances.sort(axis=1)
        for row, values in zip(distances, reached, strict=True):
            ranks = np.searchsorted(row, values, side="left") + 1
            excess += int(np.maximum(ranks - k, 0).sum())
    return 1.0 - 2.0 * excess / (n * k * (2 * n - 3 * k - 1))


def continuity(X: ArrayLike, Z: ArrayLike, k: int) -> float:
    """Return how far the k nearest rows in `X` are also near in the embedding `Z`; 1 is best, about .5 is chance.

    `trustworthiness` with the two spaces exchanged: it falls when the embedding tears neighbours apart. A constant `Z`
    gives 1.0, since it tears nothing.

    Runs on: driver. Arguments, memory and errors as in `trustworthiness`.
    """
    return trustworthiness(Z, X, k)


def knn_recall(X: ArrayLike, Z: ArrayLike, k: int) -> float:
    """Return the share of the k nearest rows in `X` that are among the k nearest in the embedding `Z`; 1 is best.

    Chance is k / (n - 1). Which of equally near rows count depends on their order.

    Runs on: driver. Arguments, memory and errors as in `trustworthiness`.
    """
    features, embedding = _pair(X, Z)
    n = len(features)
    if not 1 <= k < n / 2:
        raise ConfigError(f"k={k} must be at least 1 and less than half of the {n} rows; lower k or pass more rows")
    found = 0
    for start, stop in _row_blocks(n, n):
        wanted, near = (_nearest(_without_self(points, start, stop), k) for points in (features, embedding))
        found += sum(len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(wanted, near, strict=True))
    return found / (n * k)


def random_triplet_accuracy(X: ArrayLike, Z: ArrayLike, *, n_triplets: int, rng: np.random.Generator) -> float:
    """Return the share of random triples (a, b, c) whose order of |a - b| and |a - c| is the same in `X` and `Z`.

    Triples tied in `X` have no order to keep and are left out; a tie in `Z` alone counts one half. Constant `Z` or
    constant `X` gives .5, which is chance; 1 is best.

    Runs on: driver. Deterministic for a given `rng`.

    Args:
        X: Features, shape (n, d), n >= 3.
        Z: Embedding, shape (n, e).
        n_triplets: Triples to draw, at least 1; the three rows of one differ.
        rng: Source of randomness.

    Raises:
        ConfigError: if n_triplets is less than 1.
        InputError: if there are fewer than 3 rows, or as in `trustworthiness`.
    """
    features, embedding = _pair(X, Z, least=3)
    _check_count("n_triplets", n_triplets)
    a, b, c = _distinct(len(features), 3, n_triplets, rng)
    wanted = np.sign(_distances(features, a, b) - _distances(features, a, c))
    found = np.sign(_distances(embedding, a, b) - _distances(embedding, a, c))
    ordered = wanted != 0
    if not ordered.any():
        return 0.5
    return float(0.5 + 0.5 * np.mean(wanted[ordered] * found[ordered]))


def distance_correlation(X: ArrayLike, Z: ArrayLike, *, n_pairs: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return Pearson's and Spearman's correlation of the distances of random pairs in `X` and in `Z`.

    In [-1, 1]; 1 is best. Both are 0 when all distances of either space are equal. Tied distances share their mean
    rank. (Not Szekely's "distance correlation", a measure of dependence.)

    Runs on: driver. Deterministic for a given `rng`.

    Args:
        X: Features, shape (n, d), n >= 2.
        Z: Embedding, shape (n, e).
        n_pairs: Pairs of different rows to draw, at least 1.
        rng: Source of randomness.

    Raises:
        ConfigError: if n_pairs is less than 1.
        InputError: as in `trustworthiness`.
    """
    return draw_pairs(X, Z, n_pairs=n_pairs, rng=rng).correlations()


def draw_pairs(X: ArrayLike, Z: ArrayLike, *, n_pairs: int, rng: np.random.Generator) -> PairDistances:
    """Draw random pairs of rows and return their distances in `X` and in `Z`.

    Runs on: driver. Arguments, determinism and errors as in `distance_correlation`.
    """
    features, embedding = _pair(X, Z)
    _check_count("n_pairs", n_pairs)
    a, b = _distinct(len(features), 2, n_pairs, rng)
    return PairDistances(a, b, _distances(features, a, b), _distances(embedding, a, b))


def knn_predictions(
    Z: ArrayLike,
    y: ArrayLike,
    *,
    k: int,
    rng: np.random.Generator,
    train_share: float = 0.75,
    tested: NDArray[np.bool_] | None = None,
) -> tuple[Ints, NDArray[Any]]:
    """Return the rows that a k-nearest-neighbours vote is tested on, and the label that it gives each of them.

    The vote is fitted on the other rows. A tied one goes to the smallest label, as in scikit-learn.

    Runs on: driver. Deterministic for a given `rng`. Arguments and errors as in `knn_accuracy`.

    Returns:
        int64 (t,), positions of the tested rows; and their predicted labels, shape (t,), of the type of y.
    """
    points = _points(Z, "Z", least=2)
    labels, codes = _classes(y, len(points))
    train, test = _split(len(points), train_share, rng, tested)
    n_train = len(train)
    if not 1 <= k <= n_train:
        raise ConfigError(f"k={k} must be between 1 and the {n_train} fitted rows; lower k or pass more rows")
    predicted = np.empty(len(test), np.int64)
    for start, stop in _row_blocks(len(test), max(n_train, len(labels))):
        rows = test[start:stop]
        votes = codes[train[_nearest(_squared_distances(points[rows], points[train]), k)]]
        cell = np.arange(len(rows))[:, np.newaxis] * len(labels) + votes
        counts = np.bincount(cell.ravel(), minlength=len(rows) * len(labels)).reshape(len(rows), len(labels))
        predicted[start:stop] = counts.argmax(axis=1)
    return test, labels[predicted]


def knn_accuracy(
    Z: ArrayLike,
    y: ArrayLike,
    *,
    k: int,
    rng: np.random.Generator,
    train_share: float = 0.75,
    tested: NDArray[np.bool_] | None = None,
) -> float:
    """Return the accuracy of a k-nearest-neighbours vote, fitted on a random share of the rows, on the other rows.

    A tied vote goes to the smallest label, as in scikit-learn. Constant `Z` gives about the share of the commonest
    label, a single label gives 1.0; 1 is best.

    Runs on: driver. Deterministic for a given `rng`.

    Args:
        Z: Embedding, shape (n, e).
        y: Labels of any type that sorts, shape (n,).
        k: Voting neighbours, at most the number of fitted rows.
        rng: Source of randomness; draws the split.
        train_share: Share of rows to fit on, strictly between 0 and 1.
        tested: The rows to test on, shape (n,), instead of random ones; all others are fitted on.

    Raises:
        ConfigError: if k or train_share is out of range.
        InputError: if y has another length than Z, or as in `trustworthiness`.
    """
    test, predicted = knn_predictions(Z, y, k=k, rng=rng, train_share=train_share, tested=tested)
    return float(np.mean(predicted == np.asarray(y)[test]))


def linear_svm_accuracy(
    Z: ArrayLike,
    y: ArrayLike,
    *,
    rng: np.random.Generator,
    train_share: float = 0.75,
    tested: NDArray[np.bool_] | None = None,
) -> float:
    """Return the accuracy of a linear support vector machine, fitted on a random share of the rows, on the other rows.

    One of scikit-learn's `LinearSVC` a class against the rest, on columns of mean 0 and variance 1: what a straight cut
    can tell apart. 1 is best; fitted rows of a single label give the share of that label.

    Runs on: driver. Deterministic for a given `rng`.

    Args:
        Z: Embedding, shape (n, e).
        y: Labels of any type that sorts, shape (n,).
        rng: Source of randomness; draws the split.
        train_share: Share of rows to fit on, strictly between 0 and 1.
        tested: The rows to test on, shape (n,), instead of random ones; all others are fitted on.

    Raises:
        ConfigError: if train_share is out of range.
        InputError: if y has another length than Z, or as in `trustworthiness`.
        DependencyError: if scikit-learn is missing.
    """
    try:
        from sklearn.svm import LinearSVC
    except ImportError as err:
        raise DependencyError("linear_svm_accuracy needs scikit-learn: pip install 'ivis_spark[report]'") from err
    points = _points(Z, "Z", least=2)
    _, codes = _classes(y, len(points))
    train, test = _split(len(points), train_share, rng, tested)
    if len(np.unique(codes[train])) == 1:
        return float(np.mean(codes[test] == codes[train[0]]))
    centre, spread = points[train].mean(axis=0), points[train].std(axis=0)
    scaled = (points - centre) / np.where(spread > 0, spread, 1.0)
    # More rows than columns, so the primal problem is the small one; it also needs no random order.
    fitted = LinearSVC(dual=False).fit(scaled[train], codes[train])
    return float(fitted.score(scaled[test], codes[test]))


def centroid_correlation(X: ArrayLike, Z: ArrayLike, y: ArrayLike) -> float:
    """Return Pearson's correlation of the distances between class centroids in `X` and in `Z`: the Mantel statistic.

    In [-1, 1]; 1 is best. It is 0 when all those distances of either space are equal, and so with fewer than 3 labels.

    Runs on: driver.

    Args:
        X: Features, shape (n, d).
        Z: Embedding, shape (n, e).
        y: Labels of any type that sorts, shape (n,).

    Raises: InputError: if y has another length than X, or as in `trustworthiness`.
    """
    features, embedding = _pair(X, Z)
    labels, codes = _classes(y, len(features))
    if len(labels) < 3:
        return 0.0
    first, second = np.triu_indices(len(labels), k=1)
    original, embedded = (_centroids(points, codes, len(labels)) for points in (features, embedding))
    return _pearson(_distances(original, first, second), _distances(embedded, first, second))


def is_collapsed(Z: ArrayLike, *, tolerance: float = 1e-3) -> bool:
    """Return whether all rows of the embedding `Z`, shape (n, e), are almost the same point.

    That is: their root mean square distance from the centroid is at most `tolerance` times the centroid's length, or
    at most 1e-5, what rounding leaves of rows that are equal. A single row, or none, is not collapsed.

    Runs on: driver.

    Raises: InputError: if Z is not 2-d or holds NaN or infinity.
    """
    points = _finite(Z, "Z")
    if len(points) < 2:
        return False
    centre = points.mean(axis=0)
    spread = float(np.sqrt(np.square(points - centre).sum(axis=1).mean()))
    return spread <= max(tolerance * float(np.linalg.norm(centre)), 1e-5)


def _finite(values: ArrayLike, name: str) -> Floats:
    points = np.asarray(values, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] == 0:
        raise InputError(f"{name} has shape {points.shape}; it must be (rows, dimensions): reshape it")
    if not np.isfinite(points).all():
        bad = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise InputError(f"{name} holds NaN or infinity, first in row {bad}; drop or repair such rows")
    return points


def _points(values: ArrayLike, name: str, *, least: int) -> Floats:
    """Return centred float64 points; centring keeps the matrix-product form of distances accurate."""
    points = _finite(values, name)
    if len(points) < least:
        raise InputError(f"{name} has {len(points)} rows; at least {least} are needed")
    return np.ascontiguousarray(points - points.mean(axis=0))


def _pair(X: ArrayLike, Z: ArrayLike, *, least: int = 2) -> tuple[Floats, Floats]:
    features, embedding = _points(X, "X", least=least), _points(Z, "Z", least=least)
    if len(features) != len(embedding):
        raise InputError(f"X has {len(features)} rows and Z has {len(embedding)}; pass the same rows in the same order")
    return features, embedding


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name}={value} must be at least 1")


def _classes(y: ArrayLike, n: int) -> tuple[NDArray[np.generic], Ints]:
    labels = np.asarray(y)
    if labels.shape != (n,):
        raise InputError(f"y has shape {labels.shape}; it must be ({n},): one label per row")
    unique, codes = np.unique(labels, return_inverse=True)
    return unique, codes.astype(np.int64)


def _split(n: int, train_share: float, rng: np.random.Generator, tested: NDArray[np.bool_] | None) -> tuple[Ints, Ints]:
    if tested is not None:
        if tested.shape != (n,) or tested.all() or not tested.any():
            raise InputError(
                f"tested has shape {tested.shape} and {tested.sum()} rows; some of ({n},) rows must be tested"
            )
        return np.flatnonzero(~tested), np.flatnonzero(tested)
    if not 0.0 < train_share < 1.0:
        raise ConfigError(f"train_share={train_share} must be between 0 and 1, like 0.75")
    n_train = min(max(round(train_share * n), 1), n - 1)
    order = rng.permutation(n)
    return order[:n_train], order[n_train:]


def _row_blocks(n_rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) so that a float64 matrix of these rows and `width` columns stays within the block size."""
    step = max(1, _BLOCK_BYTES // (8 * max(width, 1)))
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def _squared_distances(A: Floats, B: Floats) -> Floats:
    if A.shape[1] <= _DIRECT_DIMS:
        # Differences are exact for equal rows, which a matrix product is not, and cheap for an embedding.
        total = np.zeros((len(A), len(B)))
        for column in range(A.shape[1]):
            total += np.square(np.subtract.outer(A[:, column], B[:, column]))
        return total
    total = A @ B.T
    total *= -2.0
    total += np.square(A).sum(axis=1)[:, np.newaxis]
    total += np.square(B).sum(axis=1)
    return np.maximum(total, 0.0, out=total)


def _without_self(points: Floats, start: int, stop: int) -> Floats:
    distances = _squared_distances(points[start:stop], points)
    distances[np.arange(stop - start), np.arange(start, stop)] = np.inf
    return distances


def _nearest(distances: Floats, k: int) -> Ints:
    return np.argpartition(distances, k - 1, axis=1)[:, :k]


def _distances(points: Floats, first: Ints, second: Ints) -> Floats:
    out = np.empty(len(first))
    for start, stop in _row_blocks(len(first), points.shape[1]):
        difference = points[first[start:stop]] - points[second[start:stop]]
        out[start:stop] = np.sqrt(np.square(difference).sum(axis=1))
    return out


def _distinct(n: int, size: int, draws: int, rng: np.random.Generator) -> list[Ints]:
    """Return `size` arrays of `draws` row numbers that differ within a draw, uniform over such tuples."""
    drawn: list[Ints] = []
    for taken in range(size):
        new = rng.integers(0, n - taken, size=draws, dtype=np.int64)
        # Sorted, so that stepping over each taken number leaves the new one uniform over those not taken.
        for other in np.sort(np.array(drawn, dtype=np.int64).reshape(taken, draws), axis=0):
            new += new >= other
        drawn.append(new)
    return drawn


def _mean_ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - 0.5 * (counts - 1))[inverse]


def _centroids(points: Floats, codes: Ints, n_labels: int) -> Floats:
    sums = np.zeros((n_labels, points.shape[1]))
    np.add.at(sums, codes, points)
    return sums / np.bincount(codes, minlength=n_labels)[:, np.newaxis]


def _pearson(a: Floats, b: Floats) -> float:
    if a.max() == a.min() or b.max() == b.min():
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))
