"""Every index under every metric: the same contract, against SciPy; and the packed order they sort by."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.indexes import IndexSettings, RegionIndex, choose_backend, installed_indexes, load_index
from ivis_spark.core.knn.leaves import Leaf
from ivis_spark.core.knn.metrics import Space, Target
from ivis_spark.core.knn.search import calibrate
from ivis_spark.errors import ConfigError

OURS = list(installed_indexes())
BACKENDS = [*OURS, "toy_index:Index"]
METRICS = ["euclidean", "angular", "manhattan", "hamming", "dot"]
ALL = pytest.mark.parametrize(("backend", "metric"), list(itertools.product(BACKENDS, METRICS)))
SETTINGS = IndexSettings(leaf_rows=40, n_trees=4, seed=5)


class Exact:
    """An index with its last effort, which looks at every row; row i has id i."""

    def __init__(self, index: RegionIndex) -> None:
        self.index = index

    def query(self, Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.index.query(Q, k, self.index.efforts[-1])


def make(backend: str, X: np.ndarray, metric: str, settings: IndexSettings = SETTINGS) -> Exact:
    return Exact(load_index(backend).build(X, np.arange(len(X)), metric, settings))


def rows(n: int, d: int = 7, *, seed: int = 0) -> np.ndarray:
    """Normal rows around (0.5, .., 0.5), so that half of what hamming sees is not zero and norms differ."""
    return (np.random.default_rng(seed).normal(size=(n, d)) + 0.5).astype(np.float32)


def lattice(n: int, d: int = 4, *, seed: int = 0) -> np.ndarray:
    """Rows of small integers: every key but angular's is an integer, most of them tie."""
    return np.random.default_rng(seed).integers(0, 2, (n, d)).astype(np.float32)


def true_keys(Q: np.ndarray, X: np.ndarray, metric: str) -> np.ndarray:
    """Return float64 (q, n): keys as `core.knn.metrics` defines them, by SciPy."""
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


