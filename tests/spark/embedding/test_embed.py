"""Embedding tables: the numbers of the NumPy encoder in every form, clear errors for rows that cannot be embedded."""

from __future__ import annotations

import decimal
import math
from typing import Any

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import InputError
from ivis_spark.spark.causes import task_errors
from ivis_spark.spark.embedding.embed import Encoder, embed_frame
from ivis_spark.spark.embedding.udf import embed_udf, read_struct

pytestmark = pytest.mark.spark

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(57, 4)) * 10).astype(np.float32)
KERNELS = RNG.normal(size=(4, 5)).astype(np.float32), RNG.normal(size=(5, 2)).astype(np.float32)
BIASES = RNG.normal(size=5).astype(np.float32), RNG.normal(size=2).astype(np.float32)
WRONG_WIDTH = r"^a row has 3 features in column 'features'; the model was trained on 4"
SCALER = Scaler("minmax", X.min(axis=0), 1 / (X.max(axis=0) - X.min(axis=0)))


@pytest.fixture
def encoder() -> Encoder:
    layers = (DenseLayer(KERNELS[0], BIASES[0], "relu"), DenseLayer(KERNELS[1], BIASES[1], "linear"))
    return Encoder(DenseNetwork(layers), SCALER)


def by_hand(rows: np.ndarray) -> np.ndarray:
    """The same network in plain float64."""
    scaled = (rows.astype(np.float64) - SCALER.offset) * SCALER.factor
    return np.maximum(scaled @ KERNELS[0] + BIASES[0], 0) @ KERNELS[1] + BIASES[1]


def table(spark: SparkSession, rows: list[Any], kind: str = "array<float>") -> DataFrame:
    return spark.createDataFrame(list(enumerate(rows)), f"id long, features {kind}")


def embeddings(frame: DataFrame) -> np.ndarray:
    return np.array([row["embedding"] for row in frame.orderBy("id").collect()])


