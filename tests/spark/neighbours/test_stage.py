"""The neighbours stage: exact where it can be, regions where it must be, the same for any partitioning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from sklearn.neighbors import NearestNeighbors

from ivis_spark.config import NeighboursConfig, load_config
from ivis_spark.core.knn import regions as quantiser
from ivis_spark.core.knn.regions import MOST_REGIONS, Regions
from ivis_spark.core.knn.sizes import MOST_COPIES, MOST_REGION_BYTES, build_sizes, row_bytes
from ivis_spark.errors import ConfigError, InputError, IvisError
from ivis_spark.pipeline import Pipeline
from ivis_spark.serving.index import PartitionedIndex
from ivis_spark.spark.neighbours import stage
from ivis_spark.spark.neighbours.stage import build_neighbours
from ivis_spark.spark.neighbours.task_plan import BLOCK_BYTES, RECORDS_PER_BATCH
from ivis_spark.spark.neighbours.truth import Pairs, RowSample, records_after_fold

pytestmark = pytest.mark.spark

PARTITION_BYTES = 128 << 20  # spark.sql.files.maxPartitionBytes, by default


def build(
    spark: SparkSession, X: np.ndarray, folder: Path, *, cut: int = 2, anchors: int | None = None, **settings: object
) -> tuple[dict, np.ndarray]:
    rows = spark.createDataFrame([(i, bytearray(row.tobytes())) for i, row in enumerate(X)], "id long, features binary")
    config = NeighboursConfig(**settings)
    info = build_neighbours(rows.repartition(cut), config, random_state=0, folder=f"file://{folder}", anchors=anchors)
    table = pq.read_table(folder / "data").sort_by("id")
    assert anchors is not None or table["id"].to_pylist() == list(range(len(X)))
    return info, np.array(table["neighbour_ids"].to_pylist())


def clusters(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(12, 6))[rng.integers(0, 12, n)] * 4 + rng.normal(size=(n, 6))).astype(np.float32)


@pytest.mark.parametrize("backend", ["leaves", "annoy"])
def test_many_regions_reach_the_target(spark: SparkSession, tmp_path: Path, backend: str) -> None:
    """True recall, the interval that was stated, and what the manifest says of the regions."""
    X = clusters(6000)
    settings = {"region_rows": 600, "leaf_rows": 50, "n_trees": 10, "backend": backend, "target_recall": 0.9}
    info, found = build(spark, X, tmp_path, k=10, **settings)
    truth = NearestNeighbors(n_neighbors=11).fit(X).kneighbors(X, return_distance=False)[:, 1:]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)])
    assert recall >= 0.9 and info["recall"]["ci95"][0] >= 0.9
    assert info["recall"]["ci95"][0] - 0.005 <= recall <= info["recall"]["ci95"][1] + 0.005
    assert info["recall"]["sample"] == 500 and 0 <= info["recall"]["tail"] < 0.05
    assert info["n_regions"] > 5 and 1 < info["replicas"] < 3 and info["backend"] == backend
    assert info["largest_region"] < 4 * info["median_region"]
    assert not (found == np.arange(len(X))[:, None]).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "index"]
    files = {path.name for path in (tmp_path / "index").iterdir()}
    assert len(files) == info["n_regions"] * (2 if backend == "annoy" else 1) + 3


def test_anchors_alone_get_the_lists_they_would_get_among_all(spark: SparkSession, tmp_path: Path) -> None:
    """The same bits; fewer anchors are a part of more; the index holds all rows."""
    X, settings = clusters(5000), {"k": 10, "region_rows": 600, "leaf_rows": 50, "target_recall": 0.9}
    build(spark, X, tmp_path / "all", **settings)
    full = pq.read_table(tmp_path / "all" / "data").sort_by("id")
    seen: list[set[int]] = [set()]
    for cut, anchors in ((1, 550), (3, 1300)):
        info, _ = build(spark, X, tmp_path / str(anchors), cut=cut, anchors=anchors, **settings)
        assert (info["rows"], info["anchors"], info["recall"]["sample"]) == (5000, anchors, 500)
        table = pq.read_table(tmp_path / str(anchors) / "data").sort_by("id")
        ids = table["id"].to_pylist()
        assert len(ids) == anchors and seen[-1] < set(ids)
        seen.append(set(ids))
        assert table.equals(full.take(ids))
        assert PartitionedIndex.load(str(tmp_path / str(anchors) / "index")).rows == 5000
    assert abs(np.mean(ids) - 2500) < 200  # drawn from all over


@pytest.mark.parametrize(("dims", "regions"), [(2, 32), (16, 8)])
def test_regions_grow_until_they_copy_few_enough_rows(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dims: int, regions: int
) -> None:
    """In two dimensions small regions meet few others, in sixteen most of them."""
    monkeypatch.setattr(quantiser, "REGION_ROWS", (125, 1000))
    monkeypatch.setattr(quantiser, "_REGION_ROOT", 1)
    monkeypatch.setattr(quantiser, "_REGIONS", 4)
    X = np.random.default_rng(0).normal(size=(4096, dims)).astype(np.float32)
    info, _ = build(spark, X, tmp_path, k=5, target_recall=0.7)
    assert regions / 1.5 < info["n_regions"] < 1.5 * regions and info["replicas"] < 3.2


@pytest.mark.parametrize(("metric", "n"), [("euclidean", 5000), ("dot", 2500)])
def test_partitions_do_not_matter(spark: SparkSession, tmp_path: Path, metric: str, n: int) -> None:
    """Bit by bit, lists and index: 40 features, so that products round. All metrics: tests/core/knn/test_regions.py."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(12, 40))[rng.integers(0, 12, n)] + rng.normal(size=(n, 40))).astype(np.float32)
    settings: dict[str, object] = {"k": 5, "region_rows": 200, "metric": metric, "target_recall": 0.6, "leaf_rows": 50}
    tables, files = [], []
    for cut in (1, 16):
        info, _ = build(spark, X, tmp_path / str(cut), cut=cut, **settings)
        assert info["n_regions"] > 4 and info["replicas"] > 1
        tables.append(pq.read_table(tmp_path / str(cut) / "data").sort_by("id"))
        index = json.loads((tmp_path / str(cut) / "index" / "index.json").read_text())
        files.append([file["sha256"] for record in index["regions"] for file in record["files"].values()])
    assert tables[0].equals(tables[1])
    assert files[0] == files[1]


