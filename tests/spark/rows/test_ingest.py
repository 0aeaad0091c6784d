"""Ingest: what a table may look like, what is refused and how, and ids that nothing changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from runs import published
from spark_tasks import most_tasks

from ivis_spark import storage
from ivis_spark.config import DataConfig, load_config
from ivis_spark.core.scaling import FeatureStatistics, Scaler
from ivis_spark.errors import InputError
from ivis_spark.pipeline import Pipeline
from ivis_spark.spark import session
from ivis_spark.spark.rows import columns as frames
from ivis_spark.spark.rows import ingest as ingest_stage
from ivis_spark.spark.rows import tables
from ivis_spark.spark.rows.ids import KEY_BYTES
from ivis_spark.spark.session import arrow_batches

pytestmark = pytest.mark.spark

X = np.array([[0, 1, 5], [2, 1, 7], [4, 1, 6], [1, 1, 5]], np.float32)
RAW = DataConfig(scaling="none")


def ingest(frame: DataFrame, config: DataConfig, folder: Path) -> tuple[dict[str, Any], pa.Table]:
    run = storage.RunFolder(str(folder))
    with run.build("rows", {}) as build:
        info = ingest_stage.ingest(frames.resolve(frame, config), config, build)
    return info, pq.read_table(published(folder, "rows") / "data").sort_by("id")


def matrix(table: pa.Table) -> np.ndarray:
    return np.stack([np.frombuffer(row, "<f4") for row in table["features"].to_pylist()])


def table(spark: SparkSession, rows: list[Any], schema: str = "id long, features array<float>") -> DataFrame:
    return spark.createDataFrame(rows, schema)


def test_a_k_that_is_too_large_is_refused_once_rows_are_counted(spark: SparkSession, tmp_path: Path) -> None:
    """Before ids are checked, which repeat here."""
    table(spark, [(1, row.tolist()) for row in X]).write.parquet(str(tmp_path / "in"))
    config = load_config(None, ["data.id_col=id", "neighbours.k=3"])
    with pytest.raises(InputError, match=r"neighbours\.k=3 needs at least 5 rows.*has 4\. Pass --set neighbours\.k=2"):
        Pipeline(str(tmp_path / "out"), config, get_spark=lambda: spark, input_uri=str(tmp_path / "in")).ingest()


@pytest.mark.parametrize("kind", ["float", "double", "int", "tinyint", "decimal(10,2)"])
def test_arrays_of_any_number(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    frame = table(spark, [(i, row.tolist()) for i, row in enumerate(X)])
    frame = frame.withColumn("features", F.col("features").cast(f"array<{kind}>"))
    info, rows = ingest(frame, DataConfig(id_col="id", scaling="none"), tmp_path)
    assert info["rows"] == 4 and info["dims"] == 3 and info["constant_features"] == 1
    assert np.array_equal(matrix(rows), X)


def test_vectors_dense_and_sparse(spark: SparkSession, tmp_path: Path) -> None:
    vectors = [Vectors.dense(X[0]), Vectors.sparse(3, [0, 1, 2], X[1].tolist()), Vectors.sparse(3, [1], [3.0])]
    frame = spark.createDataFrame(list(enumerate(vectors)), ["id", "v"])
    _, rows = ingest(frame, DataConfig(id_col="id", features_col="v", scaling="none"), tmp_path)
    assert np.array_equal(matrix(rows), [X[0], X[1], [0, 3, 0]])


def test_numeric_columns_without_id_and_label(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame(
        [(1, "x", 0.5, 2, 1), (2, "y", 1.5, 3, 0)], "id int, name string, a double, `b.c` int, y int"
    )
    info, rows = ingest(frame, DataConfig(id_col="id", label_col="y", scaling="none"), tmp_path)
    assert info["features"] == ["a", "b.c"]
    assert np.array_equal(matrix(rows), [[0.5, 2], [1.5, 3]])
    assert rows["label"].to_pylist() == [1, 0]
    facts = {"kind": "numbers", "type": "int", "count": 2, "unlabelled": 0, "values": [0, 1], "width": 1}
    assert info["labels"] == facts


def test_named_columns_keep_their_order(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame([(1, 10.0, 20.0)], "id int, a double, b double")
    _, rows = ingest(frame, DataConfig(id_col="id", feature_cols=("b", "a"), scaling="none"), tmp_path)
    assert matrix(rows).tolist() == [[20, 10]]


def test_scaling_is_learnt_over_all_partitions(spark: SparkSession, tmp_path: Path) -> None:
    frame = table(spark, [(i, row.tolist()) for i, row in enumerate(X)]).repartition(3)
    _, rows = ingest(frame, DataConfig(id_col="id"), tmp_path)
    expected = [[0, 0, 0], [0.5, 0, 1], [1, 0, 0.5], [0.25, 0, 0]]
    np.testing.assert_allclose(matrix(rows), expected, atol=1e-6)
    scaler = storage.read_bytes(str(published(tmp_path, "rows") / "scaler.npz"), Scaler.from_bytes)
    assert scaler.kind == "minmax" and scaler.offset.tolist() == [0, 1, 5]


@pytest.mark.parametrize("scaling", ["none", "minmax"])
def test_derived_ids_do_not_depend_on_partitions(spark: SparkSession, tmp_path: Path, scaling: str) -> None:
    values = np.random.default_rng(0).integers(0, 3, (200, 2)).astype(float).tolist()  # nine distinct rows only
    results = []
    for cut in (1, 2, 7):
        frame = spark.createDataFrame([(row,) for row in values], "features array<double>").repartition(cut)
        _, rows = ingest(frame, DataConfig(scaling=scaling), tmp_path / str(cut))
        results.append(rows)
    assert results[0].equals(results[1]) and results[0].equals(results[2])
    ids = results[0]["id"].to_numpy()
    assert ids.tolist() == list(range(200))


FAULTY = {
    "null row": (None, "1 row has null"),
    "null element": ([1.0, None, 2.0], "1 row has null"),
    "nan": ([1.0, math.nan, 2.0], "1 row has NaN"),
    "infinity": ([1.0, math.inf, 2.0], "1 row has infinity in float32"),
    "beyond float32": ([1.0, 1e300, 2.0], "1 row has infinity in float32"),
    "short": ([1.0], "1 row does not have 3 features"),
    "empty": ([], "1 row does not have 3 features"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_invalid_rows_are_named_before_anything_is_published(spark: SparkSession, tmp_path: Path, name: str) -> None:
    row, text = FAULTY[name]
    good = [(i, values.tolist()) for i, values in enumerate(X)]
    frame = table(
        spark, [*good, (77, row), *[(i + 10, r) for i, r in good]], "id long, features array<double>"
    ).coalesce(1)
    with pytest.raises(InputError, match=rf"{text} in column 'features' \(for example id 77\)"):
        ingest(frame, DataConfig(id_col="id"), tmp_path)
    assert storage.RunFolder(str(tmp_path)).manifest("rows") is None


def test_drop_keeps_the_rest_and_counts(spark: SparkSession, tmp_path: Path) -> None:
    rows = [(1, [1.0, 2.0]), (2, [math.nan, 1.0]), (3, None), (4, [3.0, 5.0])]
    info, kept = ingest(table(spark, rows), DataConfig(id_col="id", invalid="drop", scaling="none"), tmp_path)
    assert kept["id"].to_pylist() == [1, 4] and info["dropped"] == 2 and info["rows"] == 2


def test_ragged_rows_cannot_be_dropped(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not have 2 features in column"):
        ingest(table(spark, [(1, [1.0, 2.0]), (2, [1.0])]), DataConfig(id_col="id", invalid="drop"), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"features_col": "nope"}, r"data\.features_col='nope' is not in the table; it has: id \(bigint\)"),
        ({"id_col": "nope"}, r"data\.id_col='nope' is not in the table"),
        ({"label_col": "nope"}, r"data\.label_col='nope' is not in the table"),
        ({"feature_cols": ("a", "nope")}, r"data\.feature_cols='nope' is not in the table"),
        ({"feature_cols": ("a", "text")}, "feature column 'text' is string; it must be numeric"),
        ({"features_col": "text"}, "features column 'text' is string; it must be an array of numbers"),
        ({"features_col": "a"}, "features column 'a' is double; it must be an array of numbers"),
        ({"id_col": "many"}, "id column 'many' is array<int>; an id must be a number, text, a date"),
        ({"id_cols": ("a", "nope")}, r"data\.id_cols='nope' is not in the table"),
        ({"keep_columns": ("nope",)}, r"data\.keep_columns='nope' is not in the table"),
        (
            {"label_col": "a", "unlabelled": "nothing"},
            "data.unlabelled='nothing' is not a number, but label column 'a' is double",
        ),
        ({"feature_cols": ("a", "b"), "id_col": "twice"}, r"id 5 occurs 2 times in id column 'twice'"),
    ],
)
def test_columns_that_cannot_be_used(spark: SparkSession, tmp_path: Path, config: dict, message: str) -> None:
    frame = spark.createDataFrame(
        [(1, 1.0, 2.0, "x", 5, [1]), (2, 3.0, 4.0, "y", 5, [1])],
        "id long, a double, b double, text string, twice int, many array<int>",
    )
    with pytest.raises(InputError, match=message):
        ingest(frame, DataConfig(**config), tmp_path)


def test_a_folder_that_an_open_frame_does_not_have_as_a_column(spark: SparkSession, tmp_path: Path) -> None:
    table(spark, [(1, [1.0])]).write.parquet(str(tmp_path / "day=1"))
    for config in (DataConfig(label_col="day"), DataConfig(features_col="day")):
        with pytest.raises(
            InputError, match=r"='day' is not .*, or read a DataFrame with \.option\(\"basePath\", \"file:"
        ):
            frames.resolve(spark.read.parquet(str(tmp_path / "day=1")), config)


def test_no_features_at_all(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'features' and no numeric column"):
        ingest(spark.createDataFrame([("x",)], "text string"), RAW, tmp_path)


def test_no_rows(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row"):
        ingest(table(spark, []), RAW, tmp_path)
    with pytest.raises(InputError, match="no usable row"):
        ingest(spark.createDataFrame([], "a double, b double"), RAW, tmp_path / "b")


def test_all_rows_equal_is_a_warning(spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info, _ = ingest(table(spark, [(i, [1.0, 2.0]) for i in range(5)]), DataConfig(id_col="id"), tmp_path)
    assert info["all_equal"] and "all 5 rows are equal" in caplog.text


def test_unreadable_inputs(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.* cannot be read as parquet"):
        tables.read_table(spark, str(tmp_path / "nowhere"), DataConfig(format="parquet"))
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        tables.read_table(spark, str(tmp_path / "text.parquet"), DataConfig(format="parquet"))
    with pytest.raises(InputError, match="cannot be read as nosuch"):
        tables.read_table(spark, str(tmp_path), DataConfig(format="nosuch"))


def test_csv_has_a_header_unless_said_otherwise(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,5\n")
    frame = tables.read_table(spark, str(tmp_path / "t.csv"), DataConfig(format="csv"))
    info, rows = ingest(frame, RAW, tmp_path / "out")
    assert info["features"] == ["a", "b"] and sorted(matrix(rows).tolist()) == [[1, 2], [3, 5]]


def test_wide_rows_come_in_batches_of_few(spark: SparkSession) -> None:
    def sizes(batches):  # type: ignore[no-untyped-def]
        for batch in batches:
            yield pa.RecordBatch.from_arrays([pa.array([batch.num_rows])], ["rows"])

    setting = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(setting)
    with arrow_batches(spark, row_bytes=64 << 10):
        found = spark.range(3000, numPartitions=1).mapInArrow(sizes, "rows long").collect()
    assert sorted(row.rows for row in found) == [952, 1024, 1024]
    assert spark.conf.get(setting) == before


@pytest.mark.parametrize("scaling", ["none", "minmax"])
def test_batches_are_smaller_where_columns_beside_the_features_are_large(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaling: str
) -> None:
    """Each batch is a row group of its own: of rows as they are read, and as they are scaled and written again."""
    monkeypatch.setattr(session, "BATCH_BYTES", 20_000)
    frame = spark.range(60, numPartitions=1).selectExpr("id", "array(float(id)) features", "repeat('x', 4000) text")
    ingest(frame, DataConfig(id_col="id", scaling=scaling), tmp_path)
    (file,) = (published(tmp_path, "rows") / "data").glob("*.parquet")
    footer = pq.ParquetFile(file).metadata
    assert {footer.row_group(place).num_rows for place in range(footer.num_row_groups)} == {4}


def test_statistics_of_many_features_come_to_the_driver_once(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once a task, or once a core: those of a million features are 32 MB each."""
    given: list[list[FeatureStatistics]] = []
    joined = FeatureStatistics.joined
    monkeypatch.setattr(FeatureStatistics, "joined", lambda parts: given.append(parts) or joined(parts))
    values = np.random.default_rng(0).normal(size=(12, 2500))
    frame = spark.createDataFrame([(i, row.tolist()) for i, row in enumerate(values)], "id long, v array<double>")
    _, rows = ingest(frame.repartition(5), DataConfig(id_col="id", features_col="v"), tmp_path)
    assert [len(part.mean) for part in given[0]] == [1024, 1024, 452] and {part.count for part in given[0]} == {12}
    low, high = values.min(axis=0), values.max(axis=0)
    np.testing.assert_allclose(matrix(rows), (values - low) / (high - low), atol=1e-6)


