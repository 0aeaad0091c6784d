"""Every index under every metric: the same contract, against SciPy; and the packed order they sort by."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from ivis_spark.core.knn import index as indexes
from ivis_spark.core.knn.index import (
    CellIndex,
    ExactIndex,
    IndexKind,
    choose_backend,
    load_index,
    make_index,
    pack,
    register_index,
    smallest_columns,
    unpack,
)
from ivis_spark.core.knn.metrics import Space
from ivis_spark.errors import ArtifactError

BACKENDS = list(indexes.INDEXES)
METRICS = ["euclidean", "angular", "manhattan", "hamming", "dot"]
ALL = pytest.mark.parametrize(("backend", "metric"), list(itertools.product(BACKENDS, METRICS)))
EVERY_NODE = 1_000_000  # Annoy then looks at every row


def make(backend: str, X: np.ndarray, metric: str) -> CellIndex:
    return make_index(backend, X, metric, n_trees=4, search_k=EVERY_NODE, seed=5)


def rows(n: int, d: int = 7, *, seed: int = 0) -> np.ndarray:
    """Normal rows around (0.5, .., 0.5), so that half of what hamming sees is not zero and norms differ."""
    return (np.random.default_rng(seed).normal(size=(n, d)) + 0.5).astype(np.float32)


def lattice(n: int, d: int = 4, *, seed: int = 0) -> np.ndarray:
    """Rows of small integers: every key but angular's is an integer, most of them tie."""
    return np.random.default_rng(seed).integers(0, 2, (n, d)).astype(np.float32)


