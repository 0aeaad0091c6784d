"""`n_components`: the same map from rows as they are, dense, sparse or in a file."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from ivis_spark.core.projection import Projection
from ivis_spark.errors import ConfigError, InputError

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from ivis_spark.data.rows import LazyRows  # noqa: E402
from ivis_spark.estimator import Ivis  # noqa: E402


def wide(n: int = 120, d: int = 40) -> np.ndarray:
    """Three groups; a constant and two equal columns; most values are 0."""
    rng = np.random.default_rng(0)
    X = np.maximum(rng.normal(size=(n, d)) + 6 * np.eye(3, d)[np.arange(n) % 3] - 0.5, 0)
    X[:, 5], X[:, 6] = 2, X[:, 7]
    return X.astype(np.float32)


def ivis(**options: object) -> Ivis:
    settings = {
        "k": 10,
        "epochs": 3,
        "batch_size": 32,
        "verbose": 0,
        "n_components": 8,
        "knn_distance_metric": "euclidean",
    }
    return Ivis(**{**settings, **options})


@pytest.mark.parametrize("sparse_rows", [False, True])
def test_projection_keeps_distances_and_angles(sparse_rows: bool) -> None:
    """With all components but one nothing is lost but by rounding; wide() has 38 columns that vary on their own."""
    X = wide().astype(np.float64) + 3
    given = sparse.csr_matrix(X) if sparse_rows else X
    projection = Projection.fit(given, 39, seed=0)
    rows = projection.transform(given)
    length = np.linalg.norm(projection.axes[:, 0])

    def apart(points):
        return np.linalg.norm(points[:, None] - points, axis=2)

    np.testing.assert_allclose(apart(rows) / length, apart(X), rtol=1e-3, atol=1e-6)
    assert rows.var(axis=0).mean() == pytest.approx(1, abs=0.02)
    seen = projection.around_origin(rows) / length
    np.testing.assert_allclose(seen @ seen.T, X @ X.T, rtol=1e-3)
    assert projection.explained.sum() == pytest.approx(1, abs=1e-4)


def test_few_rows_make_few_components() -> None:
    assert Projection.fit(wide()[:5], 50, seed=0).axes.shape == (40, 4)
    for equal in (np.ones((5, 4)), sparse.csr_matrix(np.ones((5, 4))), sparse.csr_matrix((5, 4))):
        assert np.abs(Projection.fit(equal, 2, seed=0).transform(equal)).max() < 1e-9
    few = wide()[:3][np.arange(30) % 3].astype(np.float64)  # rows that span two dimensions
    for rows in (few, sparse.csr_matrix(few)):
        projection = Projection.fit(rows, 6, seed=0)
        assert np.isfinite(projection.axes).all() and projection.explained[:2].sum() == pytest.approx(1)
    with pytest.raises(InputError, match="at least 2 rows"):
        Projection.fit(wide()[:1], 50, seed=0)


def test_offsets_do_not_cost_digits() -> None:
    X, far = wide(), wide().astype(np.float64) + 1e6
    near, moved = (Projection.fit(rows, 8, seed=0) for rows in (X, far))
    apart = [np.linalg.norm(each[0] - each[1:], axis=1) for each in (near.transform(X), moved.transform(far))]
    np.testing.assert_allclose(*apart, rtol=1e-3)


@pytest.mark.parametrize("metric", ["euclidean", "angular"])
def test_sparse_and_dense_rows_and_those_of_a_file_give_one_map(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h5py = pytest.importorskip("h5py")
    X = wide()
    expected = ivis(knn_distance_metric=metric).fit(X)
    assert expected.encoder_.input_shape == (None, 40)
    embedding = expected.transform(X)
    np.testing.assert_allclose(expected.encoder_.predict(X, verbose=0), embedding, atol=1e-4)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        found = ivis(knn_distance_metric=metric).fit_transform(file.create_dataset("X", data=X))
    np.testing.assert_allclose(found, embedding, atol=1e-4)
    monkeypatch.setattr(LazyRows, "take", None)  # sparse rows are never made dense
    model = ivis(knn_distance_metric=metric)
    near = model.fit_transform(sparse.csr_matrix(X))
    assert near.shape == (120, 2) and np.isfinite(near).all()
    same = np.mean(
        [len(set(a) & set(b)) for a, b in zip(model.neighbour_matrix_, expected.neighbour_matrix_, strict=True)]
    )
    assert same > 9.5


def test_saved_pickled_and_trained_further(tmp_path: Path) -> None:
    X, y = wide(), np.arange(120) % 3
    model = ivis().fit(X, y)
    embedding, scores = model.transform(X), model.score_samples(X)
    model.save_model(str(tmp_path / "m"))
    for again in (pickle.loads(pickle.dumps(model)), Ivis().load_model(str(tmp_path / "m"))):
        np.testing.assert_allclose(again.transform(X), embedding, atol=1e-4)
        np.testing.assert_allclose(again.score_samples(X), scores, atol=1e-4)
        assert again.n_features_in_ == 40
    loaded = Ivis().load_model(str(tmp_path / "m"))
    axes = loaded.projection_.axes
    loaded.fit(X, y)
    np.testing.assert_allclose(loaded.projection_.axes, axes)
    assert len(loaded.loss_history_) == 6 and loaded.encoder_.input_shape == (None, 40)
    assert model.fit(X).projection_ is not None
    assert model.set_params(n_components=None).fit(X).projection_ is None


@pytest.mark.parametrize("kind", ["sparse", "far"])
def test_all_outputs_are_of_the_same_projection(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from 0 the layer that projects has too few digits, and it would make sparse rows dense."""
    pytest.importorskip("pyspark")
    from ivis_spark.ml import IvisModel

    X = np.round(wide() * 4)
    rows = sparse.csr_matrix(X) if kind == "sparse" else X + np.float32(1e6)
    if kind == "sparse":
        monkeypatch.setattr(LazyRows, "take", None)
    model = ivis().fit(rows, np.arange(120) % 3)
    embedding, scores = model.transform(rows), model.score_samples(rows)
    np.testing.assert_allclose(scores, model.head_.predict(embedding, verbose=0), atol=1e-5)
    encoder = IvisModel.from_local(model).to_encoder()
    np.testing.assert_allclose(encoder(rows), embedding, atol=1e-4)
    np.testing.assert_allclose(encoder.score(embedding), scores, atol=1e-5)
    model.save_model(str(tmp_path / "m"))
    again = Ivis().load_model(str(tmp_path / "m"))
    np.testing.assert_allclose(again.transform(rows), embedding, atol=1e-5)
    np.testing.assert_allclose(IvisModel.from_local(again).to_encoder()(rows), embedding, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "at least 1"),
        ({"n_components": "many"}, "whole number"),
        ({"knn_distance_metric": "manhattan"}, "euclidean, angular, dot"),
    ],
)
def test_what_cannot_be_projected_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ivis(**options).fit(wide())
    with pytest.raises(InputError, match="flatten"):
        ivis().fit(wide().reshape(120, 8, 5))
    rows = sparse.csr_matrix(wide())
    rows.data[5] = np.nan
    with pytest.raises(InputError, match="first in row"):
        ivis().fit(rows)
