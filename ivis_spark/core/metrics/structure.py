"""Metrics of neighbours, order and distances, without labels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ivis_spark.core.metrics.points import (
    Floats,
    Ints,
    centred_pair,
    centred_spaces,
    check_count,
    distances_between,
    finite_points,
    nearest,
    pearson,
    row_blocks,
    squared_distances,
)
from ivis_spark.errors import ConfigError


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

    def of(self, Z: ArrayLike) -> PairDistances:
        """Return the same pairs with their distances in another embedding."""
        return replace(self, embedded=distances_between(finite_points(Z, "Z"), self.first, self.second))

    def correlations(self) -> tuple[float, float]:
        """Return Pearson's and Spearman's correlation of the two distances, as `distance_correlation` says."""
        ranks = (_mean_ranks(self.original), _mean_ranks(self.embedded))
        return pearson(self.original, self.embedded), pearson(*ranks)

    def bins(self, n_bins: int) -> tuple[Floats, Ints]:
        """Cut the range of the original distances into bins; ivis draws a box of embedded distances for each.

        The bins are equally wide except for the outermost two, which reach to the extremes, since outliers would take
        most of the range otherwise. Equal distances are one bin.

        Returns:
            The edges, float64 (bins + 1,), and the bin of each pair, int64 (p,).
        """
        low, high = np.percentile(self.original, [1, 99])
        if not high > low:
            return np.array([self.original.min(), self.original.max()]), np.zeros(len(self.original), np.int64)
        inner = np.linspace(low, high, n_bins + 1)[1:-1]
        edges = np.array([self.original.min(), *inner, self.original.max()])
        return edges, np.searchsorted(inner, self.original, side="right").astype(np.int64)


def _checked_rows(features: Floats, k: int) -> int:
    """Return the number of rows. Raises ConfigError if it is too small for k neighbours of each."""
    n = len(features)
    if not 1 <= k < n / 2:
        raise ConfigError(f"k={k} must be at least 1 and less than half of the {n} rows; lower k or pass more rows")
    return n


def trustworthiness(X: ArrayLike, Z: ArrayLike, k: int) -> float:
    """Return how far the k nearest rows in the embedding `Z` are also near in `X`; 1 is best, about .5 is chance.

    The metric of Venna and Kaski (2001): 1 - 2 / (n k (2n - 3k - 1)) * sum of (rank in X - k) over neighbours in Z that
    are not among the k nearest in X. Equally near rows have no order: the value is the mean over random ones. Rows that
    are equally near in both spaces, like duplicates embedded at one point, keep their rank; constant `X` or `Z` keeps
    nothing, and gives chance.

    Runs on: driver. Memory: O(n d) plus blocks of 16 MiB; time O(n^2 (d + log n)).

    Args:
        X: Features, shape (n, d).
        Z: Embedding, shape (n, e), row i belonging to row i of `X`.
        k: Neighbours, fewer than n / 2.

    Returns: The trustworthiness, at most 1.

    Raises:
        ConfigError: if k is not in [1, n / 2).
        InputError: if the arrays differ in rows, are not 2-d or hold NaN or infinity.
    """
    features, embedding = map(_Space, centred_pair(X, Z))
    n = _checked_rows(features.points, k)
    blocks = row_blocks(n, n)
    return _trust(sum(features.block(*at, k).excess(embedding.block(*at, k)) for at in blocks), n, k)


def continuity(X: ArrayLike, Z: ArrayLike, k: int) -> float:
    """Return how far the k nearest rows in `X` are also near in the embedding `Z`; 1 is best, about .5 is chance.

    `trustworthiness` with the two spaces exchanged: it decreases if the embedding separates neighbours.

    Runs on: driver. Arguments, memory and errors as in `trustworthiness`.
    """
    return trustworthiness(Z, X, k)


def trust_and_continuity(X: ArrayLike, embeddings: Sequence[ArrayLike], k: int) -> list[tuple[float, float]]:
    """Return trustworthiness and continuity of each of several embeddings; distances in `X` are computed once.

    Runs on: driver. Arguments and errors as in `trustworthiness`; memory: O(n d) and a dozen blocks of 16 MiB.
    """
    features, *others = map(_Space, centred_spaces(X, embeddings))
    n = _checked_rows(features.points, k)
    excess = np.zeros((len(others), 2))
    for at in row_blocks(n, n):
        original = features.block(*at, k)
        for place, embedding in enumerate(others):
            embedded = embedding.block(*at, k)
            excess[place] += original.excess(embedded), embedded.excess(original)
    return [(_trust(trust, n, k), _trust(continuous, n, k)) for trust, continuous in excess.tolist()]


class _Space:
    """Points, shape (n, d), whose distances are taken a block of rows at a time."""

    def __init__(self, points: Floats) -> None:
        self.points, self.constant = points, not points.any()
        self._squares = np.square(points).sum(axis=1)

    def block(self, start: int, stop: int, k: int) -> _Block:
        """Return the distances of some rows to all others."""
        distances = squared_distances(self.points[start:stop], self.points, self._squares)
        distances[np.arange(stop - start), np.arange(start, stop)] = np.inf
        return _Block(distances, k, self.constant)


class _Block:
    """Distances of some rows to all others, infinite to themselves."""

    def __init__(self, distances: Floats, k: int, constant: bool) -> None:
        self.distances, self.k, self.constant = distances, k, constant

    @functools.cached_property
    def near(self) -> tuple[Ints, Ints, Floats]:
        """Rows and columns of those that may be among the k nearest, and their chances."""
        return nearest(self.distances, self.k, self.ranked[:, self.k - 1])

    @functools.cached_property
    def ranked(self) -> Floats:
        """The distances in order."""
        return np.sort(self.distances, axis=1)

    def excess(self, other: _Block) -> float:
        """Return by how much the ranks here of the nearest rows of `other` exceed k: the expected total."""
        rows, columns, chances = other.near
        values = self.distances[rows, columns]
        first, last = (_places(self.ranked, rows, values, compare) for compare in (np.less, np.less_equal))
        tied = last - first
        if not (self.constant or other.constant):
            for row in np.unique(rows[tied > 1]):
                of_row = slice(*np.searchsorted(rows, [row, row + 1]))
                tied[of_row] -= _repeats(self.distances[row], other.distances[row])[columns[of_row]] - 1
        # The ranks first + 1 to first + tied are equally likely.
        total = _sum_to(first + tied - self.k) - _sum_to(first - self.k)
        return float(chances @ (total / tied))


def _places(ranked: Floats, rows: Ints, values: Floats, compare: np.ufunc) -> Ints:
    """Return how many values of a row, which is in order, compare so with each of `values`, shape (p,)."""
    n, places = ranked.shape[1], np.zeros(len(rows), np.int64)
    for step in 2 ** np.arange(n.bit_length())[::-1]:
        further = places + step
        passed = compare(ranked[rows, np.minimum(further, n) - 1], values) & (further <= n)
        places[passed] = further[passed]
    return places


def _sum_to(n: Ints) -> Ints:
    """Return 1 + 2 + ... + n; 0 if n is negative."""
    return np.maximum(n, 0) * (np.maximum(n, 0) + 1) // 2


def _repeats(a: Floats, b: Floats) -> Ints:
    """Return how often each pair of values of two arrays of shape (n,) occurs."""
    pairs = np.empty(len(a), np.complex128)
    pairs.real, pairs.imag = a, b
    _, inverse, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    return counts[inverse].astype(np.int64)


def _trust(excess: float, n: int, k: int) -> float:
    return 1.0 - 2.0 * excess / (n * k * (2 * n - 3 * k - 1))


def knn_recall(X: ArrayLike, Z: ArrayLike, k: int) -> float:
    """Return the share of the k nearest rows in `X` that are among the k nearest in the embedding `Z`; 1 is best.

    Chance is k / (n - 1), which constant `X` or `Z` gives. Equally near rows have no order, as in `trustworthiness`.

    Runs on: driver. Arguments, memory and errors as in `trustworthiness`.
    """
    features, embedding = map(_Space, centred_pair(X, Z))
    n = _checked_rows(features.points, k)
    hits = 0.0
    both = np.multiply if features.constant or embedding.constant else np.minimum
    for at in row_blocks(n, n):
        chances = np.zeros((2, at[1] - at[0], n))
        for space, of_space in zip((features, embedding), chances, strict=True):
            rows, columns, values = space.block(*at, k).near
            of_space[rows, columns] = values
        hits += float(both(*chances).sum())
    return hits / (n * k)


def random_triplet_accuracy(X: ArrayLike, Z: ArrayLike, *, n_triplets: int, rng: np.random.Generator) -> float:
    """Return the share of random triples (a, b, c) of which b or c is the nearer to a in both `X` and `Z`.

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
    return random_triplet_accuracies(X, [Z], n_triplets=n_triplets, rng=rng)[0]


