"""The neighbours stage: exact where it can be, many cells where it must be, the same for any partitioning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from sklearn.neighbors import NearestNeighbors

from ivis_spark.config import NeighboursConfig
from ivis_spark.errors import IvisError
from ivis_spark.spark.neighbours.stage import build_neighbours

pytestmark = pytest.mark.spark


def build(
    spark: SparkSession, X: np.ndarray, folder: Path, *, cut: int = 2, **settings: object
) -> tuple[dict, np.ndarray]:
    rows = spark.createDataFrame([(i, bytearray(row.tobytes())) for i, row in enumerate(X)], "id long, features binary")
    config = NeighboursConfig(**settings)
    info = build_neighbours(rows.repartition(cut), config, random_state=0, folder=f"file://{folder}")
    table = pq.read_table(folder / "data").sort_by("id")
    assert table["id"].to_pylist() == list(range(len(X)))
    return info, np.array(table["neighbour_ids"].to_pylist())


def clusters(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(12, 6))[rng.integers(0, 12, n)] * 4 + rng.normal(size=(n, 6))).astype(np.float32)


@pytest.mark.parametrize("backend", ["exact", "annoy"])
def test_many_cells_reach_the_target(spark: SparkSession, tmp_path: Path, backend: str) -> None:
    X = clusters(6000)
    info, found = build(spark, X, tmp_path, k=10, max_cell_rows=600, backend=backend, target_recall=0.95)
    truth = NearestNeighbors(n_neighbors=11).fit(X).kneighbors(X, return_distance=False)[:, 1:]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
    assert recall > 0.93
    assert abs(recall - info["recall"]["value"]) < 0.03
    assert info["n_cells"] > 5
    assert not (found == np.arange(len(X))[:, None]).any()


@pytest.mark.parametrize(("metric", "target"), [("euclidean", 0.9), ("dot", 0.96)])
def test_partitions_and_indexes_do_not_matter(spark: SparkSession, tmp_path: Path, metric: str, target: float) -> None:
    """Bit by bit: 40 features, so that products round, and Annoy looking at every row of a cell."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(12, 40))[rng.integers(0, 12, 5000)] + rng.normal(size=(5000, 40))).astype(np.float32)
    settings: dict[str, object] = {"k": 5, "max_cell_rows": 500, "metric": metric, "overlap": 4}
    cases = [(1, "exact"), (16, "exact"), (2, "annoy")]
    tables = []
    for cut, backend in cases:
        folder = tmp_path / f"{cut}-{backend}"
        full = {"n_trees": 2, "search_k": 1_000_000} if backend == "annoy" else {}
        info, _ = build(spark, X, folder, cut=cut, backend=backend, target_recall=target, **settings, **full)
        assert info["n_cells"] > 5 and info["replicas"] > 1
        tables.append(pq.read_table(folder / "data").sort_by("id"))
    assert all(table.equals(tables[0]) for table in tables)


def test_partitions_do_not_matter_where_rows_tie(spark: SparkSession, tmp_path: Path) -> None:
    """Of rows equally far any may be the k-th; their distances are the same."""
    X = np.random.default_rng(0).integers(0, 3, (5000, 8)).astype(np.float32)
    infos, distances = [], []
    for cut in (1, 7):
        infos.append(build(spark, X, tmp_path / str(cut), cut=cut, k=5, max_cell_rows=500, target_recall=0.5)[0])
        table = pq.read_table(tmp_path / str(cut) / "data").sort_by("id")
        distances.append(table["distances"].to_pylist())
    assert distances[0] == distances[1]
    assert [infos[0][name] for name in ("n_cells", "overlap", "overlap_cut", "replicas")] == [
        infos[1][name] for name in ("n_cells", "overlap", "overlap_cut", "replicas")
    ]


def test_a_low_recall_is_searched_again_with_more_effort(spark: SparkSession, tmp_path: Path) -> None:
    X = clusters(4500)
    settings: dict[str, object] = {"backend": "annoy", "n_trees": 3, "search_k": 20, "target_recall": 0.9}
    info, _ = build(spark, X, tmp_path, k=10, max_cell_rows=800, **settings)
    assert info["search_k"] in (60, 180) and info["recall"]["ci95"][0] >= 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "index"]


def test_a_recall_out_of_reach_says_what_to_change(spark: SparkSession, tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(4500, 30)).astype(np.float32)
    text = r"recall@k is 0\.\d+, .* on 500 .*target_recall=0.99.* up to 1 cells: raise neighbours.overlap"
    with pytest.raises(IvisError, match=text):
        build(spark, X, tmp_path, k=10, max_cell_rows=400, overlap=1, target_recall=0.99)


def test_one_cell_is_exact(spark: SparkSession, tmp_path: Path) -> None:
    X = clusters(200)
    info, found = build(spark, X, tmp_path, k=7)
    truth = NearestNeighbors(n_neighbors=8).fit(X).kneighbors(X, return_distance=False)[:, 1:]
    assert np.array_equal(np.sort(found), np.sort(truth))
    assert info["recall"]["value"] == 1
    assert info["backend"] == "exact" and "all 200 rows are one cell" in info["backend_reason"]


def test_many_equal_rows_reach_the_target(spark: SparkSession, tmp_path: Path) -> None:
    X = np.concatenate([np.zeros((3000, 6), np.float32), clusters(2000)])
    info, found = build(spark, X, tmp_path, k=5, max_cell_rows=500)
    assert found.shape == (5000, 5)
    assert (found[:3000] < 3000).all()
    assert info["recall"]["value"] > 0.95
