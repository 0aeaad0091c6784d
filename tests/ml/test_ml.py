"""The Spark ML estimator and model: Params, Pipelines, saving, tuning, and the way to `Ivis` and back."""

from __future__ import annotations

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver_results import results_below
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.clustering import KMeans
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from runs import published

from ivis_spark import EmbeddingEvaluator, IvisEstimator, IvisModel, config, embed_udf
from ivis_spark.errors import ArtifactError, ConfigError, InputError
from ivis_spark.spark.causes import task_errors

FAST = {"k": 5, "epochs": 2, "positivesPerAnchor": 2, "embeddingDims": 2, "recallSample": 50}

pytestmark = [pytest.mark.spark, pytest.mark.tf, pytest.mark.slow]


def points(frame: DataFrame, column: str = "embedding") -> np.ndarray:
    return np.array([row[column] for row in sorted(frame.select("id", column).collect(), key=itemgetter("id"))])


def test_params_are_those_of_the_configuration() -> None:
    estimator = IvisEstimator(k=7, embeddingDims=3)
    assert estimator.getK() == 7 and estimator.getEmbeddingDims() == 3
    assert estimator.getOrDefault("learningRate") == config.Config().train.learning_rate
    assert estimator.getOrDefault("neighboursBackend") == config.NeighboursConfig.backend
    doc = {f.name: f.metadata["doc"] for f in config.NeighboursConfig.__dataclass_fields__.values()}["leaf_rows"]
    assert f"leafRows: {doc} (default: {config.NeighboursConfig.leaf_rows})" in estimator.explainParams()
    assert estimator.config().neighbours.k == 7 and estimator.config().train.embedding_dims == 3
    assert estimator.setBatchSize(np.int64(64)).config().train.batch_size == 64
    assert IvisEstimator(k=7, preset="ivis").config() == config.load_config(None, ["neighbours.k=7", "preset=ivis"])
    assert estimator.setFeatureCols(["a", "b"]).config().data.feature_cols == ("a", "b")
    copied = estimator.copy({estimator.k: 9})
    assert (copied.getK(), estimator.getK(), copied.uid) == (9, 7, estimator.uid)


def test_params_refuse_what_the_configuration_refuses() -> None:
    with pytest.raises(ConfigError, match=r"^k=0 is out of range: it must be at least 1"):
        IvisEstimator(k=0)
    with pytest.raises(ConfigError, match=r"^model='resnet' is not one of: szubert"):
        IvisEstimator().setModel("resnet")
    with pytest.raises(ConfigError, match=r"IvisEstimator has no kk; did you mean k\?"):
        IvisEstimator(kk=3)
    with pytest.raises(ConfigError, match="exclude each other"):
        IvisEstimator(featuresCol="a", featureCols=["b"]).config()


def test_estimator_is_saved_and_read(tmp_path: Path, spark: SparkSession) -> None:
    estimator = IvisEstimator(k=7, featureCols=["a", "b"], runFolder="runs")
    estimator.save(str(tmp_path / "estimator"))
    loaded = IvisEstimator.load(str(tmp_path / "estimator"))
    assert loaded.uid == estimator.uid and loaded.config() == estimator.config()
    assert loaded.getRunFolder() == "runs" and not loaded.isSet("embeddingDims")


def test_transform_appends_and_keeps(fitted: IvisModel, digits_frame: DataFrame, digits: Any) -> None:
    embedded = fitted.transform(digits_frame)
    assert embedded.columns == ["id", "features", "label", "name", "embedding"]
    assert embedded.schema == fitted.transformSchema(digits_frame.schema)
    rows = embedded.orderBy("id").collect()
    np.testing.assert_array_equal([row["features"] for row in rows], digits[0])
    assert [row["name"] for row in rows] == [f"row {i}" for i in range(200)]
    np.testing.assert_allclose(points(embedded), fitted.to_encoder()(digits[0]), atol=1e-5)