def random_triplet_accuracies(
    X: ArrayLike, embeddings: Sequence[ArrayLike], *, n_triplets: int, rng: np.random.Generator
) -> list[float]:
    """Return `random_triplet_accuracy` of several embeddings, by the same triples; those of `X` are computed once."""
    features, *others = centred_spaces(X, embeddings, least=3)
    check_count("n_triplets", n_triplets)
    a, b, c = draw_distinct(len(features), 3, n_triplets, rng)

    def nearer(points: Floats) -> Floats:
        return np.asarray(np.sign(distances_between(points, a, b) - distances_between(points, a, c)))

    wanted = nearer(features)
    ordered = wanted != 0
    if not ordered.any():
        return [0.5] * len(others)
    return [float(0.5 + 0.5 * np.mean(wanted[ordered] * nearer(embedding)[ordered])) for embedding in others]


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
    features, embedding = centred_pair(X, Z)
    check_count("n_pairs", n_pairs)
    a, b = draw_distinct(len(features), 2, n_pairs, rng)
    return PairDistances(a, b, distances_between(features, a, b), distances_between(embedding, a, b))


def is_collapsed(Z: ArrayLike, *, tolerance: float = 1e-3) -> bool:
    """Return whether all rows of the embedding `Z`, shape (n, e), are almost the same point.

    That is: their root mean square distance from the centroid is at most `tolerance` times the centroid's length, or
    at most 1e-5, the rounding error of equal rows. A single row, or none, is not collapsed.

    Runs on: driver.

    Raises: InputError: if Z is not 2-d or holds NaN or infinity.
    """
    points = finite_points(Z, "Z")
    if len(points) < 2:
        return False
    centre = points.mean(axis=0)
    spread = float(np.sqrt(np.square(points - centre).sum(axis=1).mean()))
    return spread <= max(tolerance * float(np.linalg.norm(centre)), 1e-5)


def draw_distinct(n: int, size: int, draws: int, rng: np.random.Generator) -> list[Ints]:
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
