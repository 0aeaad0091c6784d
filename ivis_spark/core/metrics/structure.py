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
    check_count,
    distances_between,
    finite_points,
    near_chances,
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

    Runs on: driver. Memory: O(n d) plus blocks of 64 MiB; time O(n^2 (d + log n)).

    Args:
        X: Features, shape (n, d).
        Z: Embedding, shape (n, e), row i belonging to row i of `X`.
        k: Neighbours, fewer than n / 2.

    Returns: The trustworthiness, at most 1.

    Raises:
        ConfigError: if k is not in [1, n / 2).
        InputError: if the arrays differ in rows, are not 2-d or hold NaN or infinity.
    """
    features, embedding = centred_pair(X, Z)
    n = _checked_rows(features, k)
    blocks = row_blocks(n, n)
    return _trust(sum(_Block(features, *block, k).excess(_Block(embedding, *block, k)) for block in blocks), n, k)


def continuity(X: ArrayLike, Z: ArrayLike, k: int) -> float:
    """Return how far the k nearest rows in `X` are also near in the embedding `Z`; 1 is best, about .5 is chance.

    `trustworthiness` with the two spaces exchanged: it decreases if the embedding separates neighbours.

    Runs on: driver. Arguments, memory and errors as in `trustworthiness`.
    """
    return trustworthiness(Z, X, k)


def trust_and_continuity(X: ArrayLike, embeddings: Sequence[ArrayLike], k: int) -> list[tuple[float, float]]:
    """Return trustworthiness and continuity of each of several embeddings; distances in `X` are computed once.

    Runs on: driver. Arguments and errors as in `trustworthiness`; memory: O(n d) and a dozen blocks of 64 MiB.
    """
    pairs = [centred_pair(X, Z) for Z in embeddings]
    features = pairs[0][0]
    n = _checked_rows(features, k)
    excess = np.zeros((len(pairs), 2))
    for block in row_blocks(n, n):
        original = _Block(features, *block, k)
        for place, (_, embedding) in enumerate(pairs):
            embedded = _Block(embedding, *block, k)
            excess[place] += original.excess(embedded), embedded.excess(original)
    return [(_trust(trust, n, k), _trust(continuous, n, k)) for trust, continuous in excess.tolist()]


class _Block:
    """Distances of some rows to all others."""

    def __init__(self, points: Floats, start: int, stop: int, k: int) -> None:
        self.distances, self.k, self.constant = _without_self(points, start, stop), k, not points.any()

    @functools.cached_property
    def near(self) -> Floats:
        """The chance of each row to be among the k nearest."""
        return near_chances(self.distances, self.k)

    @functools.cached_property
    def ranked(self) -> Floats:
        """The distances in order."""
        return np.sort(self.distances, axis=1)

    def excess(self, other: _Block) -> float:
        """Return by how much the ranks here of the nearest rows of `other` exceed k: the expected total."""
        found, shared = 0.0, not (self.constant or other.constant)
        for row, values, others, chances in zip(self.ranked, self.distances, other.distances, other.near, strict=True):
            chosen = np.flatnonzero(chances)
            first, last = (np.searchsorted(row, values[chosen], side=side) for side in ("left", "right"))
            tied = last - first
            if shared and tied.max() > 1:
                tied -= _repeats(values, others)[chosen] - 1
            # The ranks first + 1 to first + tied are equally likely.
            total = _sum_to(first + tied - self.k) - _sum_to(first - self.k)
            found += float(chances[chosen] @ (total / tied))
        return found


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
    features, embedding = centred_pair(X, Z)
    n = _checked_rows(features, k)
    hits = 0.0
    for block in row_blocks(n, n):
        original, embedded = _Block(features, *block, k), _Block(embedding, *block, k)
        both = np.multiply if original.constant or embedded.constant else np.minimum
        hits += float(both(original.near, embedded.near).sum())
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
    pairs = [centred_pair(X, Z, least=3) for Z in embeddings]
    features = pairs[0][0]
    check_count("n_triplets", n_triplets)
    a, b, c = draw_distinct(len(features), 3, n_triplets, rng)

    def nearer(points: Floats) -> Floats:
        return np.asarray(np.sign(distances_between(points, a, b) - distances_between(points, a, c)))

    wanted = nearer(features)
    ordered = wanted != 0
    if not ordered.any():
        return [0.5] * len(pairs)
    return [float(0.5 + 0.5 * np.mean(wanted[ordered] * nearer(embedding)[ordered])) for _, embedding in pairs]


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


def _without_self(points: Floats, start: int, stop: int) -> Floats:
    distances = squared_distances(points[start:stop], points)
    distances[np.arange(stop - start), np.arange(start, stop)] = np.inf
    return distances


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