def test_encoder_by_hand(encoder: Encoder) -> None:
    np.testing.assert_allclose(encoder(X), by_hand(X), rtol=1e-4, atol=1e-5)
    assert encoder(X[:0]).shape == (0, 2) and encoder(X[:0]).dtype == np.float32
    scaled = Encoder(encoder.network, None)
    np.testing.assert_allclose(scaled(SCALER.transform(X)), by_hand(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_frame_gives_the_encoders_numbers(spark: SparkSession, encoder: Encoder, packed: bool) -> None:
    rows = [bytearray(row.tobytes()) for row in X] if packed else X.tolist()
    frame = table(spark, rows, "binary" if packed else "array<float>").repartition(5)
    embedded = embed_frame(frame, encoder, invalid="error")
    assert embedded.schema.simpleString() == "struct<id:bigint,embedding:array<float>>"
    np.testing.assert_allclose(embeddings(embedded), encoder(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("records", [1, 10])
def test_frame_in_batches_of_any_size(spark: SparkSession, encoder: Encoder, records: int) -> None:
    setting = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(setting)
    spark.conf.set(setting, str(records))
    try:
        embedded = embeddings(embed_frame(table(spark, X.tolist()), encoder, invalid="error"))
    finally:
        spark.conf.set(setting, str(before))
    np.testing.assert_allclose(embedded, encoder(X), rtol=1e-5, atol=1e-6)


def test_other_columns_pass_through(spark: SparkSession, encoder: Encoder) -> None:
    """Of any type, null or not, before and behind the features; those of dropped rows go with them."""
    rows = [
        ("a", X[0].tolist(), None, [1, None], {"k": 1.5}),
        ("b", None, 7, [], None),
        (None, X[1].tolist(), 8, None, {}),
    ]
    frame = spark.createDataFrame(
        rows, "name string, features array<float>, label int, list array<int>, map map<string,double>"
    )
    frame = frame.coalesce(1)
    found = embed_frame(frame, encoder, invalid="drop").collect()
    assert [(row["name"], row["label"], row["list"], row["map"]) for row in found] == [
        ("a", None, [1, None], {"k": 1.5}),
        (None, 8, None, {}),
    ]
    np.testing.assert_allclose([row["embedding"] for row in found], encoder(X[:2]), rtol=1e-5, atol=1e-6)
    assert found[0].__fields__ == ["name", "label", "list", "map", "embedding"]


def test_no_rows(spark: SparkSession, encoder: Encoder) -> None:
    assert embed_frame(table(spark, []), encoder, invalid="error").collect() == []
    assert embed_frame(table(spark, [], "binary"), encoder, invalid="error").collect() == []
    all_bad = table(spark, [None, [math.nan, 0.0, 0.0, 0.0]])
    assert embed_frame(all_bad, encoder, invalid="drop").collect() == []


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (None, "null"),
        ([1.0, None, 2.0, 3.0], "null"),
        ([1.0, math.nan, 2.0, 3.0], "nan"),
        ([1.0, -math.inf, 2.0, 3.0], "infinite"),
    ],
)
def test_frame_refuses_or_drops_what_is_no_number(spark: SparkSession, encoder: Encoder, row: Any, kind: str) -> None:
    frame = table(spark, [X[0].tolist(), row, X[1].tolist()]).coalesce(1)
    with (
        pytest.raises(
            InputError,
            match=rf"^1 of 3 rows of a batch cannot be embedded \({kind} in column 'features'.*\): fix them",
        ),
        task_errors(),
    ):
        embed_frame(frame, encoder, invalid="error").collect()
    found = embed_frame(frame, encoder, invalid="drop").collect()
    assert [row["id"] for row in found] == [0, 2]
    np.testing.assert_allclose([row["embedding"] for row in found], encoder(X[:2]), rtol=1e-5, atol=1e-6)


def test_the_column_that_holds_the_fault_is_named(spark: SparkSession, encoder: Encoder) -> None:
    frame = spark.createDataFrame([(1.0, 2.0, 3.0, 4), (1.0, 2.0, None, 4)], "a double, b double, c double, d int")
    with pytest.raises(InputError, match=r"\(null in column 'c'\)"), task_errors():
        embed_frame(frame, encoder, invalid="error", features=("a", "b", "c", "d")).collect()


@pytest.mark.parametrize("invalid", ["error", "drop"])
def test_frame_refuses_another_width(spark: SparkSession, encoder: Encoder, invalid: str) -> None:
    frame = table(spark, [X[0].tolist(), [1.0, 2.0, 3.0]]).coalesce(1)
    with (
        pytest.raises(InputError, match=WRONG_WIDTH),
        task_errors(),
    ):
        embed_frame(frame, encoder, invalid=invalid).collect()
    packed = table(spark, [bytearray(row.tobytes()) for row in X[:5, :3]], "binary")
    with (
        pytest.raises(InputError, match=WRONG_WIDTH),
        task_errors(),
    ):
        embed_frame(packed, encoder, invalid=invalid).collect()


def test_udf_gives_the_encoders_numbers_and_keeps_nulls(spark: SparkSession, encoder: Encoder) -> None:
    rows = [*X.tolist(), None]
    rows[3], rows[10] = None, None
    embed = embed_udf(spark, encoder)
    frame = table(spark, rows).repartition(3).withColumn("embedding", embed("features"))
    assert frame.schema["embedding"].dataType.simpleString() == "array<float>"
    found = [row["embedding"] for row in frame.orderBy("id").collect()]
    assert [number for number, row in enumerate(found) if row is None] == [3, 10, 57]
    known = [number for number in range(57) if number not in (3, 10)]
    np.testing.assert_allclose([found[number] for number in known], encoder(X[known]), rtol=1e-5, atol=1e-6)


def test_udf_takes_doubles_integers_and_vectors(spark: SparkSession, encoder: Encoder) -> None:
    embed = embed_udf(spark, encoder)
    doubles = table(spark, X[:5].tolist(), "array<double>").withColumn("embedding", embed("features"))
    np.testing.assert_allclose(embeddings(doubles), encoder(X[:5]), rtol=1e-5, atol=1e-6)
    whole = table(spark, X[:5].astype(int).tolist(), "array<int>").withColumn("embedding", embed("features"))
    np.testing.assert_allclose(embeddings(whole), encoder(X[:5].astype(int)), rtol=1e-5, atol=1e-6)
    dense = [(i, Vectors.dense(row)) for i, row in enumerate(X[:5])]
    rows = [*dense, (5, None), (6, Vectors.sparse(4, {1: 2.5, 3: -1.0}))]
    vectors = spark.createDataFrame(
        rows, T.StructType([T.StructField("id", T.LongType()), T.StructField("v", VectorUDT())])
    )
    expected = encoder(np.array([*X[:5], [0, 2.5, 0, -1]], np.float32))
    found = vectors.coalesce(1).withColumn("embedding", embed("v")).orderBy("id").collect()
    assert found.pop(5)["embedding"] is None
    np.testing.assert_allclose([row["embedding"] for row in found], expected, rtol=1e-5, atol=1e-6)
    columns = spark.createDataFrame([(i, *map(float, row)) for i, row in enumerate(X[:5])], ["id", "a", "b", "c", "d"])
    by_name = embed_udf(spark, encoder, names=["a", "b", "c", "d"])
    for struct, udf in ((F.struct(*"abcd"), embed), (F.struct("d", "b", "id", "c", "a"), by_name)):
        found = columns.withColumn("embedding", udf(struct))
        np.testing.assert_allclose(embeddings(found), encoder(X[:5]), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="embed_udf takes one column, not 4"), task_errors():
        columns.select(embed(*"abcd")).collect()


def test_structs_are_checked() -> None:
    """As pandas has them."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"b": [1.0, np.nan], "a": [1, 2], "c": pd.Series([None, decimal.Decimal("1.5")], dtype=object)}
    )
    X, faults, known = read_struct(frame, 3, ["a", "b", "c"])
    assert known.all() and X[1].tolist()[::2] == [2, 1.5]
    assert faults["null"].tolist() == [True, False] and faults["nan"].tolist() == [False, True]
    with pytest.raises(InputError, match="the struct lacks z; it has: b, a, c"):
        read_struct(frame, 2, ["a", "z"])
    with pytest.raises(InputError, match="a row has 3 features in the column; the model was trained on 2"):
        read_struct(frame, 2, [])
    with pytest.raises(InputError, match="field 'd' of the struct is string: all must be numbers"):
        read_struct(pd.DataFrame({"d": ["x"]}), 1, [])
    short = pd.DataFrame({"type": [0], "size": [9], "indices": [np.array([1])], "values": [np.array([1.0])]})
    with pytest.raises(InputError, match="a row has 9 features in the column; the model was trained on 4"):
        read_struct(short, 4, [])


def test_udf_of_nulls_only_and_of_no_rows(spark: SparkSession, encoder: Encoder) -> None:
    embed = embed_udf(spark, encoder)
    assert table(spark, []).withColumn("embedding", embed("features")).collect() == []
    nulls = table(spark, [None, None]).withColumn("embedding", embed("features"))
    assert [row["embedding"] for row in nulls.collect()] == [None, None]


def test_udf_in_sql(spark: SparkSession, encoder: Encoder) -> None:
    spark.udf.register("ivis_embed", embed_udf(spark, encoder))
    table(spark, [*X[:4].tolist(), None]).createOrReplaceTempView("rows_to_embed")
    found = spark.sql(
        "SELECT id, ivis_embed(features) AS e, ivis_embed(features)[1] AS y FROM rows_to_embed ORDER BY id"
    )
    rows = found.collect()
    np.testing.assert_allclose([row["e"] for row in rows[:4]], encoder(X[:4]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([row["y"] for row in rows[:4]], encoder(X[:4])[:, 1], rtol=1e-5, atol=1e-6)
    assert rows[4]["e"] is None and rows[4]["y"] is None
    spark.sql("DROP TEMPORARY FUNCTION ivis_embed")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1.0, 2.0, 3.0], r"^rows have \[3, 4\] features; the model was trained on 4"),
        ([], r"^rows have \[0, 4\] features; the model was trained on 4"),
        (
            [1.0, math.nan, 2.0, 3.0],
            r"^1 of 2 rows of a batch cannot be embedded \(nan in .*; the first reads \[ ?1\., nan, +2\., +3\.\]\)",
        ),
        ([1.0, math.inf, 2.0, 3.0], r"^1 of 2 rows of a batch cannot be embedded \(infinite .* inf, "),
        ([1.0, None, 2.0, 3.0], r"^1 of 2 rows of a batch cannot be embedded \(nan .* nan, "),
    ],
)
def test_udf_refuses_what_it_cannot_embed(spark: SparkSession, encoder: Encoder, row: Any, message: str) -> None:
    embed = embed_udf(spark, encoder)
    frame = table(spark, [X[0].tolist(), row]).coalesce(1).withColumn("embedding", embed(F.col("features")))
    with pytest.raises(InputError, match=message), task_errors():
        frame.collect()
