"""How well the classes of labels are separated, and how they are arranged, in an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.core.metrics.points import (
    Floats,
    Ints,
    centred_pair,
    centred_points,
    distances_between,
    nearest,
    pearson,
    row_blocks,
    squared_distances,
)
from ivis_spark.errors import ConfigError, DependencyError, InputError


def knn_predictions(
    Z: ArrayLike,
    y: ArrayLike,
    *,
    k: int,
    rng: np.random.Generator,
    train_share: float = 0.75,
    tested: NDArray[np.bool_] | None = None,
) -> tuple[Ints, NDArray[Any]]:
    """Return the rows that a k-nearest-neighbours vote is tested on, and the label that it predicts for each.

    The vote is fitted on the other rows. A tied one goes to the smallest label, as in scikit-learn. Rows as far as the
    k-th neighbour share the votes that are left.

    Runs on: driver. Deterministic for a given `rng`. Arguments and errors as in `knn_accuracy`.

    Returns:
        int64 (t,), positions of the tested rows; and their predicted labels, shape (t,), of the type of y.
    """
    points = centred_points(Z, "Z", least=2)
    labels, codes = _classes(y, len(points))
    train, test = _split(len(points), train_share, rng, tested)
    n_train = len(train)
    if not 1 <= k <= n_train:
        raise ConfigError(f"k={k} must be between 1 and the {n_train} fitted rows; lower k or pass more rows")
    predicted = np.empty(len(test), np.int64)
    voters = codes[train]
    for start, stop in row_blocks(len(test), max(n_train, len(labels))):
        rows, columns, shares = nearest(squared_distances(points[test[start:stop]], points[train]), k)
        at = rows * len(labels) + voters[columns]
        votes = np.bincount(at, shares, minlength=(stop - start) * len(labels)).reshape(-1, len(labels))
        predicted[start:stop] = np.round(votes, 9).argmax(axis=1)  # sums of shares are not exact
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

    A tied vote goes to the smallest label, as in scikit-learn. Rows as far as the k-th neighbour share the votes that
    are left: constant `Z` gives the share of the commonest label. A single label gives 1.0; 1 is best.

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
        InputError: if y and Z differ in length, or as in `trustworthiness`.
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

    scikit-learn's `LinearSVC`, one class against the rest, on columns of mean 0 and variance 1. 1 is best; fitted rows
    of a single label give the share of that label.

    Runs on: driver. Deterministic for a given `rng`.

    Args:
        Z: Embedding, shape (n, e).
        y: Labels of any type that sorts, shape (n,).
        rng: Source of randomness; draws the split.
        train_share: Share of rows to fit on, strictly between 0 and 1.
        tested: The rows to test on, shape (n,), instead of random ones; all others are fitted on.

    Raises:
        ConfigError: if train_share is out of range.
        InputError: if y and Z differ in length, or as in `trustworthiness`.
        DependencyError: if scikit-learn is missing.
    """
    try:
        from sklearn.svm import LinearSVC
    except ImportError as err:
        raise DependencyError("linear_svm_accuracy needs scikit-learn: pip install 'ivis_spark[report]'") from err
    points = centred_points(Z, "Z", least=2)
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

    Raises: InputError: if y and X differ in length, or as in `trustworthiness`.
    """
    features, embedding = centred_pair(X, Z)
    labels, codes = _classes(y, len(features))
    if len(labels) < 3:
        return 0.0
    first, second = np.triu_indices(len(labels), k=1)
    original, embedded = (_centroids(points, codes, len(labels)) for points in (features, embedding))
    return pearson(distances_between(original, first, second), distances_between(embedded, first, second))


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


def _centroids(points: Floats, codes: Ints, n_labels: int) -> Floats:
    sums = np.zeros((n_labels, points.shape[1]))
    np.add.at(sums, codes, points)
    return sums / np.bincount(codes, minlength=n_labels)[:, np.newaxis]