def test_keras_encoder_and_local_agree(fitted: IvisModel, digits_frame: DataFrame, digits: Any) -> None:
    found = points(fitted.transform(digits_frame))
    np.testing.assert_allclose(fitted.encoder.predict(digits[0], verbose=0), found, atol=1e-5)
    local = fitted.to_local()
    np.testing.assert_allclose(local.transform(digits[0]), found, atol=1e-5)
    scores = points(fitted.copy({fitted.scoresCol: "scores"}).transform(digits_frame), "scores")
    np.testing.assert_allclose(local.score_samples(digits[0]), scores, atol=1e-5)
    assert scores.shape == (200, 10)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    back = IvisModel.from_local(local)
    assert back.to_folder().scaler() is not None
    np.testing.assert_allclose(points(back.transform(digits_frame)), found, atol=1e-5)
    assert back.summary.loss == fitted.summary.loss
    assert back.classes == fitted.classes == list(range(10))
    settings = local.get_params()
    assert {name: settings[name] for name in ("k", "epochs", "random_state", "knn_distance_metric", "preset")} == {
        "k": 5,
        "epochs": 2,
        "random_state": 7,
        "knn_distance_metric": "euclidean",
        "preset": "ivis",
    }
    assert settings["distance"] == "infonce" and back.to_local().get_params() == settings
    before = np.array(local.loss_history_)
    with pytest.raises(ConfigError, match="embedding_dims from 2 to 3 changed since"):
        local.set_params(embedding_dims=3).fit(digits[0], digits[1])
    local.set_params(embedding_dims=2, epochs=1, verbose=0).fit(digits[0], digits[1])
    assert len(local.loss_history_) == 3 and local.loss_history_[2] < before[0]


def test_settings(fitted: IvisModel, digits_frame: DataFrame, tmp_path: Path) -> None:
    wanted = {**FAST, "preset": "fast", "randomState": 7, "scaling": "minmax", "distance": "infonce", "anchors": 200}
    assert {name: fitted.settings.get(name) for name in wanted} == wanted
    assert isinstance(fitted.settings["batchSize"], int)  # auto, resolved
    assert fitted.settings["supervisionMetric"] == "sparse_categorical_crossentropy"
    back = IvisModel.from_local(fitted.to_local()).settings
    assert {name: back.get(name) for name in ("k", "epochs", "embeddingDims", "randomState")} == {
        name: wanted[name] for name in ("k", "epochs", "embeddingDims", "randomState")
    }


def test_summary(fitted: IvisModel) -> None:
    summary = fitted.summary
    assert len(summary.loss) == summary.epochs == 2 and summary.rows == 200
    assert summary.recall is not None and 0.9 < summary.recall["value"] <= 1
    assert set(summary.seconds) == {"rows", "neighbours", "triplets", "model"} and summary.run_folder is None


@pytest.mark.parametrize("kind", ["double", "integer", "dense", "sparse", "columns"])
def test_features_of_every_kind(
    spark: SparkSession, fitted: IvisModel, digits_frame: DataFrame, digits: Any, kind: str
) -> None:
    X = digits[0][:40]
    expected = fitted.to_encoder()(X)
    model = fitted.copy()
    if kind in ("double", "integer"):
        frame = digits_frame.where("id < 40").withColumn(
            "features", F.col("features").cast("array<double>" if kind == "double" else "array<int>")
        )
    elif kind == "columns":
        names = [f"x{i}" for i in range(64)]
        frame = spark.createDataFrame([(i, *map(float, row)) for i, row in enumerate(X)], ["id", *names])
        model = IvisModel(fitted.to_folder(), featuresCol=None, featureCols=names)
    else:
        make = (
            Vectors.dense
            if kind == "dense"
            else lambda row: Vectors.sparse(64, {int(j): row[j] for j in row.nonzero()[0]})
        )
        vectors = [make(row.astype(float)) for row in X[:-1]] + [Vectors.dense(X[-1].astype(float))]
        frame = spark.createDataFrame(list(enumerate(vectors)), ["id", "features"])
    embedded = model.transform(frame)
    np.testing.assert_allclose(points(embedded), expected, atol=1e-5)
    if kind in ("dense", "sparse"):
        assert [row["features"] for row in embedded.orderBy("id").collect()] == vectors


