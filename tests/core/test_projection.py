"""Principal components behind the scaling: dense and sparse rows give the same numbers, and so does what is saved."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.core.projection import Projection, kept_neighbours, sample_rows
from ivis_spark.core.scaling import FeatureStatistics, Scaler
from ivis_spark.errors import ArtifactError, InputError

RNG = np.random.default_rng(0)
X = RNG.poisson(0.3, size=(60, 20)).astype(np.float64)
X[:, 3], X[:, 4] = 2.0, X[:, 5]  # a constant, and a column twice


def scaler(kind: str, count: int = 6) -> Scaler:
    plain = Scaler.fit(kind, FeatureStatistics.of(X))
    return Scaler(kind, plain.offset, plain.factor, Projection.fit((X - plain.offset) * plain.factor, count, seed=0))


@pytest.mark.parametrize("kind", ["none", "minmax", "standard"])
def test_dense_and_sparse_rows_are_scaled_and_projected_alike(kind: str) -> None:
    with_axes = scaler(kind)
    assert with_axes.projection is not None and (with_axes.n_inputs, with_axes.n_outputs) == (20, 6)
    scaled = (X - with_axes.offset) * with_axes.factor
    first = (scaled - with_axes.projection.mean) @ with_axes.projection.axes
    for rows in (X, X.astype(np.float32), sparse.csr_matrix(X)):
        found = with_axes.transform(rows)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, first, atol=1e-5)
    again = Scaler.from_mapping(json.loads(json.dumps(with_axes.to_mapping())))
    np.testing.assert_array_equal(again.transform(X), with_axes.transform(X))
    with pytest.raises(InputError, match="trained on 20"):
        with_axes.transform(sparse.csr_matrix(X[:, 1:]))


def test_coordinates_far_from_0_keep_their_digits() -> None:
    far = X + 1e7
    plain = Scaler.fit("minmax", FeatureStatistics.of(far))
    moved = Scaler("minmax", plain.offset, plain.factor, scaler("minmax").projection)
    np.testing.assert_allclose(moved.transform(far), scaler("minmax").transform(X), atol=1e-5)


@pytest.mark.parametrize("part", ["axes", "mean"])
def test_a_torn_projection_is_refused(part: str) -> None:
    mapping = scaler("minmax").to_mapping()
    mapping["projection"][part] = mapping["projection"][part][:-8]
    with pytest.raises(ArtifactError, match="train the model again"):
        Scaler.from_mapping(mapping)


def test_statistics_of_sparse_rows_are_those_of_dense_ones() -> None:
    with_negatives = X - 2 * (X == 1)
    dense, found = (FeatureStatistics.of(rows) for rows in (with_negatives, sparse.csr_matrix(with_negatives)))
    assert found.count == dense.count
    for name in ("mean", "m2", "low", "high"):
        np.testing.assert_allclose(getattr(found, name), getattr(dense, name), atol=1e-12)


def test_kept_neighbours_are_all_with_all_components_and_few_with_one() -> None:
    points = RNG.normal(size=(200, 10))
    whole, one = (Projection.fit(points, count, seed=0).transform(points) for count in (10, 1))
    assert kept_neighbours(points, whole, k=5, queries=50) == 1.0
    assert kept_neighbours(sparse.csr_matrix(points), whole, k=5, queries=500) == 1.0
    near = []
    for rows in (points, one):
        apart = cdist(rows[:50], rows)
        np.fill_diagonal(apart, np.inf)
        near.append(np.argsort(apart, axis=1)[:, :5])
    expected = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*near, strict=True)])
    assert kept_neighbours(points, one, k=5, queries=50) == pytest.approx(expected) and expected < 0.5


def test_a_dense_network_takes_sparse_rows() -> None:
    layers = (
        DenseLayer.of(RNG.normal(size=(20, 9)), RNG.normal(size=9), "selu"),
        DenseLayer.of(np.ones((9, 2)), None, "linear"),
    )
    network = DenseNetwork(layers)
    np.testing.assert_allclose(network(sparse.csr_matrix(X)), network(X), atol=1e-4)
    with pytest.raises(InputError, match="rows of 20 features"):
        network(sparse.csr_matrix(X[:, 1:]))


def test_axes_of_float32_rows_far_from_0() -> None:
    rows = RNG.normal(size=(2000, 20)) * np.linspace(1, 0.2, 20)
    projection = Projection.fit((rows + 1e3).astype(np.float32), 10, seed=0)
    near = Projection.fit(rows, 10, seed=0)
    np.testing.assert_allclose(projection.explained, near.explained, rtol=1e-3)
    assert np.linalg.svd(projection.axes.T @ near.axes)[1].min() / (near.axes[:, 0] @ near.axes[:, 0]) > 0.999
    np.testing.assert_allclose(projection.mean, rows.mean(axis=0) + 1e3, atol=1e-3)


@pytest.mark.parametrize(
    ("row_bytes", "rows"), [(1, 100_000), (4 * 784, 21_399), (4 * 60_000, 1_000), (4_000_000, 268), (4e8, 100)]
)
def test_samples_are_bounded_by_rows_and_bytes(row_bytes: float, rows: int) -> None:
    assert sample_rows(row_bytes, 50) == rows


@pytest.mark.parametrize("sparse_rows", [False, True])
def test_neighbours_are_compared_in_bounded_memory(monkeypatch: pytest.MonkeyPatch, sparse_rows: bool) -> None:
    """500 queries x 20,000 rows, or x 100,000 features, are 80 MB and more."""
    monkeypatch.setattr("ivis_spark.core.projection.DISTANCE_BYTES", 4 << 20, raising=False)
    points = RNG.normal(size=(20_000, 3)).astype(np.float32)
    rows = sparse.csr_matrix(points)
    if sparse_rows:
        rows.resize(20_000, 100_000)
    tracemalloc.start()
    try:
        assert kept_neighbours(rows if sparse_rows else points, points, k=15, queries=500) > 0.999
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
