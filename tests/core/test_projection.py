"""Principal components behind the scaling: dense and sparse rows give the same numbers, and so does what is saved."""

from __future__ import annotations

import io

import numpy as np
import pytest
from scipy import sparse

from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.core.projection import Projection, sample_rows
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
    for again in (Scaler.from_bytes(with_axes.to_bytes()), Scaler.from_text(with_axes.to_text())):
        np.testing.assert_array_equal(again.transform(X), with_axes.transform(X))
        assert again.projection is not None
        np.testing.assert_array_equal(again.projection.explained, with_axes.projection.explained)
    with pytest.raises(InputError, match="trained on 20"):
        with_axes.transform(sparse.csr_matrix(X[:, 1:]))


def test_coordinates_far_from_0_keep_their_digits() -> None:
    far = X + 1e7
    plain = Scaler.fit("minmax", FeatureStatistics.of(far))
    moved = Scaler("minmax", plain.offset, plain.factor, scaler("minmax").projection)
    np.testing.assert_allclose(moved.transform(far), scaler("minmax").transform(X), atol=1e-5)


@pytest.mark.parametrize("part", ["axes", "mean", "unit"])
def test_a_torn_projection_is_refused(part: str) -> None:
    with np.load(io.BytesIO(scaler("minmax").to_bytes())) as arrays:
        held = dict(arrays)
    held[part] = held[part][:-1] if held[part].ndim else np.array("none")
    content = io.BytesIO()
    np.savez(content, **held)
    with pytest.raises(ArtifactError, match="run again"):
        Scaler.from_bytes(content.getvalue())
    with pytest.raises(ArtifactError, match="run again"):
        Scaler.from_text(scaler("minmax").to_text()[:-9])


def test_a_wide_projection_is_stored_in_two_bytes_a_number_and_preserves_distances() -> None:
    rows = RNG.normal(size=(80, 3000)) * RNG.lognormal(0, 3, 3000)
    projection = Projection.fit(rows, 20, seed=0)
    assert len(Scaler.of_projection(projection).to_bytes()) < 2.3 * projection.axes.size + 8 * 3000
    length = np.linalg.norm(projection.axes, axis=0)
    np.testing.assert_allclose(projection.axes.T @ projection.axes / length[0] ** 2, np.eye(20), atol=1e-3)


def test_statistics_of_sparse_rows_are_those_of_dense_ones() -> None:
    with_negatives = X - 2 * (X == 1)
    dense, found = (FeatureStatistics.of(rows) for rows in (with_negatives, sparse.csr_matrix(with_negatives)))
    assert found.count == dense.count
    for name in ("mean", "m2", "low", "high"):
        np.testing.assert_allclose(getattr(found, name), getattr(dense, name), atol=1e-12)


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
    ("row_bytes", "rows"), [(1, 100_000), (4 * 784, 10_699), (4 * 60_000, 1_000), (4_000_000, 268), (4e8, 100)]
)
def test_samples_are_bounded_by_rows_and_bytes(row_bytes: float, rows: int) -> None:
    assert sample_rows(row_bytes, 50) == rows
