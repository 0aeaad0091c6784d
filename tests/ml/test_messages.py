"""What Spark ML's users read: Params in messages, refusals before training, where a model is."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark import Config, EmbeddingEvaluator, IvisEstimator, IvisModel, Pipeline, storage
from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.errors import ArtifactError, ConfigError, InputError
from ivis_spark.ml import params
from ivis_spark.ml.evaluator import METRIC_NAMES
from ivis_spark.serving.folder import ModelFolder, write_model
from ivis_spark.spark.rows import columns, ingest, sparse
from ivis_spark.spark.rows.columns import Source

CLASSES = "sparse_categorical_crossentropy"
SCHEMA = T.StructType(
    [
        T.StructField("id", T.LongType()),
        T.StructField("features", T.ArrayType(T.FloatType())),
        T.StructField("label", T.StringType()),
    ]
)


def folder(classes: dict[str, Any] | None = None) -> ModelFolder:
    """A model without Keras's files, so that nothing of it needs TensorFlow."""
    dense = DenseNetwork((DenseLayer.of(np.ones((3, 2)), None, "linear"),)).to_bytes()
    serving = {"format": 1, "input_shape": [3], "n_outputs": 2, "features": ["features"], "classes": classes}
    files = {"dense.npz": dense, "head.npz": dense, "serving.json": json.dumps(serving).encode()}
    return ModelFolder({"config": {}, "inputs": {}}, {}, files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"featuresCol": "feature"}, r"^featuresCol='feature' is not in the table; did you mean features\?"),
        ({"featureCols": ["label"]}, r"'label' is string; it must be numeric\. Remove it from featureCols or"),
        ({"featuresCol": "label"}, r"Set several numeric columns with featureCols$"),
        ({"featuresCol": "a", "featureCols": ["b"]}, "^featuresCol='a' and featureCols='b' exclude each other"),
        ({"idCol": "idx"}, r"^idCol='idx' is not in the DataFrame; did you mean id\?"),
        ({"idCol": "Id"}, r"^idCol='Id' is not in the DataFrame; did you mean id\?"),
        (
            {"classCol": "c"},
            r"^classCol='c' needs a model trained on classes: train with labelCol and supervisionMetric=",
        ),
        ({"scoresCol": "s"}, r"^scoresCol='s' needs a model trained on labels: set labelCol and supervisionMetric"),
        ({"scoresCol": "s", "labelCol": "label"}, "^scoresCol='s' needs a model trained on labels"),
        (
            {"scoresCol": "Z", "outputCol": "z", "labelCol": "label", "supervisionMetric": CLASSES},
            "^two of the columns to be added are called 'Z': set outputCol, scoresCol or classCol to another",
        ),
        ({"outputCol": "Label"}, "^the table already has a column 'label': set outputCol"),
    ],
)
@pytest.mark.spark
def test_errors_before_training_name_params(spark: SparkSession, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        IvisEstimator(**options).transformSchema(SCHEMA)


def test_errors_of_values_name_params() -> None:
    with pytest.raises(ConfigError, match=r"^k=0 is out of range"):
        IvisEstimator(k=0)
    with pytest.raises(ConfigError, match=r"^embedInvalid='x' is not one of"):
        IvisModel(folder(), embedInvalid="x")
    with pytest.raises(ConfigError, match=r"^numRanks='x' must be a whole number"):
        IvisEstimator().setNumRanks("x")


def test_names_of_the_users_own_stay() -> None:
    with pytest.raises(InputError) as caught, params.naming_params():
        raise InputError(
            "file:///runs/train.model and 'data.label_col', column label_col: set --label-col or train.model"
        )
    assert str(caught.value) == "file:///runs/train.model and 'data.label_col', column label_col: set labelCol or model"


def test_documentation_of_params_names_params() -> None:
    names = {setting.name for setting in params.settings().values() if "_" in setting.name}
    for stage in (IvisEstimator(), IvisModel(folder()), EmbeddingEvaluator()):
        for param in stage.params:
            assert not names & set(re.findall(r"\w+", param.doc)), param


def test_data_frames_of_pandas_are_refused() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1.0]})
    for use in (IvisEstimator().fit, IvisModel(folder()).transform, EmbeddingEvaluator().evaluate):
        with pytest.raises(InputError, match=r"takes a DataFrame of Spark, not a pandas.DataFrame: .*createDataFrame"):
            use(frame)


@pytest.mark.spark
def test_messages_of_wide_tables_are_short(spark: SparkSession) -> None:
    wide = spark.range(3).select("id", *[F.lit(0).alias(f"px{place}") for place in range(784)])
    for use in (
        lambda: IvisEstimator(idCol="key").transformSchema(wide.schema),
        lambda: IvisEstimator(featuresCol="key").transformSchema(wide.schema),
        lambda: EmbeddingEvaluator(embeddingCol="key").evaluate(wide),
    ):
        with pytest.raises(InputError, match=r"; it has: id.*, px8.* and 775 more$"):
            use()