def true_keys(Q: np.ndarray, X: np.ndarray, metric: str) -> np.ndarray:
    """Return float64 (q, n): keys as `core.spaces` defines them, by SciPy."""
    Q, X = Q.astype(np.float64), X.astype(np.float64)
    if metric == "hamming":
        return cdist(Q > 0.5, X > 0.5, "cityblock")
    if metric == "dot":
        return -(Q @ X.T)
    if metric == "angular":
        known = np.outer(Q.any(axis=1), X.any(axis=1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(known, 2 * cdist(Q, X, "cosine"), 2.0)
    return cdist(Q, X, {"euclidean": "sqeuclidean", "manhattan": "cityblock"}[metric])


def check(found: tuple[np.ndarray, np.ndarray], truth: np.ndarray, k: int) -> None:
    """Check that `found` are the k smallest of `truth`, in order, ties among them by number."""
    numbers, keys = found
    assert numbers.shape == keys.shape == (len(truth), k)
    assert numbers.dtype == np.int64 and keys.dtype == np.float32
    assert all(len(set(line)) == k for line in numbers.tolist())
    np.testing.assert_allclose(keys, np.take_along_axis(truth, numbers, axis=1), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(keys, np.sort(truth, axis=1)[:, :k], rtol=2e-6, atol=2e-6)
    later = (np.diff(keys) > 0) | ((np.diff(keys) == 0) & (np.diff(numbers) > 0))
    assert later.all()


def all_of(index: CellIndex, k: int) -> tuple[np.ndarray, np.ndarray]:
    parts = list(index.query_all(k))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def assert_same(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> None:
    """Check for equal numbers and equal bits."""
    assert np.array_equal(first[0], second[0])
    assert first[1].tobytes() == second[1].tobytes()


@ALL
@pytest.mark.parametrize("k", [1, 10, 150])
def test_query_finds_the_nearest(backend: str, metric: str, k: int) -> None:
    X, Q = rows(150), rows(40, seed=1)
    check(make(backend, X, metric).query(Q, k), true_keys(Q, X, metric), k)


@ALL
def test_query_all_is_query_of_the_own_rows(backend: str, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "_BLOCK_BYTES", 4 * 500 * 37)  # many uneven blocks
    monkeypatch.setattr(indexes, "_ANNOY_STEP", 37)
    X = rows(500, 60)  # wide enough for the symmetric product and the sampled threshold
    index = make(backend, X, metric)
    found = all_of(index, 12)
    check(found, true_keys(X, X, metric), 12)
    if metric != "hamming":  # where ties are many, which of the equally far come last is not said
        assert_same(found, index.query(X, 12))


@pytest.mark.parametrize("metric", METRICS)
def test_both_indexes_return_the_same_bits(metric: str) -> None:
    X, Q = rows(600, 9), rows(50, 9, seed=1)
    k = 600 if metric == "hamming" else 9  # with all rows asked for, ties leave no choice
    assert_same(make("exact", X, metric).query(Q, k), make("annoy", X, metric).query(Q, k))


@ALL
def test_ties_go_by_number(backend: str, metric: str) -> None:
    X = lattice(60)
    found = make(backend, X, metric).query(X, 60)
    keys = Space(metric).pair_keys(Space(metric).prepare(X), Space(metric).prepare(X), np.tile(np.arange(60), (60, 1)))
    assert np.array_equal(found[0], np.argsort(keys, axis=1, kind="stable"))
    check(found, true_keys(X, X, metric), 60)


@ALL
def test_duplicate_rows(backend: str, metric: str) -> None:
    """Twenty copies of each of ten rows, the keys of copies exactly those of a row with itself."""
    X = np.repeat(rows(10), 20, axis=0)
    found = make(backend, X, metric).query(X, 25)
    check(found, true_keys(X, X, metric), 25)
    if metric != "dot":
        assert (found[1][:, :20] == 0).all()


@ALL
@pytest.mark.parametrize("value", [0, 1, -3.5])
def test_equal_rows(backend: str, metric: str, value: float) -> None:
    X = np.full((300, 50), value, np.float32)
    check(make(backend, X, metric).query(X[:3], 7), true_keys(X[:3], X, metric), 7)
    check(all_of(make(backend, X, metric), 300), true_keys(X, X, metric), 300)


@ALL
def test_one_row(backend: str, metric: str) -> None:
    X, Q = rows(1), rows(3, seed=1)
    check(make(backend, X, metric).query(Q, 1), true_keys(Q, X, metric), 1)
    check(all_of(make(backend, X, metric), 1), true_keys(X, X, metric), 1)


@ALL
def test_no_query(backend: str, metric: str) -> None:
    numbers, keys = make(backend, rows(20), metric).query(rows(0), 3)
    assert numbers.shape == keys.shape == (0, 3)


@ALL
def test_a_zero_row_is_at_right_angles_to_all(backend: str, metric: str) -> None:
    X = rows(30)
    X[4] = 0
    check(make(backend, X, metric).query(X, 30), true_keys(X, X, metric), 30)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "hamming"])  # those in which the origin is no part
def test_rows_far_from_the_origin_keep_their_neighbours(backend: str, metric: str) -> None:
    """|x|^2 is 2e7 here and the keys about 10: a plain |x|^2 - 2 qx would leave no true digit."""
    X = rows(200) + np.float32(1500)
    check(make(backend, X, metric).query(X, 5), true_keys(X, X, metric), 5)


def test_rounding_does_not_lose_the_nearest() -> None:
    """Triples of rows 0.01 apart that are 100 from the centre: their keys, 1e-4, are below the product's rounding."""
    rng = np.random.default_rng(0)
    X = (np.repeat(rng.normal(size=(50, 8)) * 100, 3, axis=0) + rng.normal(size=(150, 8)) * 0.01).astype(np.float32)
    numbers, keys = make("exact", X, "euclidean").query(X, 1)
    assert numbers[:, 0].tolist() == list(range(150)) and not keys.any()


def test_one_far_row_does_not_blur_the_others() -> None:
    """The mean is 1,000 away from all rows but one, and |x|^2 around it has no digit left for keys of 0.01."""
    X = np.random.default_rng(0).random((1000, 3)).astype(np.float32)
    X[7] = 1e6
    truth = np.sort(true_keys(X, X, "euclidean"), axis=1)[:, :10]
    np.testing.assert_allclose(make("exact", X, "euclidean").query(X, 10)[1], truth, rtol=1e-5, atol=1e-6)


@ALL
@pytest.mark.parametrize("kind", [np.float64, np.int16, np.uint8])
def test_rows_of_any_type(backend: str, metric: str, kind: type) -> None:
    X = np.random.default_rng(0).integers(0, 100, (80, 6)).astype(kind)
    check(make(backend, X, metric).query(X[:9], 4), true_keys(X[:9], X, metric), 4)


@ALL
def test_saved_and_loaded_index_answers_alike(backend: str, metric: str, tmp_path: Path) -> None:
    X, Q = rows(300), rows(30, seed=1)
    index = make_index(backend, X, metric, n_trees=3, search_k=40, seed=1)
    path = str(tmp_path / f"cell{index.suffix}")
    index.save(path)
    loaded = load_index(backend, path, metric, X.shape[1], search_k=40)
    assert_same(loaded.query(Q, 8), index.query(Q, 8))
    assert_same(all_of(loaded, 8), all_of(index, 8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_that_are_no_index_are_named(backend: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere is missing; build"):
        load_index(backend, str(tmp_path / "nowhere"), "euclidean", 7, search_k=-1)
    torn = tmp_path / "torn"
    torn.write_bytes(b"no index" * 5)
    with pytest.raises(ArtifactError, match=r"torn cannot be read .*; build"):
        load_index(backend, str(torn), "euclidean", 7, search_k=-1)


def test_exact_index_of_another_width_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "cell.npy")
    make("exact", rows(20), "euclidean").save(path)
    with pytest.raises(ArtifactError, match=r"holds shape \(20, 7\), not \(rows, 8\)"):
        load_index("exact", path, "euclidean", 8, search_k=-1)


@pytest.mark.parametrize("metric", METRICS)
def test_the_seed_decides_the_forest(metric: str) -> None:
    X = rows(2000, 16)

    def answer(seed: int) -> np.ndarray:
        return make_index("annoy", X, metric, n_trees=1, search_k=20, seed=seed).query(X[:50], 10)[0]

    assert np.array_equal(answer(3), answer(3))
    assert not np.array_equal(answer(3), answer(4))


def test_annoy_that_finds_too_few_searches_exactly() -> None:
    X = rows(500)
    found = make_index("annoy", X, "euclidean", n_trees=1, search_k=1, seed=0).query(X[:20], 300)
    check(found, true_keys(X[:20], X, "euclidean"), 300)


@pytest.mark.parametrize("requested", BACKENDS)
def test_the_index_asked_for_is_taken(requested: str) -> None:
    picked = choose_backend("euclidean", dims=8, cell_rows=2000, k=15, n_trees=50, search_k=-1, requested=requested)
    assert picked.backend == requested and "asked for" in picked.reason


def test_the_cheaper_index_is_picked_with_its_reason() -> None:
    small = choose_backend("euclidean", dims=8, cell_rows=1000, k=15, n_trees=50, search_k=-1)
    large = choose_backend("euclidean", dims=8, cell_rows=10_000_000, k=15, n_trees=50, search_k=-1)
    assert (small.backend, large.backend) == ("exact", "annoy")
    assert "1000 rows a cell, 8 dims, k=15: exact about" in small.reason


class LastRows(ExactIndex):
    """A third index, for the test: it is exact, but says so in its own name."""

    suffix = ".last"


def test_a_third_index_joins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Registered, it is priced, picked, built, saved and opened with no change to what uses indexes."""
    monkeypatch.setattr(indexes, "INDEXES", dict(indexes.INDEXES))
    kind = IndexKind(
        build=lambda X, metric, settings: LastRows(X, metric),
        load=lambda path, metric, dims, search_k: LastRows.load(path, metric, dims),
        cost=lambda metric, dims, cell_rows, k, settings: 0.5,
    )
    register_index("last", kind)
    picked = choose_backend("euclidean", dims=8, cell_rows=1000, k=15, n_trees=50, search_k=-1)
    assert picked.backend == "last" and "last about 0 us a row" in picked.reason
    X = rows(100)
    index = make("last", X, "euclidean")
    index.save(str(tmp_path / "cell.last"))
    assert isinstance(load_index("last", str(tmp_path / "cell.last"), "euclidean", 7, search_k=-1), LastRows)
    check(index.query(X, 5), true_keys(X, X, "euclidean"), 5)


any_keys = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False))
numbers_of = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1])


@given(any_keys, st.data())
def test_packed_order_is_key_then_number(keys: np.ndarray, data: st.DataObject) -> None:
    numbers = np.array(data.draw(st.lists(numbers_of, min_size=len(keys), max_size=len(keys))), np.int64)
    signed = bool((keys < 0).any()) or data.draw(st.booleans())
    packed = pack(keys, numbers, signed=signed)
    found, near = unpack(np.sort(packed), signed=signed)
    order = np.lexsort((numbers, keys))
    assert np.array_equal(found, numbers[order]) and np.array_equal(near, keys[order])
    assert found.dtype == np.int64 and near.dtype == np.float32


@pytest.mark.parametrize("signed", [True, False])
def test_packed_zeros_are_one(signed: bool) -> None:
    keys, numbers = np.array([0.0, -0.0, 0.0], np.float32), np.array([3, 2, 1])
    assert unpack(np.sort(pack(keys, numbers, signed=signed)), signed=signed)[0].tolist() == [1, 2, 3]


def test_packed_infinities_stand_at_the_ends() -> None:
    keys = np.array([np.inf, 1, -np.inf, -1e-45, 3e38], np.float32)
    numbers, near = unpack(np.sort(pack(keys, np.arange(5), signed=True)), signed=True)
    assert numbers.tolist() == [2, 3, 1, 4, 0] and near.tolist() == keys[[2, 3, 1, 4, 0]].tolist()


@pytest.mark.parametrize("kind", ["normal", "few values", "ascending", "far", "near", "near in two rows", "infinite"])
@pytest.mark.parametrize("columns", [1, 5, 100, 383, 384, 1000])
@pytest.mark.parametrize("k", [1, 2, 17, 60, 999])
def test_smallest_columns_are_the_smallest(kind: str, columns: int, k: int) -> None:
    rng = np.random.default_rng(0)
    keys = (rng.normal(size=(6, columns)) + 9).astype(np.float32)
    if kind == "few values":
        keys = rng.integers(0, 3, keys.shape).astype(np.float32)
    elif kind == "ascending":
        keys = np.sort(keys, axis=1)
    elif kind == "far":  # the sampled columns know nothing of the nearest,
        keys[:, ::8] += 100
    elif kind.startswith("near"):  # or of all the others
        keys[: 2 if kind == "near in two rows" else 6, ::8] -= 100
    elif kind == "infinite":
        keys[rng.random(keys.shape) < 0.9] = np.inf
    found = np.sort(smallest_columns(keys, k), axis=1)
    k = min(k, columns)
    assert found.shape == (6, k) and (np.diff(found) > 0).all()
    assert np.array_equal(np.sort(np.take_along_axis(keys, found, axis=1)), np.sort(keys, axis=1)[:, :k])
