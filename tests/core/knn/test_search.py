"""Neighbours in one process: merging, leaving the row out, and all rows against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn import exact, merge
from ivis_spark.core.knn.exact import exact_neighbours
from ivis_spark.core.knn.indexes import IndexSettings, load_index
from ivis_spark.core.knn.merge import NO_ID, merge_top_k, ties_by_id, without_self
from ivis_spark.core.knn.search import all_neighbours, search_region
from ivis_spark.errors import InputError, IvisError

METRICS = ["euclidean", "angular", "manhattan", "hamming", "dot"]


def clusters(n: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(12, d))[rng.integers(0, 12, n)] * 2 + rng.normal(size=(n, d))).astype(np.float32)


def true_distances(X: np.ndarray, metric: str) -> np.ndarray:
    """Return float64 (n, n), Annoy's distances by SciPy; a row's own is last in any order."""
    X = X.astype(np.float64)
    if metric == "hamming":
        found = cdist(X > 0.5, X > 0.5, "cityblock")
    elif metric == "dot":
        found = X @ X.T
    elif metric == "angular":
        found = np.sqrt(2 * cdist(X, X, "cosine"))
    else:
        found = cdist(X, X, {"euclidean": "euclidean", "manhattan": "cityblock"}[metric])
    np.fill_diagonal(found, -np.inf if metric == "dot" else np.inf)
    return found


# Merging


@st.composite
def lists_of_neighbours(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Lists of some rows; a pair (row, neighbour) has one key wherever it stands, as in the search."""
    count, width = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    base = draw(st.sampled_from([0, 5, -4, 2**31, 2**40, 2**62, -(2**62)]))
    spread = draw(st.sampled_from([1, 2**20, 2**33, 2**58]))
    known = [base + spread * number for number in range(8)]
    signed = draw(st.booleans())
    values = st.sampled_from([0.0, 1.0, 1.0, 2.5, 1e-30, 3e38]) | st.floats(-1e3 if signed else 0, 1e3, width=32)
    key_of: dict[tuple[int, int], float] = {}
    row_ids, ids, keys = [], [], []
    for _ in range(count):
        row = base + draw(st.integers(0, 3))
        found = draw(st.lists(st.sampled_from(known), max_size=width, unique=True))
        near = [key_of.setdefault((row, other), draw(values)) for other in found]
        short = width - len(found)
        row_ids.append(row)
        ids.append(found + [NO_ID] * short)
        keys.append(near + [np.inf] * short)
    return np.array(row_ids), np.array(ids), np.array(keys, np.float32), draw(st.integers(1, 9))


def merged_by_hand(row_ids: np.ndarray, ids: np.ndarray, keys: np.ndarray, k: int) -> dict[int, list[tuple]]:
    pairs: dict[int, set[tuple]] = {int(row): set() for row in row_ids}
    for row, others, near in zip(row_ids.tolist(), ids.tolist(), keys.tolist(), strict=True):
        pairs[row] |= {(key, other) for other, key in zip(others, near, strict=True) if other != NO_ID}
    return {row: sorted(found)[:k] for row, found in sorted(pairs.items())}


