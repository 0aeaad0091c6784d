"""Before and after other stages of Spark ML, and in sessions that were not made for this package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml.clustering import KMeans
from pyspark.ml.linalg import DenseVector
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark import EmbeddingEvaluator, IvisEstimator, IvisModel
from ivis_spark.errors import ConfigError, DependencyError, InputError
from ivis_spark.spark import workers

pytestmark = [pytest.mark.spark, pytest.mark.tf, pytest.mark.slow]

FAST = {"k": 5, "epochs": 1, "positivesPerAnchor": 1, "recallSample": 50}


def test_arrays_and_vectors_hold_the_same(spark: SparkSession, fitted: IvisModel, digits_frame: DataFrame) -> None:
    frame = digits_frame.limit(3).unionByName(
        spark.createDataFrame([(-1, None, 0, "bad")], digits_frame.schema)  # stays null in both
    )
    options = {"embedInvalid": "null", "scoresCol": "scores"}
    found = {}
    for kind in ("vector", "array"):
        model = IvisModel(fitted.to_folder(), outputType=kind, **options)
        embedded = model.transform(frame)
        assert embedded.schema == model.transformSchema(frame.schema)
        found[kind] = embedded.orderBy("id").collect()
    for vector, array in zip(found["vector"], found["array"], strict=True):
        for name in ("embedding", "scores"):
            if array["id"] < 0:
                assert vector[name] is array[name] is None
            else:
                assert isinstance(vector[name], DenseVector)
                np.testing.assert_array_equal(vector[name].toArray(), array[name])
    array = IvisModel(fitted.to_folder(), outputType="array").transform(digits_frame)
    assert array.schema["embedding"].dataType == T.ArrayType(T.FloatType(), containsNull=False)
    assert KMeans(featuresCol="embedding", k=2, initSteps=1, maxIter=2).fit(array).summary.k == 2
    with pytest.raises(ConfigError, match="remove precision=float16"):
        IvisModel(fitted.to_folder(), outputType="vector", precision="float16").transform(digits_frame)
    with pytest.raises(ConfigError, match="outputType='list' is not one of: vector, array"):
        IvisModel(fitted.to_folder(), outputType="list")


def test_predicted_classes_have_the_type_of_the_label(
    spark: SparkSession, fitted: IvisModel, digits_frame: DataFrame, digits: Any, tmp_path: Path
) -> None:
    model = fitted.copy().setClassCol("class").setScoresCol("scores")
    assert model.getClassCol() == "class"
    model.save(str(tmp_path / "model"))
    model = IvisModel.load(str(tmp_path / "model"))
    found = model.transform(digits_frame)
    assert found.schema == model.transformSchema(digits_frame.schema)
    assert found.schema["class"].dataType == T.IntegerType()  # as the label
    assert all(row["class"] == row["scores"].argmax() for row in found.select("class", "scores").collect())
    estimator = IvisEstimator(labelCol="name", classCol="class", supervisionMetric="sparse_categorical_crossentropy")
    assert estimator.transformSchema(digits_frame.schema)["class"].dataType == T.StringType()
    with pytest.raises(InputError, match="needs a model trained on classes"):
        IvisEstimator(classCol="class").fit(digits_frame)
    with pytest.raises(InputError, match="needs a model trained on classes"):
        IvisEstimator(labelCol="label", supervisionMetric="mae", classCol="class").fit(digits_frame)


def test_classes_go_to_the_local_model_and_back(spark: SparkSession, digits: Any) -> None:
    from ivis_spark import Ivis

    X, y = digits
    frame = spark.createDataFrame([(x.tolist(),) for x in X[:20]], "features array<float>")
    days = np.datetime64("2026-01-01") + y
    for labels, kind in ((np.char.add("digit ", y.astype(str)), "string"), (y > 4, "boolean"), (days, "date")):
        local = Ivis(k=5, epochs=1, verbose=0).fit(X, labels)
        model = IvisModel.from_local(local, featuresCol="features", classCol="class")
        found = model.transform(frame)
        assert found.schema == model.transformSchema(frame.schema)
        assert found.schema["class"].dataType.simpleString() == kind
        expected = local.classes_[local.score_samples(X[:20]).argmax(axis=1)]
        np.testing.assert_array_equal([row["class"] for row in found.collect()], expected.tolist())
        np.testing.assert_array_equal(model.to_local().classes_, local.classes_)


def test_wrong_columns_are_named_before_anything_runs(digits_frame: DataFrame) -> None:
    with pytest.raises(InputError, match="idCol='key' is not in the DataFrame; it has: id, features"):
        IvisEstimator(idCol="key").fit(digits_frame)
    with pytest.raises(InputError, match="labelCol='class' is not in"):
        IvisEstimator(labelCol="class").fit(digits_frame)
    with pytest.raises(ConfigError, match="trains on labels: set labelCol"):
        IvisEstimator(supervisionMetric="mae").fit(digits_frame)
    with pytest.raises(InputError, match="already has a column 'Embedding'"):
        IvisEstimator().fit(digits_frame.withColumn("Embedding", F.lit(1)))


def test_evaluator_of_several_columns(spark: SparkSession) -> None:
    rng = np.random.default_rng(0)
    rows = [(*map(float, x), x.tolist()) for x in rng.normal(size=(60, 2))]
    frame = spark.createDataFrame(rows, "`a.b` double, b double, z array<double>")
    evaluator = EmbeddingEvaluator(featureCols=["a.b", "b"], embeddingCol="z", k=3, seed=-7)
    assert evaluator.evaluate(frame) == pytest.approx(1)
    with pytest.raises(InputError, match="featureCols='c' is not in the DataFrame"):
        evaluator.setFeatureCols(["b", "c"]).evaluate(frame)


def test_the_evaluator_measures_against_what_the_embedding_was_made_from(
    spark: SparkSession, digits: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    X, y = digits
    rows = [(i, int(label), *map(float, x)) for i, (x, label) in enumerate(zip(X, y, strict=True))]
    frame = spark.createDataFrame(rows, ["id", "digit", *[f"px{place}" for place in range(64)]])
    estimator = IvisEstimator(idCol="id", labelCol="digit", outputCol="z", outputType="array", **FAST)
    embedded = estimator.fit(frame).transform(frame)
    assert "labelCol='digit' only keeps that column out of the features" in caplog.text
    assert embedded.schema == estimator.transformSchema(frame.schema)
    embedded.write.parquet(str(tmp_path / "z"))
    evaluator = EmbeddingEvaluator(embeddingCol="z", k=5)
    pixels = evaluator.copy({evaluator.featureCols: [f"px{place}" for place in range(64)]})
    assert evaluator.evaluate(spark.read.parquet(str(tmp_path / "z"))) == pixels.evaluate(embedded) > 0.5
    with pytest.raises(InputError, match=r"^featuresCol='features' is not in the DataFrame: set it, or featureCols="):
        evaluator.evaluate(embedded.drop("px0"))


def test_names_go_to_the_local_model_and_back(spark: SparkSession, digits: Any) -> None:
    from ivis_spark import Ivis

    pd = pytest.importorskip("pandas")
    names = [f"x{i}" for i in range(64)]
    frame = pd.DataFrame(digits[0], columns=names)
    local = Ivis(k=5, epochs=1, verbose=0).fit(frame)
    model = IvisModel.from_local(local)
    assert model.getFeatureCols() == names
    table = spark.createDataFrame(frame[names[::-1]].assign(id=range(200)))
    found = [row["embedding"] for row in model.transform(table).orderBy("id").collect()]
    np.testing.assert_allclose(np.array(found), local.transform(frame), atol=1e-5)
    np.testing.assert_allclose(model.to_local().transform(frame[names[::-1]]), local.transform(frame), atol=1e-5)


def test_workers_without_the_package_are_told_how_to_get_it(
    spark: SparkSession, fitted: IvisModel, digits_frame: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that run a Python without any package but PySpark."""
    lacking, only_pyspark = tmp_path / "python", "$(echo $PYTHONPATH | tr : '\\n' | grep 'zip$' | paste -sd :)"
    lacking.write_text(f'#!/bin/sh\nexport PYTHONPATH="{only_pyspark}"\nexec {sys.base_prefix}/bin/python3 "$@"\n')
    lacking.chmod(0o755)
    monkeypatch.setattr(spark.sparkContext, "pythonExec", str(lacking))
    monkeypatch.setattr(workers, "_checked", set())
    with pytest.raises(
        DependencyError, match=r"Python workers run .*lacks the package .*PYSPARK_PYTHON.*spark.archives"
    ):
        fitted.transform(digits_frame).collect()