def test_policies_count(spark: SparkSession, fitted: IvisModel, digits: Any) -> None:
    bad = digits[0][1].tolist()
    rows = [(0, digits[0][0].tolist()), (1, None), (2, [None, *bad[1:]]), (3, [float("nan"), *bad[1:]])]
    frame = spark.createDataFrame([*rows, (4, [float("inf"), *bad[1:]])], "id long, features array<float>")
    null = IvisModel(fitted.to_folder(), embedInvalid="null")
    found = {row["id"]: row["embedding"] for row in null.transform(frame).collect()}
    assert [key for key, value in found.items() if value is not None] == [0] and len(found) == 5
    assert null.invalid_rows == {"null": 2, "nan": 1, "infinite": 1, "indices": 0}
    drop = IvisModel(fitted.to_folder(), embedInvalid="drop")
    assert [row["id"] for row in drop.transform(frame.repartition(4)).collect()] == [0]
    assert drop.invalid_rows == {"null": 2, "nan": 1, "infinite": 1, "indices": 0}
    with pytest.raises(InputError, match=r"rows of a batch cannot be embedded .* in column 'features'"), task_errors():
        fitted.transform(frame).collect()
    short = spark.createDataFrame([(0, bad[:63])], "id long, features array<float>")
    with (
        pytest.raises(InputError, match="a row has 63 features in column 'features'; the model was trained on 64"),
        task_errors(),
    ):
        null.transform(short).collect()


def test_schema_errors(spark: SparkSession, fitted: IvisModel, digits_frame: DataFrame) -> None:
    with pytest.raises(InputError, match=r"featuresCol='features' is not in the table; it has: id \(bigint\)"):
        fitted.transform(digits_frame.drop("features"))
    with pytest.raises(InputError, match=r"already has a column .* set outputCol"):
        fitted.transform(digits_frame.withColumn("embedding", F.lit(1)))
    with pytest.raises(InputError, match="features column 'name' is string"):
        IvisEstimator(featuresCol="name").fit(digits_frame)


def test_no_rows_and_empty_partitions(fitted: IvisModel, digits_frame: DataFrame) -> None:
    assert fitted.transform(digits_frame.limit(0)).collect() == []
    assert fitted.transform(digits_frame.where("id < 2").repartition(7)).count() == 2


def test_float16(fitted: IvisModel, digits_frame: DataFrame, digits: Any) -> None:
    half = IvisModel(fitted.to_folder(), precision="float16").transform(digits_frame)
    found = np.stack([np.frombuffer(row["embedding"], "<f2") for row in half.orderBy("id").collect()])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, fitted.to_encoder()(digits[0]), atol=2e-3, rtol=2e-3)


def test_udf_and_sql(spark: SparkSession, fitted: IvisModel, digits_frame: DataFrame) -> None:
    spark.udf.register("ivis_embed", embed_udf(fitted))
    digits_frame.createOrReplaceTempView("digits")
    found = points(spark.sql("SELECT id, ivis_embed(features) AS embedding FROM digits"))
    np.testing.assert_allclose(found, points(fitted.transform(digits_frame)), atol=1e-5)
    spark.sql("DROP TEMPORARY FUNCTION ivis_embed")


def test_model_is_saved_and_read(fitted: IvisModel, digits_frame: DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "model"
    renamed = fitted.copy({fitted.outputCol: "z"})
    renamed.save(str(path))
    loaded = IvisModel.load(str(path))
    assert loaded.uid == fitted.uid and loaded.summary == fitted.summary and loaded.settings == fitted.settings
    assert loaded.getOutputCol() == "z"
    np.testing.assert_array_equal(
        points(loaded.transform(digits_frame), "z"), points(renamed.transform(digits_frame), "z")
    )
    with pytest.raises(InputError, match="exists; save with"):
        fitted.save(str(path))
    fitted.write().overwrite().save(str(path))
    assert IvisModel.load(str(path)).getOutputCol() == "embedding"
    assert not [file for file in path.rglob("*") if file.suffix in (".pkl", ".pickle", ".dill")]


def test_altered_models_are_refused(fitted: IvisModel, tmp_path: Path) -> None:
    path = tmp_path / "model"
    fitted.save(str(path))
    for name in ("dense.npz", "head.npz", "scaler.npz", "encoder.keras", "model.json", "serving.json"):
        file = published(path, "model") / name
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=rf"{name} was modified"):
            IvisModel.load(str(path))
        file.unlink()
        with pytest.raises(ArtifactError, match=rf"{name} is missing"):
            IvisModel.load(str(path))
        file.write_bytes(content)
    manifest = path / "model" / "manifest.json"
    newer = json.loads(manifest.read_text()) | {"format_version": 99}
    manifest.write_text(json.dumps(newer))
    with pytest.raises(ArtifactError, match="has format 99; this version reads up to 2: update ivis_spark"):
        IvisModel.load(str(path))