@pytest.mark.spark
def test_the_evaluator_says_how_to_name_features(spark: SparkSession) -> None:
    with pytest.raises(InputError, match=r"^featuresCol='features' .*: set it, or featureCols=.*; it has: z, a, b$"):
        EmbeddingEvaluator(embeddingCol="z").evaluate(spark.sql("SELECT array(1.0) z, 1 a, 2 b"))


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([3, 7], "bigint", [3, 7]),
        (["no", "yes"], "string", ["no", "yes"]),
        (["false", "true"], "boolean", [False, True]),
        (
            ["2026-01-01", "2026-01-02"],
            "date",
            [np.datetime64("2026-01-01").item(), np.datetime64("2026-01-02").item()],
        ),
    ],
)
def test_classes_have_the_type_of_the_label(values: list[Any], kind: str, expected: list[Any]) -> None:
    assert IvisModel(folder({"values": values, "type": kind})).classes == expected
    assert IvisModel(folder()).classes == []


def test_errors_say_where_models_are(tmp_path: Path) -> None:
    for look in (IvisModel.from_run, IvisModel.load):
        with pytest.raises(InputError, match=r"must be a path or URI as text, not None\. summary\.run_folder is None "):
            look(None)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=r"nowhere does not exist"):
        IvisModel.load(str(tmp_path / "nowhere"))
    with pytest.raises(ArtifactError, match=r"holds no model: pass the folder of a saved model, or of a run"):
        IvisModel.from_run(str(tmp_path))
    runs = storage.normalise_uri(str(tmp_path / "runs"))
    write_model(f"{runs}/run-1", folder())
    write_model(f"{runs}/run-2", folder())
    for look in (IvisModel.from_run, IvisModel.load):
        with pytest.raises(ArtifactError) as caught:
            look(runs)
        assert str(caught.value).endswith(f": IvisModel.from_run('{runs}/run-1'), IvisModel.from_run('{runs}/run-2')")
    assert IvisModel.from_run(f"{runs}/run-1").summary.loss == []
    with pytest.raises(ArtifactError, match=r"is a run folder, not a saved model: load it with IvisModel\.from_run\('"):
        IvisModel.load(f"{runs}/run-1")
    metadata = tmp_path / "estimator" / "metadata"
    metadata.mkdir(parents=True)
    (metadata / "part-00000").write_text(json.dumps({"class": "ivis_spark.ml.estimator.IvisEstimator"}))
    for look in (IvisModel.from_run, IvisModel.load):
        with pytest.raises(ArtifactError, match=r"holds a saved IvisEstimator: load it with IvisEstimator\.load"):
            look(str(tmp_path / "estimator"))


@pytest.mark.spark
@pytest.mark.parametrize("metric", ["trustworthiness", "knn_accuracy", "toy_metrics:kept_order"])
def test_the_evaluator_leaves_out_rows_with_nulls(spark: SparkSession, metric: str) -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    rows = [(Vectors.dense(x), Vectors.dense(x), float(x[0]), float(x[1]), 1) for x in X]
    nulls = [(Vectors.dense(5, 5), None, 1.0, 1.0, 1), (None, Vectors.dense(9, 9), 1.0, None, 1)]
    kinds = [VectorUDT(), VectorUDT(), T.DoubleType(), T.DoubleType(), T.IntegerType()]
    schema = T.StructType([T.StructField(name, kind) for name, kind in zip("xzaby", kinds, strict=True)])
    frame = spark.createDataFrame([*rows, *nulls], schema)
    evaluator = EmbeddingEvaluator(metricName=metric, featuresCol="x", embeddingCol="z", labelCol="y", k=3)
    assert evaluator.evaluate(frame) == evaluator.evaluate(frame, {evaluator.featureCols: ["a", "b"]}) == 1
    with pytest.raises(InputError, match=r"the DataFrame has 0 rows .*without nulls.*; at least 3 are needed"):
        evaluator.evaluate(frame.where("z IS NULL"))


@pytest.mark.spark
def test_vectors_that_are_null_become_null_arrays(spark: SparkSession) -> None:
    frame = spark.createDataFrame([(Vectors.dense(1, 2),), (None,)], T.StructType([T.StructField("x", VectorUDT())]))
    found = frame.select(columns.as_array(frame, ["x"]).alias("x"), F.lit(1)).collect()
    assert [row["x"] for row in found] == [[1.0, 2.0], None]


def test_all_metrics_are_explained() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/explanation/metrics.md").read_text()
    assert [name for name in METRIC_NAMES if f"`{name}" not in text] == []


@pytest.mark.spark
def test_a_collapsed_embedding_is_reported(spark: SparkSession, caplog: pytest.LogCaptureFixture) -> None:
    frame = spark.range(30).selectExpr("array(id, id * id) AS features", "array(0.5, 1.0) AS embedding")
    assert EmbeddingEvaluator(metricName="continuity", k=3).evaluate(frame) == pytest.approx(0.5, abs=0.03)
    assert "the embedding collapsed: all rows" in caplog.text