def assert_same(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> None:
    """Check for equal numbers and equal bits."""
    assert np.array_equal(first[0], second[0])
    assert first[1].tobytes() == second[1].tobytes()


@ALL
@pytest.mark.parametrize("k", [1, 10, 150])
def test_query_finds_the_nearest(backend: str, metric: str, k: int) -> None:
    X, Q = rows(150), rows(40, seed=1)
    check(make(backend, X, metric).query(Q, k), true_keys(Q, X, metric), k)


@pytest.mark.parametrize("metric", METRICS)
def test_both_indexes_return_the_same_bits(metric: str) -> None:
    X, Q = rows(600, 9), rows(50, 9, seed=1)
    k = 600 if metric == "hamming" else 9  # with all rows asked for, ties leave no choice
    assert_same(make("leaves", X, metric).query(Q, k), make("annoy", X, metric).query(Q, k))


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


def test_leaves_of_few_distinct_rows_stay_small() -> None:
    """Nine of ten rows are equal, the others differ by little: leaves are of the size that was asked for."""
    X = np.zeros((6000, 5), np.float32)
    X[::10] = rows(600, 5) * 1e-3
    index = load_index("leaves").build(X, np.arange(6000), "euclidean", SETTINGS)
    assert np.diff(index.leaves.starts).max() <= 10 * SETTINGS.leaf_rows
    _near, keys = index.query(X[:50], 5, index.efforts[0])
    assert (keys[np.arange(50) % 10 > 0] == 0).all()
    check(Exact(index).query(X[:50:10], 5), true_keys(X[:50:10], X, "euclidean"), 5)


@ALL
@pytest.mark.parametrize("value", [0, 1, -3.5])
def test_equal_rows(backend: str, metric: str, value: float) -> None:
    X = np.full((300, 50), value, np.float32)
    check(make(backend, X, metric).query(X[:3], 7), true_keys(X[:3], X, metric), 7)
    check(make(backend, X, metric).query(X, 300), true_keys(X, X, metric), 300)


@ALL
def test_one_row(backend: str, metric: str) -> None:
    X, Q = rows(1), rows(3, seed=1)
    check(make(backend, X, metric).query(Q, 1), true_keys(Q, X, metric), 1)


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
    numbers, keys = make("leaves", X, "euclidean").query(X, 1)
    assert numbers[:, 0].tolist() == list(range(150)) and not keys.any()


def test_one_far_row_does_not_blur_the_others() -> None:
    """The mean is 1,000 away from all rows but one, and |x|^2 around it has no digit left for keys of 0.01."""
    X = np.random.default_rng(0).random((1000, 3)).astype(np.float32)
    X[7] = 1e6
    truth = np.sort(true_keys(X, X, "euclidean"), axis=1)[:, :10]
    np.testing.assert_allclose(make("leaves", X, "euclidean").query(X, 10)[1], truth, rtol=1e-5, atol=1e-6)


@ALL
@pytest.mark.parametrize("kind", [np.float64, np.int16, np.uint8])
def test_rows_of_any_type(backend: str, metric: str, kind: type) -> None:
    X = np.random.default_rng(0).integers(0, 100, (80, 6)).astype(kind)
    check(make(backend, X, metric).query(X[:9], 4), true_keys(X[:9], X, metric), 4)


class Files:
    """The files of a saved index, in a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def local(self, suffix: str) -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext(self.path + suffix)

    def part(self, suffix: str, start: int, stop: int) -> bytes:
        return Path(self.path + suffix).read_bytes()[start:stop]

    def leaf(self, number: int, read: Callable[[], Leaf]) -> Leaf:
        return read()


@ALL
def test_saved_and_loaded_index_answers_alike(backend: str, metric: str, tmp_path: Path) -> None:
    """Ids as they come, large and negative; also with little effort."""
    X, Q, ids = rows(300), rows(30, seed=1), np.random.default_rng(0).permutation(300) * 2**40 - 2**45
    index = load_index(backend).build(X, ids, metric, SETTINGS)
    suffixes = index.save(str(tmp_path / "region"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted("region" + suffix for suffix in suffixes)
    loaded = load_index(backend).load(Files(str(tmp_path / "region")), metric, X.shape[1])
    for effort in (index.efforts[0], index.efforts[-1]):
        assert_same(loaded.query(Q, 8, effort), index.query(Q, 8, effort))
    assert np.isin(loaded.query(Q, 8, effort)[0], ids).all()


def wide(n: int, d: int = 256, *, seed: int = 0) -> np.ndarray:
    """Rows near a plane of 12 dimensions, with noise in all."""
    plane = np.random.default_rng(7).normal(size=(12, d))
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 12)) @ plane + 0.3 * rng.normal(size=(n, d)) + 100).astype(np.float32)


@pytest.mark.parametrize("metric", ["euclidean", "angular"])
def test_wide_rows_are_compared_along_principal_directions(metric: str, tmp_path: Path) -> None:
    """Few of the true neighbours are lost, keys are of all features, also by a loaded index; one far row harms none."""
    X, Q = wide(3000), wide(100, seed=1)
    X[5] *= 1000
    index = load_index("leaves").build(X, np.arange(3000), metric, SETTINGS)
    directions = index.leaves.directions  # type: ignore[attr-defined]
    np.testing.assert_allclose(directions.T @ directions, np.eye(directions.shape[1]), atol=1e-5)
    assert directions.shape[1] == 16
    truth = true_keys(Q, X, metric)
    index.save(str(tmp_path / "r"))
    for own in (index, load_index("leaves").load(Files(str(tmp_path / "r")), metric, 256)):
        numbers, keys = own.query(Q, 10, 4.0)
        exact = np.take_along_axis(truth, numbers, axis=1)
        np.testing.assert_allclose(keys, exact, rtol=1e-4, atol=1e-6)
        assert (exact <= np.sort(truth, axis=1)[:, 9:10]).mean() > 0.97
        check(own.query(Q, 10, own.efforts[-1]), keys_within(truth, own.query(Q, 3000, own.efforts[-1])), 10)


def keys_within(truth: np.ndarray, found: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return all keys as found, after a check that they are the true ones within float32: cosines near 1 round."""
    keys = np.empty_like(found[1])
    np.put_along_axis(keys, found[0], found[1], axis=1)
    np.testing.assert_allclose(keys, truth, rtol=1e-4, atol=1e-6)
    return keys


@pytest.mark.parametrize("X", [rows(3000, 40), rows(3000, 256), wide(60)], ids=["narrow", "noise", "few"])
def test_rows_that_few_directions_do_not_hold_are_compared_by_all_features(X: np.ndarray) -> None:
    assert load_index("leaves").build(X, np.arange(len(X)), "euclidean", SETTINGS).leaves.directions is None  # type: ignore[attr-defined]


def test_large_wide_rows_keep_their_neighbours() -> None:
    X = wide(3000) * np.float32(1e16)
    found = load_index("leaves").build(X, np.arange(3000), "euclidean", SETTINGS).query(X[:50], 5, 4.0)
    assert np.isfinite(found[1]).all() and (found[0][:, 0] == np.arange(50)).all()


def test_equal_wide_rows_are_split_into_leaves_by_number() -> None:
    X = wide(9000)
    X[::2] = X[0]
    index = load_index("leaves").build(X, np.arange(9000), "euclidean", SETTINGS)
    assert index.leaves.directions is not None  # type: ignore[attr-defined]
    assert np.diff(index.leaves.starts).max() <= 4 * SETTINGS.leaf_rows  # type: ignore[attr-defined]
    assert (index.query(X[:200:2], 10, 4.0)[1] == 0).all()


@pytest.mark.parametrize("place", [3, 40, -5])
def test_a_harmed_file_of_leaves_is_refused(tmp_path: Path, place: int) -> None:
    X = rows(300)
    load_index("leaves").build(X, np.arange(300), "euclidean", SETTINGS).save(str(tmp_path / "r"))
    path = tmp_path / "r.leaves"
    body = bytearray(path.read_bytes())
    body[place] ^= 1
    path.write_bytes(bytes(body))
    with pytest.raises(ValueError, match="is not what was written"):
        load_index("leaves").load(Files(str(tmp_path / "r")), "euclidean", 7).query(X, 3, np.inf)


@pytest.mark.parametrize("backend", OURS)
def test_the_seed_decides_the_index(backend: str) -> None:
    X = rows(2000, 16)

    def answer(seed: int) -> np.ndarray:
        settings = IndexSettings(leaf_rows=100, n_trees=1, search_k=20, seed=seed)
        index = load_index(backend).build(X, np.arange(2000), "euclidean", settings)
        return index.query(X[:50], 10, index.efforts[0])[0]

    assert np.array_equal(answer(3), answer(3))
    assert not np.array_equal(answer(3), answer(4))


@ALL
def test_calibration_finds_the_least_effort(backend: str, metric: str) -> None:
    """On rows of the region itself: the effort reaches the recall, the next smaller one does not."""
    X, ids = np.concatenate([rows(1500, 12), rows(1500, 12, seed=1) * 2]), np.arange(3000)
    index = load_index(backend).build(X, ids, metric, SETTINGS)
    sample = np.arange(0, 3000, 20)
    truth = np.sort(true_keys(X[sample], X, metric) + np.where(sample[:, None] == ids, np.inf, 0), axis=1)[:, 9:10]

    def recall(effort: float) -> float:
        near, keys = index.query(X[sample], 11, effort)
        others = near != sample[:, None]
        found = (keys <= truth + 1e-5 * np.abs(truth)) & others
        return float(np.minimum(found.sum(axis=1), 10).mean() / 10)

    effort = calibrate(index, X, ids, sample, 10, 0.8)
    assert recall(effort) >= 0.795
    place = list(index.efforts).index(effort)
    assert place == 0 or recall(index.efforts[place - 1]) < 0.805
    assert calibrate(index, X, ids, sample, 10, 1.0) == index.efforts[-1]


def test_less_effort_finds_less() -> None:
    X = rows(4000, 16)
    index = load_index("leaves").build(X, np.arange(4000), "euclidean", IndexSettings(leaf_rows=100, n_trees=1))
    truth = np.argsort(true_keys(X[:200], X, "euclidean"), axis=1)[:, :10]
    shares = [
        np.mean([len(set(a) & set(b)) / 10 for a, b in zip(index.query(X[:200], 10, effort)[0], truth, strict=True)])
        for effort in (0.1, 1.0, 4.0, np.inf)
    ]
    assert shares == sorted(shares) and shares[0] < 0.9 and shares[-1] == 1


def test_efforts_grow_without_a_leap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that are hard to find, each effort compares at most twice as many as the one before, up to all."""
    X, pairs = rows(8000, 32), [0]
    index = load_index("leaves").build(X, np.arange(8000), "euclidean", IndexSettings(leaf_rows=32, n_trees=1))
    compare = Target.rank_keys

    def counted(self: Target, extended: np.ndarray) -> np.ndarray:
        keys = compare(self, extended)
        pairs[-1] += keys.size
        return keys

    monkeypatch.setattr(Target, "rank_keys", counted)
    for effort in index.efforts:
        pairs.append(0)
        index.query(X[:100], 10, effort)
    steps = np.array(pairs[1:]) / (100 * 8000)
    assert (steps[1:] < 2 * steps[:-1]).all() and steps[-1] >= 1 > steps[len(steps) // 2]


def test_the_index_that_was_requested_is_taken() -> None:
    for requested in BACKENDS:
        picked, reason = choose_backend(requested, 8, 2000, 15, SETTINGS)
        assert picked == requested and "requested" in reason and f"{requested} about" in reason
    assert choose_backend("auto", 8, 2000, 15, SETTINGS)[0] == "leaves"
    with pytest.raises(ConfigError, match=r"neighbours.backend='exact' is not one of: annoy, leaves, package"):
        choose_backend("exact", 8, 2000, 15, SETTINGS)
    with pytest.raises(ConfigError, match=r"neighbours.backend='exact' is not one of: auto, annoy, leaves, package"):
        NeighboursConfig(backend="exact")
    with pytest.raises(ConfigError, match=r"backend='json:JSONDecoder' must be a subclass of .*RegionIndex"):
        choose_backend("json:JSONDecoder", 8, 2000, 15, SETTINGS)
