"""Neighbours from Annoy, from labels and from lists."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from annoy import AnnoyIndex

from ivis_spark.config import NeighboursConfig
from ivis_spark.data.neighbour_retrieval import AnnoyKnnMatrix, LabeledNeighbourMap, NeighbourMatrix
from ivis_spark.data.neighbour_retrieval.knn import build_annoy_index, extract_knn
from ivis_spark.data.neighbour_retrieval.search import find_neighbours, read_neighbours
from ivis_spark.data.rows import LazyRows, as_rows
from ivis_spark.errors import ConfigError, InputError

X = np.random.default_rng(0).random((60, 5)).astype(np.float32)
SEARCH = {"random_state": 0, "index_path": None, "index_on_disk": True, "n_jobs": 1}


def nearest(k: int) -> np.ndarray:
    """Return the nearest rows by Euclidean distance, each row its own first."""
    return np.argsort(((X[:, None] - X[None]) ** 2).sum(axis=2), axis=1)[:, :k]


def build(folder: Path, **options: object) -> AnnoyKnnMatrix:
    path = str(folder / "annoy.index")
    return AnnoyKnnMatrix.build(X, path, **{"k": 4, "metric": "euclidean", "verbose": 0, **options})


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
def test_matrix_holds_the_nearest_rows(tmp_path: Path, precompute: bool, on_disk: bool) -> None:
    matrix = build(tmp_path, precompute=precompute, build_index_on_disk=on_disk)
    expected = nearest(4)
    assert len(matrix) == 60
    assert isinstance(matrix, NeighbourMatrix)
    np.testing.assert_array_equal(matrix.get_neighbour_indices(), expected)
    np.testing.assert_array_equal(matrix[7], expected[7])
    np.testing.assert_array_equal(matrix[-1], expected[59])
    np.testing.assert_array_equal(matrix[3:9:2], expected[3:9:2])
    np.testing.assert_array_equal(matrix.get_batch(np.array([8, 2, 2])), expected[[8, 2, 2]])
    with pytest.raises(IndexError):
        matrix[60]
    assert extract_knn(matrix, verbose=0).dtype == np.uint8


@pytest.mark.parametrize("precompute", [False, True])
def test_distances_come_on_request(tmp_path: Path, precompute: bool) -> None:
    matrix = build(tmp_path, include_distances=True, precompute=precompute)
    ids, distances = matrix[5]
    np.testing.assert_array_equal(ids, nearest(4)[5])
    np.testing.assert_allclose(distances, np.linalg.norm(X[ids] - X[5], axis=1), atol=1e-6)
    ids, distances = matrix.get_neighbour_indices()
    assert (ids.shape, distances.shape) == ((60, 4), (60, 4))


def test_saved_loaded_pickled_unloaded_deleted(tmp_path: Path) -> None:
    matrix = build(tmp_path)
    expected = [matrix[row] for row in range(60)]
    copied = str(tmp_path / "deep" / "copy.index")
    Path(copied).parent.mkdir()
    matrix.save(copied)
    loaded = AnnoyKnnMatrix.load(copied, X.shape, k=4, metric="euclidean")
    assert list(loaded) == expected
    assert list(pickle.loads(pickle.dumps(loaded))) == expected
    mine = tmp_path / "deep" / "mine.txt"
    mine.write_text("")
    matrix.save(copied)
    AnnoyKnnMatrix.load(copied, X.shape, k=4, metric="euclidean").delete_index(parent=True)
    assert list(mine.parent.iterdir()) == [mine]
    mine.unlink()
    matrix.save(copied)
    AnnoyKnnMatrix.load(copied, X.shape, k=4, metric="euclidean").delete_index(parent=True)
    assert not Path(copied).parent.exists()
    matrix.unload()
    again = AnnoyKnnMatrix.load(str(tmp_path / "annoy.index"), X.shape, k=4, metric="euclidean")
    again.delete_index()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_built_or_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"k=60 .* 60"):
        build(tmp_path, k=60)
    with pytest.raises(ConfigError, match="chebyshev"):
        build(tmp_path, metric="chebyshev")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        AnnoyKnnMatrix.load(str(tmp_path / "nowhere"), X.shape, k=4)
    build(tmp_path).unload()
    with pytest.raises(InputError, match="60 rows and X has 61"):
        AnnoyKnnMatrix.load(str(tmp_path / "annoy.index"), (61, 5), k=4, metric="euclidean")
    with pytest.raises(OSError, match="7 features"):
        AnnoyKnnMatrix.load(str(tmp_path / "annoy.index"), (60, 7), k=4, metric="euclidean")


@pytest.mark.parametrize("kind", ["dense", "sparse", "cube", "custom"])
def test_index_of_any_rows_opens_in_annoy(tmp_path: Path, kind: str) -> None:
    class Custom:
        shape = X.shape

        def __getitem__(self, number: int) -> object:
            return X[number]

    sparse = pytest.importorskip("scipy.sparse")
    data = {"dense": X, "sparse": sparse.csr_matrix(X), "cube": X.reshape(60, 5, 1), "custom": Custom()}[kind]
    build_annoy_index(data, str(tmp_path / "i"), metric="manhattan", verbose=0)
    index = AnnoyIndex(5, "manhattan")
    index.load(str(tmp_path / "i"))
    np.testing.assert_allclose([index.get_item_vector(row) for row in range(60)], X, atol=1e-6)


def test_one_thread_and_a_seed_make_the_same_index(tmp_path: Path) -> None:
    contents = []
    for number, seed in enumerate((1, 1, 2)):
        path = tmp_path / str(number)
        build_annoy_index(X, str(path), ntrees=5, verbose=0, n_jobs=1, random_state=seed)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_neighbours_by_label() -> None:
    labels = np.array(["b", "a", "b", "c", "a"])
    by_label = LabeledNeighbourMap(labels)
    assert [by_label[row].tolist() for row in range(5)] == [[0, 2], [1, 4], [0, 2], [3], [1, 4]]
    assert (len(by_label), by_label[-1].tolist(), len(by_label[1:3])) == (5, [1, 4], 2)


def test_draws_by_label_are_uniform_inside_and_outside_the_class() -> None:
    labels = np.array([0] * 4 + [1] * 3 + [2] * 5 + [3])[np.random.default_rng(0).permutation(13)]
    by_label, rng = LabeledNeighbourMap(labels), np.random.default_rng(1)
    anchors = np.repeat(np.arange(13), 2000)
    found, positives, negatives = by_label.draw(anchors, rng)
    np.testing.assert_array_equal(found, anchors)
    for row in range(13):
        same, other = set(np.flatnonzero(labels == labels[row])) - {row}, np.flatnonzero(labels != labels[row])
        for drawn, allowed in ((positives, same or {row}), (negatives, set(other))):
            numbers, counts = np.unique(drawn[anchors == row], return_counts=True)
            assert set(numbers) == allowed
            assert counts.min() > 0.7 * 2000 / len(allowed)
    with pytest.raises(InputError, match="13 rows are labelled 7"):
        LabeledNeighbourMap(np.full(13, 7)).draw(np.arange(3), rng)


def test_search_in_memory_and_by_annoy_find_the_same_others(tmp_path: Path) -> None:
    config = NeighboursConfig(k=4, metric="euclidean", search_k=10_000)
    expected = np.sort(nearest(5)[:, 1:], axis=1)
    lazy = LazyRows(X)
    for rows, precompute in ((X, True), (lazy, True), (X, False), (lazy, False)):
        found = find_neighbours(rows, config, precompute=precompute, **SEARCH)
        assert isinstance(found, np.ndarray) == precompute
        numbers = found if precompute else [[j for j in found[i] if j != i] for i in range(60)]
        np.testing.assert_array_equal(np.sort(numbers, axis=1), expected)
    build(tmp_path).unload()
    reused = find_neighbours(X, config, precompute=True, **{**SEARCH, "index_path": str(tmp_path / "annoy.index")})
    np.testing.assert_array_equal(np.sort(reused, axis=1), expected)
    with pytest.raises(InputError, match=r"k=59 .*n_rows - 2 = 58"):
        find_neighbours(X, NeighboursConfig(k=59), precompute=True, **SEARCH)


def test_index_made_on_the_way_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = NeighboursConfig(k=4)
    find_neighbours(as_rows(LazyRows(X)), config, precompute=True, **SEARCH)
    assert list(tmp_path.iterdir()) == []
    matrix = find_neighbours(X, config, precompute=False, **SEARCH)
    assert len(list(tmp_path.iterdir())) == 1
    del matrix
    assert list(tmp_path.iterdir()) == []


def test_read_neighbours() -> None:
    lists = [[1], [0, 2], [0]]
    assert read_neighbours(lists, 3) is lists
    frame = pytest.importorskip("pandas").DataFrame([[1, 2], [0, 2], [0, 1]])
    np.testing.assert_array_equal(read_neighbours(frame, 3), frame.to_numpy())
    with pytest.raises(InputError, match="neighbour_matrix is a int"):
        read_neighbours(3, 3)