@pytest.mark.parametrize("key", ["id", None])
def test_ids_are_checked_and_made_in_tasks_by_bytes(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.setattr(session, "SPLIT_BYTES", 90 * KEY_BYTES // 15)
    frame = spark.range(90, numPartitions=2).selectExpr("id", "array(double(id)) features")
    assert most_tasks(spark, lambda: ingest(frame, DataConfig(id_col=key), tmp_path)) == 15


def test_large_offsets_keep_their_digits(spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seconds = 1.7e9 + np.arange(300)
    frame = spark.createDataFrame(
        [(i, float(s), float(s) * 1000) for i, s in enumerate(seconds)], "id int, s double, ms double"
    )
    _, rows = ingest(frame, DataConfig(id_col="id"), tmp_path / "scaled")
    np.testing.assert_allclose(matrix(rows), np.repeat(np.arange(300)[:, None], 2, axis=1) / 299, atol=1e-6)
    assert "fewer than 1,000" not in caplog.text
    ingest(frame, DataConfig(id_col="id", scaling="none"), tmp_path / "raw")
    assert "2 features vary little around a large value and keep fewer than 1,000" in caplog.text


def test_numbers_too_large_to_square_are_scaled_or_refused(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame([(i, [(-1.0) ** i * 3e38, float(i)]) for i in range(9)], "id int, v array<double>")
    for scaling in ("minmax", "standard"):
        _, rows = ingest(frame, DataConfig(id_col="id", features_col="v", scaling=scaling), tmp_path / scaling)
        assert np.isfinite(matrix(rows)).all()
    with pytest.raises(InputError, match=r"too large to be used unscaled, distances between rows exceed float32: #0"):
        ingest(frame, DataConfig(id_col="id", features_col="v", scaling="none"), tmp_path / "none")