@settings(max_examples=120, deadline=None)
@given(lists_of_neighbours(), st.randoms(use_true_random=False))
def test_merge_equals_brute_force_in_any_order(lists: tuple, random: object) -> None:
    row_ids, ids, keys, k = lists
    rows, found, near = merge_top_k(row_ids, ids, keys, k)
    assert (found.dtype, near.dtype) == (np.int64, np.float32) and found.shape == near.shape == (len(rows), k)
    expected = merged_by_hand(*lists)
    assert rows.tolist() == list(expected)
    for others, line, pairs in zip(found.tolist(), near.tolist(), expected.values(), strict=True):
        missing = k - len(pairs)
        assert others == [other for _, other in pairs] + [NO_ID] * missing
        assert line == [key for key, _ in pairs] + [np.inf] * missing
    order = list(range(len(row_ids)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = merge_top_k(row_ids[order], ids[order], keys[order], k)
    assert all(np.array_equal(a, b) for a, b in zip((rows, found, near), again, strict=True))


def test_merge_by_hand() -> None:
    """Row 7 has two lists that share id 3; ids 5 and 2 tie. Row 4 has one neighbour."""
    rows, ids, keys = merge_top_k(
        np.array([7, 4, 7]),
        np.array([[3, 5], [9, NO_ID], [2, 3]]),
        np.array([[1, 2], [4, np.inf], [2, 1]], np.float32),
        3,
    )
    assert rows.tolist() == [4, 7]
    assert ids.tolist() == [[9, NO_ID, NO_ID], [3, 2, 5]]
    assert keys.tolist() == [[4, np.inf, np.inf], [1, 2, 2]]


def test_minus_one_is_an_id() -> None:
    keys = np.array([[1, np.inf], [0, 2]], np.float32)
    rows, ids, _ = merge_top_k(np.array([-1, -1]), np.array([[-2, NO_ID], [-1, 3]]), keys, 3)
    assert rows.tolist() == [-1] and ids.tolist() == [[-1, -2, 3]]


@pytest.mark.parametrize("far", [2**32 - 2, 2**32 - 1, 2**32, 2**62])
def test_merge_of_ids_around_32_bits(far: int) -> None:
    """The id that is 2^32 - 1 above the least would pack as the mark of a missing one."""
    _, ids, keys = merge_top_k(
        np.array([1, 1, 2]), np.array([[3 + far, 3], [3, 3 + far], [3, NO_ID]]), np.zeros((3, 2), np.float32), 3
    )
    assert ids.tolist() == [[3, 3 + far, NO_ID], [3, NO_ID, NO_ID]]
    assert keys[0].tolist() == [0, 0, np.inf]


def test_merge_of_many_rows_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    row_ids = rng.integers(0, 100, 700)
    ids, keys = rng.permuted(np.tile(np.arange(40), (700, 1)), axis=1)[:, :6], rng.random((700, 6), np.float32)
    keys = (ids * 7919 % 23).astype(np.float32)
    whole = merge_top_k(row_ids, ids, keys, 8)
    monkeypatch.setattr(merge, "_MERGE_ROWS", 3)
    assert all(np.array_equal(a, b) for a, b in zip(whole, merge_top_k(row_ids, ids, keys, 8), strict=True))


# The row itself


def test_without_self_by_hand() -> None:
    """Row 5 stands first, row 6 not first, row 7 not at all: it then loses its last entry."""
    ids = np.array([[5, 1, 2, 3], [1, 2, 6, 3], [1, 2, 3, 4]])
    keys = np.array([[0, 1, 2, 3]] * 3, np.float32)
    found, near = without_self(ids, keys, np.array([5, 6, 7]), 3)
    assert found.tolist() == [[1, 2, 3], [1, 2, 3], [1, 2, 3]]
    assert near.tolist() == [[1, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_without_self_fills_up_what_is_short() -> None:
    ids, keys = np.array([[5, 1], [1, 2]]), np.array([[0, 1], [2, 3]], np.float32)
    found, near = without_self(ids, keys, np.array([5, 6]), 3)
    assert found.tolist() == [[1, NO_ID, NO_ID], [1, 2, NO_ID]]
    assert near.tolist() == [[1, np.inf, np.inf], [2, 3, np.inf]]


def test_without_self_of_one_row() -> None:
    found, near = without_self(np.array([[5]]), np.zeros((1, 1), np.float32), np.array([5]), 2)
    assert found.tolist() == [[NO_ID, NO_ID]] and near.tolist() == [[np.inf, np.inf]]


def test_ties_go_by_id() -> None:
    ids, keys = np.array([[9, 4, 7], [3, 2, 1]]), np.array([[1, 1, 2], [1, 2, 3]], np.float32)
    assert ties_by_id(ids, keys)[0].tolist() == [[4, 9, 7], [3, 2, 1]] and ids[0, 0] == 9


# One region


@pytest.mark.parametrize("backend", ["leaves", "annoy"])
def test_rows_at_home_find_guests(backend: str) -> None:
    """Every third row is at home; all rows are found."""
    X, ids = clusters(300, 5), np.arange(300) * 10 + 7
    home = np.arange(300) % 3 == 1
    config = NeighboursConfig(k=4)
    found = search_region(
        X, ids, home, config, backend=backend, target=1.0, held_out=ids[:5], seed=0, calibration_rows=10
    )
    assert np.array_equal(found.ids, ids[home])
    assert np.array_equal(found.neighbour_ids, ids[np.argsort(true_distances(X, "euclidean")[home], axis=1)[:, :4]])


def test_directions_that_do_not_tell_neighbours_apart_are_left_out() -> None:
    """They hold the variance between clusters; within these, neighbours differ by what they leave out."""
    rng = np.random.default_rng(0)
    X = (3 * rng.normal(size=(20, 100)))[rng.integers(20, size=6000)] + rng.normal(size=(6000, 100))
    X = X.astype(np.float32)
    settings = {"backend": "leaves", "held_out": np.arange(0), "seed": 0, "calibration_rows": 128}
    ids, home = np.arange(6000), np.ones(6000, bool)
    searched = search_region(X, ids, home, NeighboursConfig(), target=0.96, **settings)  # type: ignore[arg-type]
    assert np.isinf(searched.index.high_effort) and searched.effort < 2
    assert load_index("leaves").build(X, ids, "euclidean", IndexSettings(256, 1)).high_effort < np.inf


def test_a_region_smaller_than_k_gives_what_it_has() -> None:
    X = np.array([[0.0], [1.0], [3.0]], np.float32)
    home, config = np.array([True, True, False]), NeighboursConfig(k=4)
    found = search_region(
        X, np.array([2, 4, 6]), home, config, backend="leaves", target=0.9, held_out=np.zeros(0, np.int64), seed=0,
        calibration_rows=10,
    )  # fmt: skip
    assert found.neighbour_ids.tolist() == [[4, 6, NO_ID, NO_ID], [2, 6, NO_ID, NO_ID]]
    assert found.keys.tolist() == [[1, 9, np.inf, np.inf], [1, 4, np.inf, np.inf]]


def test_no_effort_is_chosen_by_what_is_held_out() -> None:
    """Rows that are easy to find are held out; those that are not decide."""
    rng = np.random.default_rng(0)
    X = np.concatenate([np.repeat(rng.normal(size=(100, 12)), 25, axis=0) * 50, rng.normal(size=(3000, 12))])
    ids, home = np.arange(5500), np.ones(5500, bool)
    easy, hard = ids[:2500], ids[2500:]
    low, high = (
        search_region(
            X.astype(np.float32), ids, home, NeighboursConfig(k=5, leaf_rows=50), backend="leaves", target=0.9,
            held_out=held_out, seed=0, calibration_rows=100,
        ).effort
        for held_out in (hard, easy)
    )  # fmt: skip
    assert low < high


# All rows


@pytest.mark.parametrize("backend", ["auto", "annoy"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 12, 299])
def test_small_data_equals_brute_force(metric: str, backend: str, k: int) -> None:
    X = clusters(300, 16)
    config = NeighboursConfig(k=k, metric=metric, backend=backend, search_k=100_000, n_trees=5)
    ids, distances = all_neighbours(X, config, random_state=0)
    assert ids.shape == distances.shape == (300, k) and distances.dtype == np.float32
    assert not (ids == np.arange(300)[:, None]).any() and all(len(set(line)) == k for line in ids.tolist())
    truth = true_distances(X, metric)
    np.testing.assert_allclose(distances, np.take_along_axis(truth, ids, axis=1), rtol=2e-6, atol=2e-5)
    nearest = -np.sort(-truth, axis=1) if metric == "dot" else np.sort(truth, axis=1)
    np.testing.assert_allclose(distances, nearest[:, :k], rtol=2e-6, atol=2e-5)


def test_neighbours_by_hand() -> None:
    """Rows 0, 1, 3, 3 on a line: of row 1, row 0 is 1 away, rows 2 and 3 tie and go by id."""
    X = np.array([[0.0], [1.0], [3.0], [3.0]], np.float32)
    ids, distances = all_neighbours(X, NeighboursConfig(k=3), random_state=0)
    assert ids.tolist() == [[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]]
    assert distances.tolist() == [[1, 3, 3], [1, 2, 2], [0, 2, 3], [0, 2, 3]]


@pytest.mark.parametrize(("metric", "backend"), [(m, "leaves") for m in METRICS] + [("euclidean", "annoy")])
def test_leaves_reach_the_target(metric: str, backend: str) -> None:
    """Recall by distance, so that a tie counts; keys are exact, whatever leaf they were found in."""
    X = clusters(6000, 16)
    config = NeighboursConfig(k=10, metric=metric, backend=backend, leaf_rows=100, n_trees=10, target_recall=0.9)
    ids, distances = all_neighbours(X, config, random_state=0)
    assert ids.shape == (6000, 10) and not (ids == np.arange(6000)[:, None]).any()
    assert all(len(set(line)) == 10 for line in ids[::37].tolist())
    some = np.arange(0, 6000, 5)
    if metric == "dot":
        truth = X[some].astype(np.float64) @ X.T.astype(np.float64)
        truth[np.arange(len(some)), some] = -np.inf
        limit = np.sort(truth, axis=1)[:, -10]
        hit = distances[some] >= limit[:, None] - 1e-4
    else:
        Z = {"hamming": X > 0.5, "angular": X / np.linalg.norm(X, axis=1, keepdims=True)}.get(metric, X)
        truth = cdist(Z[some], Z, "cityblock" if metric in ("manhattan", "hamming") else "euclidean")
        truth[np.arange(len(some)), some] = np.inf
        limit = np.partition(truth, 9, axis=1)[:, 9]
        hit = distances[some] <= limit[:, None] * (1 + 1e-5)
    np.testing.assert_allclose(distances[some], np.take_along_axis(truth, ids[some], axis=1), rtol=1e-5, atol=1e-5)
    assert hit.mean() >= 0.9
    assert hit.mean() < 1 or metric == "hamming"  # else this test shows nothing about leaves


def test_the_search_is_deterministic_by_seed() -> None:
    X = clusters(5500, 12)
    config = NeighboursConfig(k=5, leaf_rows=60, target_recall=0.6)
    first, second = (all_neighbours(X, config, random_state=3) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and first[1].tobytes() == second[1].tobytes()
    assert not np.array_equal(first[0], all_neighbours(X, config, random_state=4)[0])


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
@pytest.mark.parametrize("kind", ["equal", "mostly equal"])
def test_equal_rows(kind: str, metric: str) -> None:
    X = np.ones((6000, 3), np.float32)
    if kind == "mostly equal":
        X[::10] = clusters(600, 3)
    ids, distances = all_neighbours(X, NeighboursConfig(k=5, leaf_rows=50, metric=metric), random_state=0)
    same = (X == 1).all(axis=1)
    assert not (ids == np.arange(6000)[:, None]).any() and all(len(set(line)) == 5 for line in ids.tolist())
    assert (distances[same] == 0).all() and same[ids[same]].all()


def test_recall_below_the_target_is_refused() -> None:
    """A sample of 40 rows cannot show a recall of .999, whatever is found."""
    config = NeighboursConfig(k=10, recall_sample=40, target_recall=0.999)
    with pytest.raises(IvisError, match=r"recall@k is .* on 40 .*target_recall=0\.999.*raise neighbours.recall_sample"):
        all_neighbours(clusters(5000, 30), config, random_state=0)


@pytest.mark.parametrize(("rows", "k"), [(5, 5), (5, 9), (1, 1), (0, 1)])
def test_k_of_all_rows_is_refused(rows: int, k: int) -> None:
    with pytest.raises(InputError, match=rf"neighbours\.k={k} must be less than the number of rows, {rows}: lower"):
        all_neighbours(np.zeros((rows, 2), np.float32), NeighboursConfig(k=k), random_state=0)


# Exact neighbours


def test_exact_neighbours_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_EXACT_ROWS", 130)
    X, ids = clusters(1000, 6), np.arange(1000) * 3
    found, keys = exact_neighbours(X[200:260], X, 7, "euclidean", own=ids[200:260], ids=ids)
    true_keys, truth = NearestNeighbors(n_neighbors=8).fit(X).kneighbors(X[200:260])
    assert np.array_equal(found, ids[truth[:, 1:]])
    np.testing.assert_allclose(np.sqrt(keys), true_keys[:, 1:], rtol=1e-6)
    strangers, _ = exact_neighbours(X[200:260] + np.float32(1e-4), X, 1, "euclidean")
    assert strangers[:, 0].tolist() == list(range(200, 260))