def test_pipeline(digits_frame: DataFrame, tmp_path: Path) -> None:
    """Behind one stage and before others, with vectors; its first two, saved, give the same points."""
    names = [f"x{i}" for i in range(4)]
    columns = [F.col("features")[20 + i].alias(name) for i, name in enumerate(names)]
    frame = digits_frame.select("id", "label", *columns)
    stages = [
        VectorAssembler(inputCols=names, outputCol="vector"),
        IvisEstimator(featuresCol="vector", idCol="id", labelCol="label", outputCol="z", **FAST),
        VectorAssembler(inputCols=["z", "id"], outputCol="more"),
        LogisticRegression(featuresCol="more", predictionCol="class", maxIter=2),
        KMeans(featuresCol="z", predictionCol="cluster", k=3, seed=1, initSteps=1, maxIter=2),
    ]
    model = Pipeline(stages=stages).fit(frame)
    found = model.transform(frame)
    assert isinstance(found.schema["z"].dataType, VectorUDT)
    assert {"class", "cluster"} <= set(found.columns) and found.count() == 200
    PipelineModel(model.stages[:2]).save(str(tmp_path / "pipeline"))
    loaded = PipelineModel.load(str(tmp_path / "pipeline")).transform(frame)
    assert loaded.columns == ["id", "label", *names, "vector", "z"]
    np.testing.assert_array_equal(points(loaded, "z"), points(found, "z"))


def test_fit_with_param_maps_and_a_run_folder(digits_frame: DataFrame, tmp_path: Path) -> None:
    estimator = IvisEstimator(idCol="id", runFolder=str(tmp_path), **FAST)
    two, three = estimator.fit(digits_frame, [{estimator.embeddingDims: 2}, {estimator.embeddingDims: 3}])
    assert [model.to_encoder().network.n_outputs for model in (two, three)] == [2, 3]
    runs = sorted(tmp_path.glob("run-*"))
    assert len(runs) == 2 and two.summary.run_folder != three.summary.run_folder
    stamps = [run.joinpath("model/manifest.json").stat().st_mtime_ns for run in runs]
    again = estimator.fit(digits_frame)
    assert again.summary == two.summary
    assert stamps == [run.joinpath("model/manifest.json").stat().st_mtime_ns for run in runs]
    from_run = IvisModel.from_run(two.summary.run_folder)
    np.testing.assert_array_equal(points(from_run.transform(digits_frame)), points(two.transform(digits_frame)))


def test_tuning(digits_frame: DataFrame) -> None:
    estimator = IvisEstimator(idCol="id", **FAST)
    grid = ParamGridBuilder().addGrid(estimator.embeddingDims, [1, 4]).build()
    evaluator = EmbeddingEvaluator(metricName="trustworthiness", k=5)
    split = TrainValidationSplit(estimator=estimator, estimatorParamMaps=grid, evaluator=evaluator, trainRatio=0.6)
    tuned = split.fit(digits_frame)
    assert len(tuned.validationMetrics) == 2 and all(0 < value <= 1 for value in tuned.validationMetrics)
    best = grid[int(np.argmax(tuned.validationMetrics))][estimator.embeddingDims]
    assert tuned.bestModel.to_encoder().network.n_outputs == best == tuned.bestModel.settings["embeddingDims"]


