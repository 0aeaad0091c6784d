"""Scaling statistics merge in any order; scalers agree with scikit-learn's."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from ivis_spark.core.scaling import FeatureStatistics, Scaler
from ivis_spark.errors import ArtifactError, InputError

matrices = arrays(np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(-1e4, 1e4, width=32))


@given(X=matrices, cut=st.integers(0, 30))
def test_merged_parts_are_the_whole(X: np.ndarray, cut: int) -> None:
    merged = FeatureStatistics.of(X[cut:]).merge(FeatureStatistics.of(X[:cut]))
    whole = FeatureStatistics.of(X)
    assert merged.count == len(X)
    for name in ("mean", "m2", "low", "high"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize(("kind", "oracle"), [("minmax", MinMaxScaler()), ("standard", StandardScaler())])
def test_scalers_agree_with_sklearn(kind: str, oracle: object) -> None:
    X = np.random.default_rng(0).normal(5, 3, (200, 4))
    expected = oracle.fit_transform(X)
    scaler = Scaler.fit(kind, FeatureStatistics.of(X))
    np.testing.assert_allclose(scaler.transform(X.astype(np.float32)), expected, atol=1e-5)
    former = {"kind": kind, "offset": scaler.offset.tolist(), "factor": scaler.factor.tolist()}
    assert np.array_equal(Scaler.from_bytes(json.dumps(former).encode()).transform(X), scaler.transform(X))
    again = Scaler.from_bytes(scaler.to_bytes())
    assert np.array_equal(again.transform(X), scaler.transform(X))


@pytest.mark.parametrize("kind", ["minmax", "standard"])
def test_constant_features_become_zero(kind: str) -> None:
    X = np.array([[0.1, 1], [0.1, 2]], np.float32)
    scaled = Scaler.fit(kind, FeatureStatistics.of(X)).transform(X)
    assert scaled[:, 0].tolist() == [0, 0]
    assert scaled[0, 1] != scaled[1, 1]


def test_none_returns_the_same_array() -> None:
    X = np.ones((2, 3), np.float32)
    assert Scaler.fit("none", FeatureStatistics.of(X)).transform(X) is X


def test_bytes_round_trip() -> None:
    statistics = FeatureStatistics.of(np.random.default_rng(0).normal(size=(10, 5)))
    again = FeatureStatistics.from_bytes(statistics.to_bytes())
    assert again.count == 10
    assert np.array_equal(again.m2, statistics.m2)


def test_wrong_width_names_both() -> None:
    scaler = Scaler.fit("minmax", FeatureStatistics.of(np.eye(3)))
    with pytest.raises(InputError, match="rows have 4 features; the model was trained on 3"):
        scaler.transform(np.ones((2, 4)))


@pytest.mark.parametrize("offset", [None, np.ones(1), np.array("text"), np.array([{}])])
def test_altered_scaler_is_refused(offset: np.ndarray | None) -> None:
    content = io.BytesIO()
    np.savez(content, kind="minmax", factor=np.ones(2), **({} if offset is None else {"offset": offset}))
    of_old_projection = b'{"kind": "none", "offset": [0], "factor": [1], "projection": {}}'
    for altered in (content.getvalue(), b"{}", b"", of_old_projection):
        with pytest.raises(ArtifactError, match="saved scaler"):
            Scaler.from_bytes(altered)


@pytest.mark.parametrize("kind", ["minmax", "standard"])
@pytest.mark.parametrize("offset", [1.7e9, 1.7e12, 5e6, -4e15])
def test_what_large_numbers_have_in_common_costs_no_digits(kind: str, offset: float) -> None:
    X = offset + np.arange(300.0)[:, None]
    scaled = Scaler.fit(kind, FeatureStatistics.of(X)).transform(X)
    assert len(np.unique(scaled)) == 300
    np.testing.assert_allclose(np.diff(scaled[:, 0]), scaled[1, 0] - scaled[0, 0], rtol=1e-3)


@pytest.mark.parametrize("kind", ["minmax", "standard"])
@pytest.mark.parametrize("ends", [(-3e38, 3e38), (0, 3.4e38), (0, 1e-310)])
def test_the_ends_of_float32_stay_finite(kind: str, ends: tuple[float, float]) -> None:
    X = np.linspace(*ends, 50)[:, None]
    assert np.isfinite(Scaler.fit(kind, FeatureStatistics.of(X)).transform(X)).all()


def test_the_scaler_does_not_depend_on_how_the_table_was_cut() -> None:
    X = np.random.default_rng(1).normal(1e6, 3, (4000, 5)) * [1, 1e-3, 1e6, 1, 1]
    scalers = []
    for parts in (1, 7, 100):
        folded = FeatureStatistics.empty(5)
        for part in np.array_split(X, parts)[::-1]:
            folded = folded.merge(FeatureStatistics.of(part))
        scalers.append(Scaler.fit("standard", folded))
    for other in scalers[1:]:
        np.testing.assert_array_equal(other.offset, scalers[0].offset)
        np.testing.assert_array_equal(other.factor, scalers[0].factor)


def test_features_that_float32_is_too_coarse_for() -> None:
    X = np.array([[1.7e9, 1e6, 0, 1e9, 0], [1.7e9 + 300, 1e6 + 300, 300, 1e9, 1e-300]])
    assert FeatureStatistics.of(X).coarse.tolist() == [True, False, False, False, True]
    large = FeatureStatistics.of(np.array([[1e19, 1e5, -3e38], [0, 0, 0]]))
    assert large.overflow.tolist() == [True, False, True]


def test_sparse_rows_are_scaled_as_dense_ones_are() -> None:
    """Without a projection they are made dense, a chunk at a time."""
    sparse = pytest.importorskip("scipy.sparse")
    X = np.random.default_rng(0).random((50, 7)) * (np.random.default_rng(1).random((50, 7)) < 0.3)
    for kind in ("none", "minmax", "standard"):
        scaler = Scaler.fit(kind, FeatureStatistics.of(X))
        np.testing.assert_array_equal(scaler.transform(sparse.csr_matrix(X)), scaler.transform(X))