def test_a_low_recall_is_searched_again_with_more_effort(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "aimed_recall", lambda target, sample: target - 0.1)
    config = {"target_recall": 0.9, "region_rows": 600, "leaf_rows": 50}
    info, _ = build(spark, clusters(4500), tmp_path, k=10, **config)
    assert info["recall"]["ci95"][0] >= 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "index"]


def test_a_recall_out_of_reach_says_what_to_change(spark: SparkSession, tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(2500, 30)).astype(np.float32)
    text = r"recall@k is 0\.\d+, .* on 500 .*target_recall=0.99. Raise neighbours.max_regions or neighbours.region_rows"
    with pytest.raises(IvisError, match=text):
        build(spark, X, tmp_path, k=10, region_rows=400, max_regions=1, target_recall=0.99)


def test_few_rows_are_searched_exactly(spark: SparkSession, tmp_path: Path) -> None:
    X = clusters(200)
    info, found = build(spark, X, tmp_path, k=7)
    truth = NearestNeighbors(n_neighbors=8).fit(X).kneighbors(X, return_distance=False)[:, 1:]
    assert np.array_equal(np.sort(found), np.sort(truth))
    assert info["recall"] == {"value": 1.0, "ci95": [1.0, 1.0], "sample": 200, "tail": 0.0}
    assert (info["backend"], info["n_regions"]) == ("leaves", 1)


def test_many_equal_rows_reach_the_target(spark: SparkSession, tmp_path: Path) -> None:
    """Equal rows are dealt to several regions; none of these is large, and all find equal rows."""
    X = np.concatenate([np.zeros((4000, 6), np.float32), clusters(2000)])
    info, found = build(spark, X, tmp_path, k=5, region_rows=500, leaf_rows=50)
    assert found.shape == (6000, 5) and all(len(set(line)) == 5 for line in found.tolist())
    assert (found[:4000] < 4000).all()
    assert info["recall"]["value"] > 0.95 and info["largest_region"] < 3 * 500


def test_a_table_without_rows_enough_or_such_an_index_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neighbours\.k=5 must be less than the number of rows, 5: lower"):
        build(spark, clusters(5), tmp_path, k=5)
    with pytest.raises(ConfigError, match=r"neighbours.backend='faiss' is not one of: auto, annoy, leaves"):
        build(spark, clusters(50), tmp_path, k=5, backend="faiss")


