"""`data.components` from the table to the report: sparse rows are searched and trained on by their components."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from runs import published
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist

from ivis_spark import storage
from ivis_spark.config import Config, DataConfig
from ivis_spark.core.knn.by_features import NearestByFeatures
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import ConfigError, InputError
from ivis_spark.pipeline import Pipeline
from ivis_spark.serving.folder import read_model
from ivis_spark.serving.index import PartitionedIndex
from ivis_spark.spark.rows import columns, components, ingest

pytestmark = pytest.mark.spark

N, D = 240, 160
RNG = np.random.default_rng(0)
X = RNG.poisson(0.2 + 3 * np.repeat(np.eye(3), [60, 50, 50], axis=1)[np.arange(N) % 3]).astype(np.float64)
X[:, 7], X[:, 8] = 0, X[:, 9]  # a constant column, and one twice
X[13] = X[4]  # a row twice
SPARSE = csr_matrix(X)


def places(row: int) -> list[int]:
    return np.flatnonzero(X[row]).tolist()


def frame(spark: SparkSession, kind: str) -> DataFrame:
    """The rows, as one of the kinds that sparse rows come in, or dense."""
    rows: list[Any]
    if kind == "vectors":
        rows = [(i, Vectors.sparse(D, places(i), X[i, places(i)].tolist()), i % 3) for i in range(N)]
        rows[3] = (3, Vectors.dense(X[3]), 0)
        return spark.createDataFrame(rows, ["id", "features", "y"])
    if kind == "indices":
        rows = [(i, places(i)[::-1], [int(v) for v in X[i, places(i)[::-1]]], i % 3) for i in range(N)]
        return spark.createDataFrame(rows, "id long, gene array<int>, count array<int>, y int")
    return spark.createDataFrame(
        [(i, row.tolist(), i % 3) for i, row in enumerate(X)], "id long, features array<double>, y int"
    )


def data(kind: str, **settings: Any) -> DataConfig:
    named = {"features_col": "count", "indices_col": "gene", "n_features": D} if kind == "indices" else {}
    return DataConfig(**{"id_col": "id", "label_col": "y", "components": 12, **named, **settings})


def ingested(spark: SparkSession, kind: str, folder: Path, config: DataConfig, parts: int = 2) -> Any:
    with storage.RunFolder(str(folder)).build("rows", {}) as build:
        info = ingest.ingest(columns.resolve(frame(spark, kind).repartition(parts), config), config, build)
    rows = pq.read_table(published(folder, "rows") / "data").sort_by("id")
    return info, np.stack([np.frombuffer(row, "<f4") for row in rows["features"].to_pylist()])


@pytest.mark.parametrize("scaling", ["none", "minmax"])
def test_rows_of_any_kind_become_the_same_components(spark: SparkSession, tmp_path: Path, scaling: str) -> None:
    found = {}
    for kind in ("dense", "vectors", "indices"):
        info, found[kind] = ingested(spark, kind, tmp_path / kind, data(kind, scaling=scaling))
        assert info["components"]["count"] == info["dims"] == 12 and info["n_features"] == D
        assert info["constant_features"] == 1 and info["components"]["sample_rows"] == N
        assert 0 < info["components"]["kept_neighbours"] <= 1
    # solvers agree on the space, not on every digit
    apart = {kind: np.linalg.norm(rows[:, None] - rows, axis=2) for kind, rows in found.items()}
    np.testing.assert_allclose(apart["vectors"], apart["dense"], atol=1e-3)
    np.testing.assert_allclose(found["indices"], found["vectors"], atol=1e-5)


def test_components_do_not_depend_on_partitions_and_copies(spark: SparkSession, tmp_path: Path) -> None:
    """Rows numbered by content: of copies, one is in the sample."""
    config = data("vectors", id_col=None, keep_columns=("y",), scaling="none")
    table = frame(spark, "vectors").drop("id")
    copies = table.where(F.col("y") == 0).limit(1).withColumn("copy", F.explode(F.sequence(F.lit(1), F.lit(300))))
    table = table.unionByName(copies.drop("copy"))
    found = []
    for parts in (1, 5):
        with storage.RunFolder(str(tmp_path / str(parts))).build("rows", {}) as build:
            info = ingest.ingest(columns.resolve(table.repartition(parts), config), config, build)
        assert info["rows"] == N + 300 and info["components"]["sample_rows"] == N - 1
        rows = pq.read_table(published(tmp_path / str(parts), "rows") / "data").sort_by("id")
        nearest = NearestByFeatures.from_bytes((published(tmp_path / str(parts), "rows") / "nearest.npz").read_bytes())
        assert set(nearest.own) <= set(rows["id"].to_pylist()) and len(set(nearest.own)) == len(nearest.own) == N - 1
        found.append((rows["features"].to_pylist(), info["components"]["kept_neighbours"]))
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [3, 1])
def test_fewer_rows_than_components(spark: SparkSession, tmp_path: Path, count: int) -> None:
    config = data("dense", components=50)
    source = columns.resolve(frame(spark, "dense").where(F.col("id") < count), config)
    with storage.RunFolder(str(tmp_path)).build("rows", {}) as build:
        assert ingest.ingest(source, config, build)["components"]["count"] == max(1, count - 1)


def test_indices_that_cannot_be_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    config = data("indices", n_features=100)
    with storage.RunFolder(str(tmp_path)).build("rows", {}) as build, pytest.raises(InputError, match=r"out of range"):
        ingest.ingest(columns.resolve(frame(spark, "indices"), config), config, build)
    with pytest.raises(InputError, match=r"whole numbers"):
        columns.resolve(frame(spark, "indices").withColumn("gene", F.col("y")), config)
    assert columns.resolve(frame(spark, "indices"), data("indices", n_features=None)).width == D


def test_indices_beyond_int32_are_not_wrapped(spark: SparkSession, tmp_path: Path) -> None:
    table = spark.createDataFrame(
        [(i, [i % 4, 2**32 + 5] if i == 3 else [i % 4], [1.0, 2.0][: 1 + (i == 3)]) for i in range(8)],
        "id long, gene array<long>, count array<double>",
    )
    config = data("indices", label_col=None, n_features=10, components=2, invalid="drop")
    with storage.RunFolder(str(tmp_path)).build("rows", {}) as build:
        info = ingest.ingest(columns.resolve(table, config), config, build)
    assert (info["rows"], info["dropped"]) == (7, 1)
    with pytest.raises(InputError, match=rf"holds {2**32 + 5}, .*data.n_features"):
        columns.resolve(table, data("indices", label_col=None, n_features=None))


@pytest.mark.parametrize(("sparse", "width", "warned"), [(True, 13_488, True), (True, 50, False), (False, 784, False)])
def test_sparse_rows_that_are_stored_densely_are_said(
    sparse: bool, width: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source = columns.Source(None, None, width, ("count",), (), (), sparse=sparse)  # type: ignore[arg-type]
    assert ingest._components(source, DataConfig(components=None)) is None
    assert ("54 kB per row: --set data.components=50" in caplog.text) == warned


def test_a_sample_keeps_its_features() -> None:
    numbers = np.arange(200_000, dtype=np.int64)
    share = components.keeps_original(numbers, len(numbers), 50).sum()
    assert abs(share - components.ORIGINAL_ROWS) < 400
    assert components.keeps_original(numbers[:99], 99, 10**9).all()


@pytest.mark.tf
def test_a_run_on_components_takes_and_is_measured_by_the_features(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorflow")
    from ivis_spark.ml import IvisModel

    table = frame(spark, "indices").withColumn("name", F.concat(F.lit("row "), "id"))
    table.write.parquet(str(tmp_path / "table"))
    columns_of = {"id_col": "id", "label_col": "y", "features_col": "count", "indices_col": "gene", "n_features": D}
    config = Config.from_mapping(
        {
            "data": {**columns_of, "components": "auto"},
            "neighbours": {"k": 5, "recall_sample": 20},
            "train": {"epochs": 1},
            "evaluate": {"sample_rows": 100, "plot_rows": 150, "k": 5},
        }
    )
    run = str(tmp_path / "run")
    pipeline = Pipeline(run, config, get_spark=lambda: spark, input_uri=str(tmp_path / "table"))
    pipeline.run()
    info = json.loads((tmp_path / "run/rows/manifest.json").read_text())["info"]
    assert info["components"]["count"] == 50 and len(info["components"]["explained_variance_ratio"]) == 50
    neighbours = json.loads((tmp_path / "run/neighbours/manifest.json").read_text())["info"]
    assert neighbours["dims"] == neighbours["components"]["count"] == 50
    # The recall by all features is that of the published lists, against the nearest of the table's rows
    lists = pq.read_table(published(run, "neighbours") / "data").to_pydict()
    measured = NearestByFeatures.from_bytes((published(run, "rows") / "nearest.npz").read_bytes()).own
    scaler = Scaler.from_bytes((published(run, "rows") / "scaler.npz").read_bytes())
    apart = cdist(*[scaler.scale(X)] * 2)
    np.fill_diagonal(apart, np.inf)
    limit = np.sort(apart, axis=1)[:, 4]
    near = dict(zip(lists["id"], lists["neighbour_ids"], strict=True))
    expected = np.mean([apart[row, near[row]] <= limit[row] + 1e-9 for row in measured])
    assert neighbours["original_recall"]["value"] == pytest.approx(expected) and expected < 1
    assert neighbours["original_recall"]["sample"] == len(measured) == N and neighbours["original_recall"]["k"] == 5
    assert any("by all features the recall is" in r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    # Measured by the features
    metrics = json.loads((published(run, "report") / "metrics.json").read_text())
    assert metrics["features"] == D and metrics["sample_rows"] == 100 and metrics["components"] == 50
    assert metrics["original_recall_at_k"] == neighbours["original_recall"]["value"] != metrics["recall_at_k"]
    page = (published(run, "report") / "report.html").read_text()
    assert "among 50 principal components" in page and "Neighbour recall, all features" in page
    # The model: what the run embedded is what comes of the user's columns
    embedded = pq.read_table(published(run, "embeddings") / "data").sort_by("id")
    expected = np.stack(embedded["embedding"].to_pylist())
    model = IvisModel.from_run(run)
    rows = pq.read_table(published(run, "rows") / "data").sort_by("id")
    projected = np.stack([np.frombuffer(row, "<f4") for row in rows["features"].to_pylist()])
    np.testing.assert_allclose(projected, scaler.transform(X), atol=1e-4)
    encoder = model.to_encoder()
    np.testing.assert_allclose(encoder(SPARSE), expected, atol=1e-4)
    np.testing.assert_allclose(encoder(X), expected, atol=1e-4)
    by_column = model.setOutputType("array").transform(table).orderBy("id").toPandas()
    np.testing.assert_allclose(np.stack(by_column["embedding"]), expected, atol=1e-4)
    np.testing.assert_allclose(model.to_local().transform(X), expected, atol=1e-4)
    again = IvisModel.from_local(model.to_local()).to_encoder()
    np.testing.assert_allclose(again(SPARSE), expected, atol=1e-4)
    assert read_model(run).n_inputs == D
    # The index, in Python and as a command
    index = PartitionedIndex.load(run)
    ids, _ = index.query(X[:7], 3)
    assert index.dims == D and (ids[:, 0] == [0, 1, 2, 3, 4, 5, 6]).all()
    np.testing.assert_array_equal(index.query(SPARSE[:7], 3)[0], ids)
    new = str(tmp_path / "new")
    table.where("id < 7").withColumn("other", F.lit(1)).write.parquet(new)
    other = Pipeline(run, config, get_spark=lambda: spark, input_uri=new)
    other.query()
    found = pq.read_table(next((tmp_path / "run").glob("queries-new/*/data"))).sort_by("id")
    np.testing.assert_array_equal(found["neighbour_ids"].to_pylist(), index.query(X[:7], 5)[0])
    other.embed()
    moved = pq.read_table(next((tmp_path / "run").glob("embeddings-new/*/data"))).sort_by("id")
    np.testing.assert_allclose(np.stack(moved["embedding"].to_pylist()), expected[:7], atol=1e-4)
    # Other settings do not fit these rows
    angular = Config.from_mapping({"neighbours": {"metric": "angular", "k": 5}})
    with pytest.raises(InputError, match=r"50 principal components.*data.components=none"):
        Pipeline(run, angular, get_spark=lambda: spark).neighbours()
    coloured = Config.from_mapping({**config.to_mapping(), "evaluate": {"colour_by": ["count[3]"]}})
    with pytest.raises(ConfigError, match=r"data.keep_columns"):
        Pipeline(run, coloured, get_spark=lambda: spark).evaluate()
