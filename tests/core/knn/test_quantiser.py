"""The router: balanced cells whatever the data, the nearest cell under every metric, the same in any batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ivis_spark.core.knn.metrics import Space
from ivis_spark.core.knn.overlap import depth_bins
from ivis_spark.core.knn.quantiser import Router, hash_ids, learn_router, refine, sample_size
from ivis_spark.errors import ArtifactError

METRICS = ["euclidean", "angular", "manhattan", "hamming", "dot"]
LIMITS = {"max_cell_rows": 200, "min_cell_rows": 12}


def clusters(n: int, d: int = 6, *, seed: int = 0) -> np.ndarray:
    """Clusters of very different weight and width, some features binary enough for hamming."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 21) ** 1.5
    label = rng.choice(20, n, p=weights / weights.sum())
    spread = 0.02 + rng.random(20) ** 3
    return (rng.normal(size=(20, d))[label] + rng.normal(size=(n, d)) * spread[label][:, None]).astype(np.float32)


def settle(X: np.ndarray, metric: str, sample: int = 1000) -> tuple[Router, np.ndarray]:
    """Learn on a sample and refine on counts of all rows, as the stage does; return home cells too."""
    ids = np.arange(len(X))
    router = learn_router(X[:: max(1, len(X) // sample)], len(X), metric, random_state=0, **LIMITS)
    for attempt in range(12):
        home = router.rank(X, ids, 1)[0][:, 0]
        counts = np.bincount(home, minlength=router.n_cells)
        heavy = X[counts[home] > LIMITS["max_cell_rows"]]
        mended = refine(router, counts, heavy, random_state=attempt, last=attempt >= 4, **LIMITS)
        if mended is None:
            return router, counts
        router = mended
    raise AssertionError(f"not balanced after 12 rounds: {np.sort(counts)}")


def few_values(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (n, 3)).astype(np.float32)


def mostly_duplicates(n: int) -> np.ndarray:
    X = clusters(n, seed=1)
    X[: n * 9 // 10] = X[0]
    return X[np.random.default_rng(2).permutation(n)]


def one_far_row(n: int) -> np.ndarray:
    X = clusters(n)
    X[5] = 1e6
    return X


DATA = {
    "clusters": clusters(5000),
    "equal": np.full((3000, 4), 2.5, np.float32),
    "zeros": np.zeros((3000, 4), np.float32),
    "mostly duplicates": mostly_duplicates(5000),
    "eight distinct rows": few_values(3000),
    "one far row": one_far_row(4000),
    "line": np.linspace(0, 1, 4000, dtype=np.float32)[:, None],
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", DATA)
def test_no_cell_is_above_the_limit(name: str, metric: str) -> None:
    X = DATA[name]
    router, counts = settle(X, metric)
    assert counts.sum() == len(X)
    assert counts.max() <= LIMITS["max_cell_rows"]
    assert counts.min() >= LIMITS["min_cell_rows"] or router.n_cells == 1
    assert router.n_cells <= 4 * len(X) / (0.6 * LIMITS["max_cell_rows"])  # nor are they crumbs
    assert len(router.centroids) == len(router.parts) == len(router.sizes)
    assert np.isfinite(router.centroids).all() and np.isfinite(router.sizes).all()
    if name in ("clusters", "line") and metric in ("euclidean", "manhattan"):
        assert (router.parts == 1).all()  # rows that differ are told apart by place, not dealt out


def test_rows_that_fit_one_cell_get_one() -> None:
    assert learn_router(clusters(150), 150, "euclidean", random_state=0, **LIMITS).n_cells == 1


def test_equal_rows_are_dealt_out_evenly() -> None:
    router, counts = settle(DATA["equal"], "euclidean")
    assert len(router.centroids) == 1 and router.n_cells == 25  # 3000 / (0.6 * 200)
    assert counts.min() > 0.6 * 120 and counts.max() < 1.4 * 120


def test_learning_is_deterministic() -> None:
    X = clusters(3000)
    first, second, other = (learn_router(X, 3000, "euclidean", random_state=seed, **LIMITS) for seed in (1, 1, 2))
    assert np.array_equal(first.centroids, second.centroids) and np.array_equal(first.sizes, second.sizes)
    assert first.centroids.shape != other.centroids.shape or not np.array_equal(first.centroids, other.centroids)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("as_queries", [False, True])
def test_cells_are_ranked_by_distance(metric: str, as_queries: bool) -> None:
    """Against SciPy in float64; for dot in the space of Bachrach et al., built here by hand."""
    X = clusters(3000)
    router = learn_router(X, 3000, metric, random_state=0, **LIMITS)
    cells, depths = router.rank(X, np.arange(3000), 4, as_queries=as_queries)
    R = X.astype(np.float64)
    norms = np.linalg.norm(R, axis=1)
    if metric == "hamming":
        R = (X > 0.5).astype(np.float64)
    elif metric == "angular":
        R /= norms[:, None]
    elif metric == "dot":
        lift = np.sqrt(np.maximum(norms.max() ** 2 - norms**2, 0))
        R = np.c_[R / norms[:, None] * norms.max(), 0 * lift] if as_queries else np.c_[R, lift]
    distances = cdist(R, router.centroids, "cityblock" if metric == "manhattan" else "euclidean")
    expected = np.sort(distances, axis=1)[:, :4]
    numbers = router.centroid_of_cell()[cells]
    near = np.take_along_axis(distances, numbers, axis=1)
    np.testing.assert_allclose(near, expected, rtol=1e-3, atol=1e-3)
    behind = (near - near[:, :1]) / 2
    if metric != "manhattan":  # from the plane halfway between the two centroids
        apart = np.linalg.norm(router.centroids[numbers] - router.centroids[numbers[:, :1]], axis=2)
        behind = (near**2 - near[:, :1] ** 2) / 2 / np.where(apart > 0, apart, 1)
    sizes = np.maximum(router.sizes[numbers], router.sizes[numbers[:, :1]])
    wide = sizes > 0.02  # between two cells of equal rows, whose size is rounding, any depth will do
    np.testing.assert_allclose(depths[wide], behind[wide] / sizes[wide], rtol=1e-2, atol=1e-2)
    assert wide.mean() > 0.4 and (depths[:, 0] == 0).all()


def line_router(metric: str = "euclidean", *, parts: tuple[int, ...] = (1, 1, 1)) -> Router:
    """Centroids at 0, 4 and 10 on a line, whose rows are on average 1, 2 and 0.5 away from them."""
    centroids = np.array([[0.0], [4.0], [10.0]], np.float32)
    return Router.make(metric, centroids, np.array(parts), np.array([1, 2, 0.5], np.float32), 0.0)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_depth_by_hand(metric: str) -> None:
    """A row at 1: nearest 0, then 4, whose border is at 2, 1 away, over size 2; then 10: border 5, 4 away, over 1.

    A row at 8: nearest 10, then 4, whose border is at 7, 1 away, over 2; then 0: border 5, 3 away, over 1.
    """
    cells, depths = line_router(metric).rank(np.array([[1.0], [8.0]]), np.zeros(2, np.int64), 3)
    assert cells.tolist() == [[0, 1, 2], [2, 1, 0]]
    np.testing.assert_allclose(depths, [[0, 1 / 2, 4 / 1], [0, 1 / 2, 3 / 1]], rtol=1e-6)


def test_assign_takes_cells_up_to_the_cut() -> None:
    rows, cells, home = line_router().assign(np.array([[1.0], [8.0]]), np.zeros(2, np.int64), overlap=3, cut=0.51)
    assert rows.tolist() == [0, 0, 1, 1] and cells.tolist() == [0, 1, 2, 1]
    assert home.tolist() == [True, False, True, False]
    assert line_router().assign(np.array([[1.0]]), np.zeros(1, np.int64), overlap=3, cut=0.4)[1].tolist() == [0]
    assert line_router().assign(np.array([[1.0]]), np.zeros(1, np.int64), overlap=2, cut=9)[1].tolist() == [0, 1]


def test_rows_of_a_shared_centroid_are_dealt_by_id() -> None:
    router = line_router(parts=(1, 3, 2))
    assert router.n_cells == 6 and router.first_cell.tolist() == [0, 1, 4]
    assert router.centroid_of_cell().tolist() == [0, 1, 1, 1, 2, 2]
    ids = np.arange(3000) * 1000
    cells = router.rank(np.full((3000, 1), 4.0), ids, 3)[0]
    assert set(cells[:, 0].tolist()) == {1, 2, 3} and np.bincount(cells[:, 0])[1:].min() > 900
    assert set(cells[:, 1].tolist()) == {0} and set(cells[:, 2].tolist()) == {4, 5}
    assert np.array_equal(router.rank(np.full((5, 1), 4.0), ids[100:105], 3)[0], cells[100:105])


def crossed(metric: str) -> tuple[Router, np.ndarray]:
    """Centroids on a lattice and rows of which most are as far from several of them, up to rounding."""
    rng = np.random.default_rng(5)
    centroids = np.unique(rng.integers(0, 3, (60, 9)), axis=0).astype(np.float32)
    router = Router.make(metric, centroids, np.ones(len(centroids), np.int64), np.ones(len(centroids), "f4"), 0.0)
    return router, (rng.integers(0, 5, (3000, 9)) / 2 + 0.1).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["clusters", "wide", "crossed", "mostly duplicates", "one far row", "two levels"])
def test_batches_do_not_matter(kind: str, metric: str) -> None:
    """The cells and what is on which side of a cut; the last bits of a depth may differ."""
    if kind == "crossed":
        router, X = crossed(metric)
        if metric == "dot":
            X = X[:, :-1]
    elif kind == "two levels":
        router = many_centroids(metric)
        X = clusters(3000, 4 if metric == "dot" else 5)
    else:
        X = clusters(3000, 200) if kind == "wide" else DATA.get(kind, DATA["clusters"])[:3000]
        router = learn_router(X, len(X), metric, random_state=0, **LIMITS)
    ids = np.random.default_rng(1).permutation(len(X))
    whole, depths = router.rank(X, ids, 4)
    for step in (1, 7, 1000, 2999):
        some = slice(0, 300) if step < 10 else slice(None)
        rows, numbers = X[some], ids[some]
        parts = [router.rank(rows[at : at + step], numbers[at : at + step], 4) for at in range(0, len(rows), step)]
        assert np.array_equal(np.concatenate([part[0] for part in parts]), whole[some])
        found = np.concatenate([part[1] for part in parts])
        assert np.array_equal(depth_bins(found), depth_bins(depths[some]))


def many_centroids(metric: str, d: int = 5) -> Router:
    rng = np.random.default_rng(3)
    centroids = (rng.normal(size=(30, d))[rng.integers(0, 30, 1500)] * 3 + rng.normal(size=(1500, d))).astype("f4")
    return Router.make(metric, centroids, np.ones(1500, np.int64), np.ones(1500, np.float32), 0.0)


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_two_levels_find_nearly_all_nearest(metric: str) -> None:
    router = many_centroids(metric)
    assert 20 < len(router.groups) < 60
    assert np.array_equal(np.sort(np.concatenate(router.members)), np.arange(1500))
    X = router.centroids[::2] + np.random.default_rng(4).normal(size=(750, 5)).astype(np.float32) * 0.5
    cells, depths = router.rank(X, np.arange(750), 4)
    true = cdist(X, router.centroids, "cityblock" if metric == "manhattan" else "euclidean").argsort(axis=1)[:, :4]
    assert np.mean(cells[:, 0] == true[:, 0]) > 0.99
    assert np.mean([len(set(a) & set(b)) / 4 for a, b in zip(cells, true, strict=True)]) > 0.97
    flat = Router(metric, router.centroids, router.parts, router.sizes, 0.0, router.centroids[:0], ())
    same = (flat.rank(X, np.arange(750), 4)[0] == cells).all(axis=1)
    np.testing.assert_allclose(flat.rank(X, np.arange(750), 4)[1][same], depths[same], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_saved_and_loaded_router_ranks_alike(metric: str, tmp_path: Path) -> None:
    X = clusters(2000)
    router = settle(X, metric)[0]
    assert router.save(str(tmp_path)) == ["router.json", "router.npz"]
    loaded = Router.load(str(tmp_path))
    assert (loaded.metric, loaded.n_cells, loaded.norm_bound) == (metric, router.n_cells, router.norm_bound)
    for ours, theirs in zip(router.rank(X, np.arange(2000), 3), loaded.rank(X, np.arange(2000), 3), strict=True):
        assert np.array_equal(ours, theirs)


def test_saved_two_level_router_ranks_alike(tmp_path: Path) -> None:
    router = many_centroids("euclidean")
    router.save(str(tmp_path))
    X = router.centroids + np.float32(0.1)
    ours, theirs = (r.rank(X, np.arange(1500), 3)[0] for r in (router, Router.load(str(tmp_path))))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("name", "content"), [("router.json", "{}"), ("router.json", "{"), ("router.npz", "torn")])
def test_files_that_are_no_router_are_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(ArtifactError, match=r"holds no usable router .*; build the neighbours anew"):
        Router.load(str(tmp_path))
    line_router().save(str(tmp_path))
    (tmp_path / name).write_text(content)
    with pytest.raises(ArtifactError, match=r"holds no usable router .*; build the neighbours anew"):
        Router.load(str(tmp_path))


def test_hashes_are_spread_and_depend_on_the_seed() -> None:
    """The value for 0 is SplitMix64's first output, as its author publishes it."""
    assert int(hash_ids(np.array([0]), 0)[0]) == 0xE220A8397B1DCDAF
    ids = np.concatenate([np.arange(-1000, 1000), [2**63 - 1, -(2**63)]])
    hashed = hash_ids(ids, 0)
    assert len(np.unique(hashed)) == len(ids)
    assert 900 < (hashed % 2 == 0).sum() < 1100
    assert not np.array_equal(hashed, hash_ids(ids, 1))


def test_sample_size_has_its_limits() -> None:
    assert sample_size(100, 2000, 4, 1 << 30) == 100
    assert sample_size(10**6, 2000, 4, 1 << 30) == 833 * 64  # 10^6 / (0.6 * 2000) cells
    assert sample_size(10**5, 2000, 4, 1 << 30) == 83 * 64
    assert sample_size(10**6, 2000, 4000, 8 << 20) == 2097
    assert sample_size(10**6, 2000, 10**9, 8 << 20) == 1024


def test_rows_of_equal_keys_go_to_the_nearest_of_the_space() -> None:
    """Routing for dot: the row with the largest product is the one nearest to the query."""
    X, Q = clusters(400, seed=3), clusters(50, seed=4)
    space = Space("dot")
    bound = space.norm_bound(X)
    lifted = cdist(space.route_queries(Q, bound), space.route_rows(X, bound))
    products = Q.astype(np.float64) @ X.T.astype(np.float64)
    best = np.take_along_axis(products, lifted.argmin(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(best, products.max(axis=1), rtol=1e-4)


def test_cells_with_few_rows_borrow_from_the_next() -> None:
    """Cells at 0, 4 and 10 hold 1, 2 and 5 rows; a row at 1 that wants 3 takes two, one that wants 4 all three."""
    router, ids = line_router(), np.arange(2)
    X, rows = np.array([[1.0], [9.0]]), np.array([1, 2, 5])

    def cells(least: int, overlap: int = 1) -> list[tuple[int, int]]:
        found = router.assign(X, ids, overlap=overlap, cut=0.0, cell_rows=rows, least=least)
        return sorted(zip(found[0].tolist(), found[1].tolist(), strict=True))

    assert cells(1) == [(0, 0), (1, 2)]
    assert cells(3, overlap=3) == cells(3, overlap=2) == cells(3) == [(0, 0), (0, 1), (1, 2)]
    assert cells(4) == [(0, 0), (0, 1), (0, 2), (1, 2)]
    assert cells(100) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    home = router.assign(X, ids, overlap=1, cut=0.0, cell_rows=rows, least=4)
    assert sorted(home[1][home[2]].tolist()) == [0, 2]