def test_saving_needs_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    monkeypatch.setattr(SparkSession.Builder, "getOrCreate", lambda _: pytest.fail("a session"))
    for stage in (
        IvisModel(folder(), outputCol="z"),
        IvisEstimator(outputCol="z"),
        EmbeddingEvaluator(embeddingCol="z"),
    ):
        path = str(tmp_path / type(stage).__name__)
        stage.save(path)
        with pytest.raises(InputError, match=r"exists; save with write\(\).overwrite"):
            stage.save(path)
        stage.write().overwrite().save(path)
        loaded = type(stage).load(path)
        assert loaded.uid == stage.uid and loaded.extractParamMap() == stage.extractParamMap()
        with pytest.raises(InputError, match=r"is not a saved .*; it holds .*Choose another path"):
            stage.write().overwrite().save(str(tmp_path))


@pytest.mark.spark
@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"preset": "ivis", "components": 10},
            r"^param map 2 of 2 \(.*components=10\): components=10 keeps .*, not metric=angular \(of preset=ivis\):",
        ),
        ({"featuresCol": "x"}, r"^param map 2 of 2 \(featuresCol='x'\): featuresCol='x' is not in the table; it has"),
        ({"k": 0}, r"^param map 2 of 2 \(k=0\): k=0 is out of range: it must be at least 1"),
        ({"k": 40}, r"^param map 2 of 2 \(k=40\): k=40 needs at least 42 rows.* the input has 40\. Pass k=38 or less"),
    ],
)
def test_all_param_maps_are_checked_before_the_first_fit(
    spark: SparkSession, params: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IvisEstimator, "_fit", lambda *_: pytest.fail("a fit began"))
    frame = spark.range(40).selectExpr("id", "array(id, id * id) AS features")
    estimator = IvisEstimator(idCol="id")
    grid = [{estimator.k: 5}, {estimator.getParam(name): value for name, value in params.items()}]
    with pytest.raises((ConfigError, InputError), match=message):
        estimator.fit(frame, grid)


@pytest.mark.spark
def test_streams_are_refused_where_they_cannot_be_used(spark: SparkSession) -> None:
    stream = spark.readStream.format("rate").load().selectExpr("array(value) AS features", "array(value) AS embedding")
    for use in (IvisEstimator().fit, EmbeddingEvaluator().evaluate):
        with pytest.raises(InputError, match=r"takes a batch table, not a stream: write rows of"):
            use(stream)
    with pytest.raises(InputError, match=r"^Pipeline\(source=\.\.\.\) takes a batch table, not a stream"):
        Pipeline("run", Config(), get_spark=lambda: spark, source=stream)


def test_other_names_of_spark_are_understood() -> None:
    with pytest.raises(ConfigError, match=r"^IvisEstimator has no seed; did you mean randomState\?$"):
        IvisEstimator(seed=1)
    assert IvisEstimator(unlabelled=10).getUnlabelled() == "10"
    assert IvisEstimator(unlabelled=np.int64(-1)).config().data.unlabelled == "-1"
    with pytest.raises(ConfigError, match="unlabelled=True"):
        IvisEstimator(unlabelled=True)


def test_advice_of_logs_names_params(caplog: pytest.LogCaptureFixture) -> None:
    source = Source(None, None, 2_000, ("features",), sparse=True)  # type: ignore[arg-type]
    with params.naming_params():
        ingest._components(source, Config(data={"components": None}).data)
    assert ", 8 kB per row: components=50 keeps them sparse" in caplog.text
    caplog.clear()
    ingest._components(dataclasses.replace(source, width=64), Config(data={"components": None}).data)
    assert not caplog.text


@pytest.mark.spark
def test_vectors_are_sparse_by_what_they_hold(spark: SparkSession) -> None:
    schema = T.StructType([T.StructField("x", VectorUDT())])
    dense = [Vectors.sparse(4, [1], [1.0]), *[Vectors.dense(1, 2, 3, 4)] * 5]
    for vectors, expected in ((dense, False), ([Vectors.sparse(4, [1], [1.0])] * 3, True)):
        frame = spark.createDataFrame([(vector,) for vector in vectors], schema).coalesce(1)
        assert sparse.width_of_vectors(frame, F.col("x"), "x") == (4, expected)


@pytest.mark.spark
def test_a_fit_that_fails_at_once_leaves_no_empty_folder(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.range(8).selectExpr("id", "array(id, id * id) AS features")
    with pytest.raises(InputError, match=r"^k=7 needs at least 9 rows"):
        IvisEstimator(idCol="id", k=7, runFolder=str(tmp_path)).fit(frame)
    assert list(tmp_path.iterdir()) == []
