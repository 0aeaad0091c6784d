"""Regions: balanced where rows differ, equal rows alone dealt by number, the nearest at home, the same in any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn import regions as module
from ivis_spark.core.knn.regions import (
    MOST_REGIONS,
    Regions,
    choose_margin,
    hash_ids,
    region_rows,
    sample_size,
)
from ivis_spark.errors import ArtifactError, InputError

METRICS = ["euclidean", "angular", "manhattan", "hamming", "dot"]


def clusters(n: int, d: int = 6, *, seed: int = 0) -> np.ndarray:
    """Clusters of very different weight and width, some features binary enough for hamming."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 21) ** 1.5
    label = rng.choice(20, n, p=weights / weights.sum())
    spread = 0.02 + rng.random(20) ** 3
    return (rng.normal(size=(20, d))[label] + rng.normal(size=(n, d)) * spread[label][:, None]).astype(np.float32)


def mostly_duplicates(n: int) -> np.ndarray:
    X = clusters(n, seed=1)
    X[: n * 9 // 10] = X[0]
    return X[np.random.default_rng(2).permutation(n)]


def learn(X: np.ndarray, metric: str = "euclidean", *, rows: int = 250, step: int = 4, seed: int = 0) -> Regions:
    return Regions.learn(X[::step], len(X), metric, region_rows=rows, seed=seed)


DATA = {
    "clusters": clusters(8000),
    "equal": np.full((8000, 4), 2.5, np.float32),
    "mostly duplicates": mostly_duplicates(8000),
    "eight distinct rows": np.random.default_rng(0).integers(0, 2, (8000, 3)).astype(np.float32),
    "one far row": np.concatenate([clusters(7999), np.full((1, 6), 1e6, np.float32)]),
    "line": np.linspace(0, 1, 8000, dtype=np.float32)[:, None],
}


@pytest.mark.parametrize("metric", ["euclidean", "angular", "manhattan"])
@pytest.mark.parametrize("name", DATA)
def test_regions_are_balanced(name: str, metric: str) -> None:
    X = DATA[name]
    regions = learn(X, metric)
    home = regions.primary(X, np.arange(len(X)))
    counts = np.bincount(home, minlength=len(regions))
    assert counts.sum() == len(X) and counts.max() <= 4 * 250
    assert len(regions) <= 3 * len(X) / 250  # nor are they crumbs
    assert np.isfinite(regions.centroids).all() and np.isfinite(regions.sizes).all()


def test_only_equal_rows_are_dealt_by_number() -> None:
    """Rows that differ go by place, be they ever so many in one region: a small sample tells fewer regions apart."""
    X = DATA["mostly duplicates"]
    regions = learn(X)
    assert (regions.parts > 1).sum() == 1
    dealt = np.flatnonzero(regions.parts > 1)[0]
    same = (X == regions.centroids[dealt]).all(axis=1)
    assert same.sum() >= 7200
    first, parts = int(regions.first[dealt]), int(regions.parts[dealt])
    home = regions.primary(X, np.arange(len(X)))
    assert set(home[same]) == set(range(first, first + parts))
    assert not np.isin(home[~same], np.arange(first + 1, first + parts)).any()
    assert (learn(DATA["line"]).parts == 1).all() and (learn(DATA["clusters"]).parts == 1).all()


def test_a_sample_too_small_is_refused() -> None:
    X = clusters(8000)
    with pytest.raises(InputError, match=r"80 regions cannot be learnt from a sample of 80 rows.*least 16 per region"):
        learn(X, rows=100, step=100)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_are_at_home_in_the_nearest_region(metric: str) -> None:
    """Against SciPy in float64; for dot by direction."""
    X = clusters(6000)
    regions = learn(X, metric)
    R = X.astype(np.float64)
    if metric == "hamming":
        R = (R > 0.5).astype(float)
    if metric in ("angular", "dot"):
        R /= np.linalg.norm(R, axis=1, keepdims=True)
    far = cdist(R, regions.centroids, "cityblock" if metric == "manhattan" else "euclidean")
    home = regions.primary(X, np.arange(6000))
    np.testing.assert_allclose(far[np.arange(6000), regions.centroid_of[home]], far.min(axis=1), rtol=1e-5, atol=1e-6)
    rows, numbers, at_home = regions.assign(X, np.arange(6000), width=4, margin=0.3)
    assert np.array_equal(numbers[at_home], home) and np.array_equal(rows[at_home], np.arange(6000))
    assert len(np.unique(rows * 10_000 + numbers)) == len(rows) > 6000
    if metric != "dot":
        assert np.bincount(rows).max() <= 4


def test_depths_by_hand() -> None:
    """Centroids at 0, 4 and 10 of size 2; row 1 is 1 from the border at 2 and 4 from that at 5; row 8 is 1 from 7."""
    centroids = np.array([[0.0], [4], [10]], np.float32)
    ones = np.ones(3, np.int64)
    regions = Regions("euclidean", centroids, ones, np.full(3, 2, np.float32), np.zeros(3, np.float32))
    numbers, depths = regions.depths(np.array([[1.0], [8]], np.float32), np.arange(2), 3)
    assert numbers.tolist() == [[0, 1, 2], [2, 1, 0]]
    np.testing.assert_allclose(depths, [[0, 0.5, 2], [0, 0.5, 1.5]])
    rows, guests, home = regions.assign(np.array([[1.0], [8]], np.float32), np.arange(2), width=3, margin=0.6)
    assert rows.tolist() == [0, 0, 1, 1] and guests.tolist() == [0, 1, 2, 1] and home.tolist() == [1, 0, 1, 0]


def test_some_of_many_equal_rows_are_copied_to_other_regions() -> None:
    """Equal rows are sharded over the regions 0 to 3; one of 32 can also be a neighbour of rows in region 4."""
    centroids, parts = np.array([[0.0], [4]], np.float32), np.array([4, 1])
    regions = Regions("euclidean", centroids, parts, np.full(2, 2, np.float32), np.zeros(2, np.float32))
    rows, numbers, home = regions.assign(np.zeros((640, 1), np.float32), np.arange(640), width=2, margin=1.2)
    assert np.array_equal(rows[home], np.arange(640)) and set(numbers[home]) == {0, 1, 2, 3}
    assert set(numbers[~home]) == {4} and 8 < (~home).sum() < 40


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_goes_to_the_same_regions_in_any_batch(metric: str) -> None:
    """40 features, so that products round; many regions are looked up by an index of their own."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(12, 40))[rng.integers(0, 12, 4000)] + rng.normal(size=(4000, 40))).astype(np.float32)
    ids = np.arange(4000)
    for regions in (learn(X, metric), learn(X, metric, rows=6, step=1)):
        whole = regions.assign(X, ids, width=4, margin=0.2)
        parts = [regions.assign(X[i : i + 37], ids[i : i + 37], width=4, margin=0.2) for i in range(0, 4000, 37)]
        joined = np.concatenate([ids[i * 37 + part[0]] for i, part in enumerate(parts)])
        assert np.array_equal(joined, whole[0])
        assert all(np.array_equal(np.concatenate([p[i] for p in parts]), whole[i]) for i in (1, 2))


@pytest.mark.parametrize("metric", METRICS)
def test_regions_hold_the_neighbours_by_the_margin(metric: str) -> None:
    """The margin chosen on some rows brings most neighbours of others home."""
    X = clusters(6000)
    regions, ids = learn(X, metric), np.arange(6000)
    far = {"dot": -(X.astype(float) @ X.T.astype(float)), "hamming": cdist(X > 0.5, X > 0.5, "cityblock")}.get(metric)
    if far is None:
        far = cdist(X, X, {"angular": "cosine", "manhattan": "cityblock"}.get(metric, metric))
    far[ids, ids] = np.inf
    near = np.argsort(far[:800], axis=1)[:, :10]
    numbers, depths = regions.depths(X, ids, 8)
    home = regions.primary(X[:800], ids[:800])
    of = regions.centroid_of
    match = np.where(of[numbers[near]] == of[home][:, None, None], depths[near], np.float32(np.inf)).min(axis=2)
    margin, share = choose_margin(match[:400], 0.9)
    assert share >= 0.9 and (match[400:] <= margin).mean() >= 0.85
    assert len(regions.assign(X, ids, width=8, margin=margin)[0]) < 6000 * (8 if metric in ("dot", "hamming") else 4)


def test_margin_by_hand() -> None:
    depths = np.array([[0, 0.1], [0, 0.2], [0, 0.4], [0, np.inf]] * 100, np.float32)
    assert choose_margin(depths, 0.5) == (0, 0.5)
    assert choose_margin(depths, 0.7) == (pytest.approx(0.2), pytest.approx(0.75))
    assert choose_margin(depths, 0.99) == (pytest.approx(0.4), pytest.approx(0.875))
    assert choose_margin(np.full((3, 2), np.inf, np.float32), 0.9) == (0.0, 0.0)
    assert choose_margin(np.full((3, 2), np.nan, np.float32), 0.9) == (0.0, 1.0)
    some = np.array([[0.3, np.nan], [np.nan, np.nan]] * 100, np.float32)
    assert choose_margin(some, 0.9) == (pytest.approx(0.3), 1.0)


@pytest.mark.parametrize("metric", METRICS)
def test_saved_and_loaded_regions_are_alike(metric: str, tmp_path: Path) -> None:
    X, ids = clusters(4000), np.arange(4000)
    regions = learn(X, metric)
    assert regions.save(str(tmp_path)) == Regions.FILES
    loaded = Regions.load(str(tmp_path))
    for ours, theirs in zip(regions.depths(X, ids, 3), loaded.depths(X, ids, 3), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("name", "content"), [("regions.json", "{}"), ("regions.json", "{"), ("regions.npz", "torn")])
def test_files_that_are_no_regions_are_refused(tmp_path: Path, name: str, content: str) -> None:
    learn(clusters(4000)).save(str(tmp_path))
    (tmp_path / name).write_text(content)
    with pytest.raises(ArtifactError, match=r"holds no usable regions .*; remove the neighbours"):
        Regions.load(str(tmp_path))


def test_hashes_are_spread_and_depend_on_the_seed() -> None:
    """The value for 0 is SplitMix64's first output, as its author publishes it."""
    assert int(hash_ids(np.array([0]), 0)[0]) == 0xE220A8397B1DCDAF
    ids = np.concatenate([np.arange(-1000, 1000), [2**63 - 1, -(2**63)]])
    hashed = hash_ids(ids, 0)
    assert len(np.unique(hashed)) == len(ids)
    assert 900 < (hashed % 2 == 0).sum() < 1100
    assert not np.array_equal(hashed, hash_ids(ids, 1))


def test_sizes_of_regions_and_samples() -> None:
    config = NeighboursConfig()
    assert region_rows(config, 10_000, 10) == [16_384] and sample_size(10_000, 10, 16_384) == 0
    assert region_rows(config, 1_000_000, 32) == [22_500, 45_000, 100_000]
    assert sample_size(1_000_000, 32, 100_000) == 1024
    assert region_rows(config, 10**7, 784) == [(88 << 20) // (4 * 784)]
    assert 10**10 / region_rows(config, 10**10, 32)[0] <= MOST_REGIONS
    assert region_rows(NeighboursConfig(k=150, region_rows=10), 10**6, 8) == [604]
    rows = region_rows(config, 10**9, 128)[0]
    assert sample_size(10**9, 128, rows) * 128 * 4 <= module.SAMPLE_BYTES


@pytest.mark.parametrize(("rows", "dims"), [(10**9, 128), (10**8, 784), (3 * 10**9, 64)])
def test_samples_are_large_enough_for_their_regions(rows: int, dims: int) -> None:
    wanted = region_rows(NeighboursConfig(), rows, dims)[0]
    assert sample_size(rows, dims, wanted) >= 16 * round(rows / wanted)


def test_a_small_sample_makes_larger_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """They grow until the sample tells them apart; rows are not dealt by number in its place."""
    usual = region_rows(NeighboursConfig(), 10**6, 784)[0]
    monkeypatch.setattr(module, "SAMPLE_BYTES", module.SAMPLE_BYTES // 1000)
    wanted = region_rows(NeighboursConfig(), 10**6, 784)[0]
    assert wanted > usual and sample_size(10**6, 784, wanted) >= 16 * round(10**6 / wanted)


def test_products_of_regions_and_sample_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product of all would be 11 GB for 1e9 rows x 128."""
    X = clusters(2000)
    whole = learn(X, "dot")
    monkeypatch.setattr(module, "_BLOCK_VALUES", 3 * 500)
    parts = learn(X, "dot")
    assert len(whole) > 3
    np.testing.assert_allclose(parts.sizes, whole.sizes, rtol=1e-5)
    np.testing.assert_allclose(parts.bounds, whole.bounds, rtol=1e-5)