@pytest.mark.parametrize(("rows", "dims"), [(10**9, 128), (10**8, 784), (3 * 10**9, 64)])
def test_nothing_grows_beyond_memory(rows: int, dims: int) -> None:
    """Every structure of a build, by the constants of the code: at most 1 GiB, and the driver in all under 4 GiB."""
    sizes = build_sizes(rows, dims, NeighboursConfig(), copies=MOST_COPIES)
    assert sizes.regions <= MOST_REGIONS
    for name in ("sample", "quantiser", "queries", "lists", "places", "records", "region", "region_lists"):
        assert 0 < getattr(sizes, name) < 2**30, name
    assert sizes.region < MOST_REGION_BYTES <= 2**30
    assert sizes.driver < 4 * 2**30 and sizes.task < 2.75 * 2**30
    partitions = math.ceil(rows * dims * 4 / PARTITION_BYTES)
    folded = records_after_fold(partitions)
    assert max(folded, math.ceil(partitions / folded)) * sizes.lists < 2**30
    assert RECORDS_PER_BATCH * max(BLOCK_BYTES, row_bytes(dims)) < 2**30
    assert rows * MOST_COPIES * row_bytes(dims) / sizes.tasks < 2**30


def test_regions_too_large_for_a_task_are_learnt_smaller(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before they are searched; if no smaller ones can be learnt, a warning says what the task will need."""
    monkeypatch.setattr(quantiser, "REGION_ROWS", (800, 2000))
    X = clusters(4000)
    usual, _ = build(spark, X, tmp_path, k=5)
    limit = usual["largest_region"] // 2
    monkeypatch.setattr(stage, "MOST_REGION_BYTES", limit * row_bytes(X.shape[1]))
    smaller, _ = build(spark, X, tmp_path, k=5)
    assert smaller["n_regions"] > usual["n_regions"] and smaller["largest_region"] < 1.2 * limit
    assert "is expected to hold" not in caplog.text
    monkeypatch.setattr(stage, "MOST_REGION_BYTES", 1000)
    build(spark, X, tmp_path, k=5)
    assert "the largest region is expected to hold" in caplog.text and "needs 0.1 GB" in caplog.text


def test_places_of_neighbours_are_compared_in_parts() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 8)).astype(np.float32)
    ids = rng.integers(0, 600, (40, 5))
    used = np.unique(ids)
    pairs = Pairs(RowSample(np.arange(40), X[:40]), RowSample(used, X[used]), ids, np.ones(ids.shape, bool))
    for metric in ("euclidean", "dot"):
        learnt = Regions.learn(X, 600, metric, region_rows=60, seed=0)
        numbers, depths = learnt.depths(X, np.arange(600), len(learnt))
        primary = learnt.primary(X[:40], np.arange(40))
        found = pairs.depths(learnt, len(learnt))
        for row, neighbour in ((0, 0), (17, 3), (39, 4)):
            near = ids[row, neighbour]
            assert found[row, neighbour] == pytest.approx(depths[near][numbers[near] == primary[row]].min(), rel=1e-4)


def test_coordinates_far_from_zero_keep_their_neighbours(spark: SparkSession, tmp_path: Path) -> None:
    """Epoch milliseconds and metres: float32 would leave a few values of each, and another table's recall be said."""
    rng = np.random.default_rng(5)
    X = np.column_stack([1.7e12 + rng.random(400) * 1e5, 5.5e6 + rng.random(400), rng.random(400)])
    pq.write_table(pa.table({"id": np.arange(400), "features": list(X)}), tmp_path / "t.parquet")
    config = load_config(None, ["neighbours.k=7", "data.id_col=id"])
    run = Pipeline(str(tmp_path / "run"), config, get_spark=lambda: spark, input_uri=str(tmp_path / "t.parquet"))
    run.ingest()
    found = run.neighbours()
    table = spark.read.parquet(run.run_folder.data("neighbours"))
    lists = {row["id"]: set(row["neighbour_ids"]) for row in table.collect()}
    scaled = (X - X.min(axis=0)) / np.ptp(X, axis=0)
    order = np.argsort(((scaled[:, None] - scaled[None]) ** 2).sum(axis=2), axis=1)
    recall = np.mean([len(lists[row] & set(order[row, 1:8].tolist())) / 7 for row in range(400)])
    assert recall > 0.999 and found.info["recall"]["value"] >= 0.999
