"""Neighbours by all features of some rows, as they are found among all rows a batch at a time."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from ivis_spark.core.knn import by_features
from ivis_spark.core.knn.by_features import FeatureSearch, NearestByFeatures, rows_to_measure
from ivis_spark.core.projection import Projection
from ivis_spark.core.scaling import FeatureStatistics, Scaler
from ivis_spark.errors import ArtifactError

RNG = np.random.default_rng(0)
N, D, Q = 300, 12, 40
X = RNG.normal(size=(N, D)) * np.linspace(2, 0.5, D) + 100.0
IDS = RNG.permutation(10 * N)[:N] - 5


def scaler(rows: Any, count: int = 3) -> Scaler:
    plain = Scaler.fit("minmax", FeatureStatistics.of(rows))
    projection = Projection.fit((rows - plain.offset) * plain.factor, count, seed=0)
    return Scaler("minmax", plain.offset, plain.factor, projection)


def searched(rows: np.ndarray, kind: str, parts: int = 3, count: int = 3, marks: Any = IDS) -> NearestByFeatures:
    fitted, given = scaler(rows, count), sparse.csr_matrix(rows) if kind == "sparse" else rows
    search, projected = FeatureSearch(marks[:Q], given[:Q], fitted), fitted.transform(given)
    order, found = RNG.permutation(len(rows)), NearestByFeatures.none(Q)
    for part in np.array_split(order, parts):
        piece = search.search(given[part], projected[part], marks[part], IDS[part])
        found = found.merge(NearestByFeatures.from_bytes(piece.to_bytes()))
    return found


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_recall_is_by_distances_of_all_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_features, "CHUNK_BYTES", 16_000)  # several chunks
    found, fitted = searched(X, kind), scaler(X)
    scaled = (X - fitted.offset) * fitted.factor
    apart = {"features": cdist(scaled[:Q], scaled), "components": cdist(*[fitted.transform(X)] * 2)[:Q]}
    near = {name: np.argsort(keys, axis=1)[:, 1:11] for name, keys in apart.items()}
    np.testing.assert_array_equal(found.own, IDS[:Q])
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near.values(), strict=True)])
    assert 0.05 < expected < 0.95
    shuffled = RNG.permutation(Q)
    recall = found.recall(IDS[shuffled], IDS[near["components"]][shuffled], None, n_rows=N)
    assert recall is not None and recall.value == pytest.approx(expected) and recall.sample == Q
    perfect = found.recall(IDS[:Q], IDS[near["features"]], None, n_rows=N)
    assert perfect is not None and perfect.value == 1.0
    some = found.recall(IDS[Q - 5 : Q + 5], IDS[near["features"]][:10], None, n_rows=N)
    assert some is not None and some.sample == 5
    assert found.recall(IDS[Q:], np.zeros((N - Q, 4), np.int64), None, n_rows=N) is None
    kept, k = found.kept(N)
    by_components = np.argsort(apart["components"], axis=1)[:, 1 : k + 1]
    by_all = np.argsort(apart["features"], axis=1)[:, 1 : k + 1]
    both = np.mean([len(set(a) & set(b)) / k for a, b in zip(by_components, by_all, strict=True)])
    assert k == 15 and kept.value == pytest.approx(both)


def test_all_components_keep_all_neighbours() -> None:
    assert searched(X, "dense", count=D).kept(N)[0].value > 0.99


def test_copies_count_whichever_are_listed() -> None:
    """More copies than are kept: any of them is as near. They share a mark, and one of them is the sampled row."""
    rows = X.copy()
    rows[:200] = rows[0]
    marks = np.where(np.arange(N) < 200, 7, IDS + 10_000)
    some = np.r_[0, 200 : 200 + Q - 1]
    fitted = scaler(rows)
    search = FeatureSearch(marks[some], rows[some], fitted)
    found = search.search(rows, fitted.transform(rows), marks, IDS)
    own = found.own[:1]
    assert own[0] == IDS[:200].max()
    copies = np.setdiff1d(IDS[:200], own)[None, :20]
    recall = found.recall(own, copies, np.zeros((1, 20), np.float32), n_rows=N)
    assert recall is not None and recall.value == 1.0
    far = found.recall(own, IDS[None, 200:220], np.full((1, 20), 3, np.float32), n_rows=N)
    assert far is not None and far.value == 0.0


def test_few_rows_and_what_cannot_be_read() -> None:
    rows = X[:2]
    fitted = scaler(rows, 1)
    found = FeatureSearch(IDS[:2], rows, fitted).search(rows, fitted.transform(rows), IDS[:2], IDS[:2])
    assert found.kept(2)[0].value == 1.0
    with pytest.raises(ArtifactError, match="build the rows again"):
        NearestByFeatures.from_bytes(found.to_bytes()[:-20])


def test_wide_rows_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (rows_to_measure(784), rows_to_measure(20_000), rows_to_measure(10**6)) == (500, 419, 100)
    monkeypatch.setattr(by_features, "CHUNK_BYTES", 4 << 20)
    for width in (3, 100_000):
        rows = sparse.csr_matrix(RNG.normal(size=(20_000, 3)))
        rows.resize(20_000, width)
        projection = Projection(np.zeros(width), np.eye(width, 3), np.zeros(3))
        plain = Scaler("none", np.zeros(width), np.ones(width), projection)
        given = rows.toarray() if width == 3 else rows
        search, ids = FeatureSearch(np.arange(500), given[:500], plain), np.arange(20_000)
        projected = plain.transform(given)
        tracemalloc.start()
        try:
            assert search.search(given, projected, ids, ids).kept(20_000)[0].value > 0.999
            assert tracemalloc.get_traced_memory()[1] < 24 << 20
        finally:
            tracemalloc.stop()