def test_evaluator(spark: SparkSession, tmp_path: Path) -> None:
    """An embedding that is the features keeps everything; a random one nothing."""
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(60, 3)) + 20 * i for i in range(3)])
    Z = rng.normal(size=(180, 2))
    rows = [(x.tolist(), x.tolist(), z.tolist(), i // 60) for i, (x, z) in enumerate(zip(X, Z, strict=True))]
    frame = spark.createDataFrame(rows, "features array<double>, same array<double>, noise array<double>, label int")
    unlabelled = F.when(F.rand(0) < 0.3, None).when(F.rand(1) < 0.3, float("nan")).otherwise(F.col("label"))
    partly = frame.withColumn("label", unlabelled).cache()
    for name in ("trustworthiness", "continuity", "knn_recall", "random_triplet_accuracy", "distance_correlation"):
        evaluator = EmbeddingEvaluator(metricName=name, embeddingCol="same")
        assert evaluator.isLargerBetter() and evaluator.evaluate(frame) == pytest.approx(1)
        assert evaluator.evaluate(frame, {evaluator.embeddingCol: "noise"}) < 0.6
    for name in ("knn_accuracy", "linear_svm_accuracy", "centroid_correlation"):
        assert EmbeddingEvaluator(metricName=name, embeddingCol="same").evaluate(frame) == pytest.approx(1)
        assert EmbeddingEvaluator(metricName=name, embeddingCol="same").evaluate(partly) == pytest.approx(1)
    with pytest.raises(InputError, match="0 rows with embedding, features and a label without nulls; at least 3"):
        EmbeddingEvaluator(metricName="knn_accuracy", embeddingCol="same").evaluate(partly.where("label IS NULL"))
    with pytest.raises(InputError, match="labelCol='y' is not in the DataFrame; it has: features, same"):
        EmbeddingEvaluator(metricName="knn_accuracy", embeddingCol="same", labelCol="y").evaluate(frame)
    with pytest.raises(ConfigError, match="metricName='nope' is not one of: trustworthiness"):
        EmbeddingEvaluator(metricName="nope", embeddingCol="same").evaluate(frame)
    assert EmbeddingEvaluator(metricName="toy_metrics:kept_order", embeddingCol="same").evaluate(frame) == 1
    EmbeddingEvaluator(k=3).save(str(tmp_path / "e"))
    assert EmbeddingEvaluator.load(str(tmp_path / "e")).getK() == 3


def test_partitions_do_not_add_to_what_the_evaluator_takes(spark: SparkSession) -> None:
    """A row is 100 random numbers, twice: 30 rows each of 30 partitions are 1.4 MB, and 30 rows 48 KB."""
    noise = F.array(*[F.rand(seed) for seed in range(100)])
    frame = spark.range(0, 900, 1, 30).select(noise.alias("features"))
    evaluator = EmbeddingEvaluator(embeddingCol="features", k=3, sampleRows=30)
    with results_below(spark, "400k"):
        assert evaluator.evaluate(frame) == 1


def test_streaming_is_exactly_once(spark: SparkSession, fitted: IvisModel, digits: Any, tmp_path: Path) -> None:
    """Files that come while the query stands, and a query that is started again, give each row once."""
    source, sink = tmp_path / "in", tmp_path / "out"
    schema = "id long, features array<float>"

    def put(first: int) -> None:
        rows = [(i, digits[0][i].tolist()) for i in range(first, first + 20)]
        spark.createDataFrame(rows, schema).coalesce(1).write.mode("append").parquet(str(source))

    def run() -> None:
        stream = spark.readStream.schema(schema).option("maxFilesPerTrigger", 1).parquet(str(source))
        writer = (
            fitted.transform(stream).writeStream.format("parquet").option("checkpointLocation", str(tmp_path / "c"))
        )
        query = writer.trigger(availableNow=True).start(str(sink))
        query.awaitTermination(120)
        assert query.exception() is None

    put(0)
    put(20)
    run()
    put(40)
    run()
    run()
    found = spark.read.parquet(str(sink))
    assert sorted(row["id"] for row in found.select("id").collect()) == list(range(60))
    np.testing.assert_allclose(points(found), fitted.to_encoder()(digits[0][:60]), atol=1e-5)


def test_convolutions_embed_on_executors(spark: SparkSession, digits: Any) -> None:
    import keras

    from ivis_spark import Ivis

    image = [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
    local = Ivis(verbose=0)
    local.encoder_ = keras.Sequential(image)
    model = IvisModel.from_local(local)
    rows = [(i, x.tolist()) for i, x in enumerate(digits[0])]
    frame = spark.createDataFrame(rows, "id long, features array<float>").coalesce(1)  # one worker
    expected = local.encoder_.predict(digits[0].reshape(-1, 8, 8, 1), verbose=0)
    np.testing.assert_allclose(points(model.transform(frame)), expected, atol=1e-3)
