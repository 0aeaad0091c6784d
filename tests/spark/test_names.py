"""Columns and paths with any name, from rows to neighbours, queries, embeddings, a target and the Spark ML classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nasty_names import COLUMNS
from pyspark.sql import DataFrame, SparkSession
from runs import published

from ivis_spark.config import Config
from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.errors import InputError
from ivis_spark.ml import EmbeddingEvaluator, IvisEstimator, IvisModel
from ivis_spark.pipeline import Pipeline
from ivis_spark.serving.folder import ModelFolder, read_model, write_model

pytestmark = pytest.mark.spark

N = 60
X = np.random.default_rng(0).normal(size=(N, len(COLUMNS)))
NETWORK = DenseNetwork((DenseLayer.of(np.random.default_rng(1).normal(size=(len(COLUMNS), 2)), None, "linear"),))
ID, LABEL, PART = "i.d `0`", "l.a b", "p.a`rt = %"
KEPT = {f"{name} kept": [f"{name} {i}" for i in range(N)] for name in COLUMNS} | {
    "Case": list(range(N)),
    "case": [-i for i in range(N)],
}
FOLDER = "a [1] {x,y}? #%20*, über:1"  # also of the run and, but for the colon, of the table's files


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """The table: every feature, and every column that merely passes, has a name that means something somewhere."""
    ids = {ID: list(range(100, 100 + N)), LABEL: [i % 2 for i in range(N)], PART: [f"a/b:{i % 2}%" for i in range(N)]}
    return ids | dict(zip(COLUMNS, X.T, strict=True)) | KEPT


@pytest.fixture(scope="module")
def place(names: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the table, and a run with rows, neighbours and a model."""
    place = tmp_path_factory.mktemp("names") / FOLDER
    (place / "t").mkdir(parents=True)
    for number in range(2):
        pq.write_table(
            pa.table(names).slice(number * N // 2, N // 2), place / "t" / f"{FOLDER.replace(':', '')} {number}.parquet"
        )
    shutil.copytree(place / "t", place / "u")
    serving = {"format": 1, "input_shape": [len(COLUMNS)], "n_outputs": 2, "features": list(COLUMNS)}
    files = {"serving.json": json.dumps(serving).encode(), "dense.npz": NETWORK.to_bytes()}
    write_model(str(place / "run"), ModelFolder({"config": {}, "inputs": {}}, {}, files))
    return place


def pipeline(spark: SparkSession, place: Path, table: str = "t", **settings: Any) -> Pipeline:
    config = Config.from_mapping(
        {
            "data": {"feature_cols": list(COLUMNS), "id_col": ID, "label_col": LABEL, "scaling": "none"},
            "neighbours": {"k": 3, "recall_sample": 20},
            "query": {"k": 1},
            **settings,
        }
    )
    return Pipeline(str(place / "run"), config, get_spark=lambda: spark, input_uri=str(place / table))


@pytest.fixture(autouse=True)
def _cases(spark: SparkSession) -> Any:
    """What a session is set to must be Spark's default before and, but for the tables of this file, after."""
    spark.conf.set("spark.sql.caseSensitive", "false")
    yield
    spark.conf.set("spark.sql.caseSensitive", "false")


def check(frame: pa.Table, names: dict[str, Any]) -> None:
    """Every other column passed with its name and its values, and the embedding is that of its row."""
    frame = frame.sort_by([("Case", "ascending")])
    for name, values in names.items():
        if name not in COLUMNS:
            assert [str(value) for value in frame[name].to_pylist()] == [str(value) for value in values], name
    np.testing.assert_allclose(frame["embedding"].to_pylist(), NETWORK(X.astype(np.float32)), atol=1e-4)


def test_rows_neighbours_and_queries(spark: SparkSession, place: Path) -> None:
    built = pipeline(spark, place)
    manifest = built.ingest()
    assert manifest.info["features"] == list(COLUMNS) and manifest.info["label_col"] == LABEL
    built.neighbours()
    found = pq.read_table(published(place / "run", built.query("q").stage) / "data").to_pylist()
    assert len(found) == N and all(row["neighbour_ids"] == [row.get("id", row.get(ID))] for row in found)


def test_embeddings_keep_every_column(spark: SparkSession, place: Path, names: dict[str, Any]) -> None:
    manifest = pipeline(spark, place, "u").embed()
    assert manifest.stage == "embeddings-u"
    check(pq.read_table(published(place / "run", manifest.stage) / "data"), names)


def test_a_target_partitioned_by_any_column(spark: SparkSession, place: Path, names: dict[str, Any]) -> None:
    target = place / "target"
    for _ in range(2):
        pipeline(spark, place, embed={"partition_by": [PART]}).embed_into(str(target), "replace")
    frame = spark.read.option("__globPaths__", "false").parquet(f"file://{target}")
    rows = frame.collect()
    check(pa.table({name: [row[name] for row in rows] for name in frame.columns}), names)


def test_spark_ml(spark: SparkSession, place: Path, names: dict[str, Any]) -> None:
    """A frame as a user makes it, in a session with Spark's default: cases are not told apart."""
    rows = list(
        zip(*[[v.item() if hasattr(v, "item") else v for v in values] for values in names.values()], strict=True)
    )
    frame: DataFrame = spark.createDataFrame(rows, list(names))
    model = IvisModel(read_model(str(place / "run")), outputType="array")
    embedded = model.transform(frame)
    assert embedded.columns == [*names, "embedding"]
    collected = embedded.collect()
    columns = list(zip(*collected, strict=True))
    check(pa.table([pa.array(column) for column in columns], names=embedded.columns), names)
    assert spark.conf.get("spark.sql.caseSensitive") == "false"
    evaluator = EmbeddingEvaluator(
        metricName="knn_accuracy", featuresCol="embedding", labelCol=LABEL, sampleRows=N, k=3
    )
    assert 0 <= evaluator.evaluate(embedded) <= 1
    path = str(place / "saved, as [2]?")
    model.setOutputCol("z.`1`").save(path)
    assert IvisModel.load(path).getOutputCol() == "z.`1`"
    estimator = IvisEstimator(featureCols=list(COLUMNS), idCol=ID, labelCol=LABEL, runFolder=path)
    estimator.save(f"{path} estimator")
    loaded = IvisEstimator.load(f"{path} estimator")
    assert loaded.getRunFolder() == path and loaded.getFeatureCols() == list(COLUMNS)
    evaluator.save(f"{path} evaluator")
    assert EmbeddingEvaluator.load(f"{path} evaluator").getLabelCol() == LABEL


@pytest.mark.parametrize(("there", "made"), [("Embedding", "embedding"), ("éTÉ", "Été")])
def test_an_output_that_clashes_but_for_case_is_refused(
    spark: SparkSession, place: Path, names: dict[str, Any], there: str, made: str
) -> None:
    folder = place / f"clash {there}"
    folder.mkdir()
    pq.write_table(pa.table(names | {there: [1] * N}), folder / "part.parquet")
    refused = pytest.raises(InputError, match=f"already has a column '{there}'")
    clash = Pipeline(
        str(place / "run"),
        Config.from_mapping({"embed": {"output_col": made}}),
        get_spark=lambda: spark,
        input_uri=str(folder),
    )
    with refused:
        clash.embed("clash")
    frame = spark.createDataFrame([(*[0.0] * len(COLUMNS), 1)], [*COLUMNS, there])
    model = IvisModel(read_model(str(place / "run")), outputCol=made)
    with refused:
        model.transform(frame)
    with refused:
        IvisEstimator(featureCols=list(COLUMNS), outputCol=made).fit(frame)


def test_two_columns_of_one_name_are_refused(spark: SparkSession, place: Path) -> None:
    frame = spark.range(3).selectExpr("id as x", "id as x", "id as y")
    with pytest.raises(InputError, match="several columns called 'x': rename or drop them"):
        IvisEstimator(featureCols=["y"]).fit(frame)
