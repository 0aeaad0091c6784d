"""Which columns are used is said, and what looks like a mistake is warned of."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ivis_spark.config import DataConfig
from ivis_spark.errors import InputError
from ivis_spark.spark.rows import tables
from ivis_spark.spark.rows.choice import explain_columns
from ivis_spark.spark.rows.columns import resolve
from ivis_spark.spark.rows.ingest import ingest
from ivis_spark.spark.vectors import count_bad_values, describe
from ivis_spark.storage import RunFolder

pytestmark = pytest.mark.spark

CSV = DataConfig(format="csv")


def explained(table: DataFrame, caplog: pytest.LogCaptureFixture, **data: object) -> tuple[dict[str, str], list[str]]:
    """Return what was left out and why, and the warnings; one line of the log names all columns."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "ivis_spark.spark.rows.choice"):
        left_out = explain_columns(table, DataConfig(**data))  # type: ignore[arg-type]
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(lines) == 1 and all(name in lines[0] for name in table.columns)
    return left_out, [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def numbers(spark: SparkSession) -> DataFrame:
    """60 rows: unique whole numbers as long, double and decimal, and what is not like an id."""
    return spark.range(60, numPartitions=3).select(
        F.col("id").alias("row.number"),
        (F.col("id") * 7.0).alias("as `double`"),
        (F.col("id") * 3).cast("decimal(12,0)").alias("decimal"),
        (F.col("id") % 50).alias("a count"),
        (F.col("id") / 7).alias("measure"),
        F.lit(1).alias("constant"),
        F.when(F.col("id") > 3, F.col("id")).alias("some missing"),
        F.col("id").cast("string").alias("text"),
    )


def test_ids_taken_as_features_are_warned_of(numbers: DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    _, warnings = explained(numbers.drop("text"), caplog)
    assert len(warnings) == 1
    assert warnings[0].startswith("row.number, as `double`, decimal: columns of distinct whole numbers, possibly ids")
    left_out, warnings = explained(
        numbers.drop("text"), caplog, id_col="row.number", feature_cols=("decimal", "measure")
    )
    assert warnings == [] and left_out["row.number"] == "the id" and left_out["a count"] == "not named as a feature"


def test_unique_in_the_first_rows_only_is_no_id(spark: SparkSession, caplog: pytest.LogCaptureFixture) -> None:
    table = spark.range(9000, numPartitions=1).select((F.col("id") % 2000).alias("a"), (F.col("id") / 3).alias("b"))
    assert explained(table, caplog)[1] == []


def test_the_column_features_is_enough(spark: SparkSession, caplog: pytest.LogCaptureFixture) -> None:
    table = spark.createDataFrame([(i, [1.0], "x") for i in range(20)], "n long, features array<double>, t string")
    left_out, warnings = explained(table, caplog)
    assert warnings == [] and left_out == dict.fromkeys("nt", "column 'features' is used")


def test_a_partition_column_is_warned_of(spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = spark.createDataFrame([(0.5, 0.25, 2024, "x")], "a double, b double, year int, kind string")
    table.write.partitionBy("year", "kind").parquet(str(tmp_path / "x=1"))
    left_out, warnings = explained(
        tables.read_table(spark, str(tmp_path / "x=1"), DataConfig(format="parquet")), caplog
    )
    assert len(warnings) == 1 and warnings[0].startswith("year: partition columns of the table are used as features")
    assert left_out == {"kind": "string, not a number"}


@pytest.mark.parametrize(("bad", "n"), [(["n/a"], 1), (["-", "?", "1,5"], 3)])
def test_a_column_that_a_few_cells_make_text(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: list[str], n: int
) -> None:
    cells = [str(x) for x in np.linspace(-2, 2, 2000)] + ["", "1e-3", " .5", "NaN", *bad]
    lines = [f'{i / 7},"{cell}",word' for i, cell in enumerate(cells)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b.c,words", *lines]))
    table = tables.read_table(spark, str(tmp_path / "t.csv"), CSV)
    left_out, warnings = explained(table, caplog, format="csv")
    assert len(warnings) == 1 and left_out["words"] == "string, not a number"
    assert f"'b.c' is not among the features: text, since {n} of 2,00" in warnings[0]
    assert any(f"for example {cell!r}" in warnings[0] for cell in bad)
    assert left_out["b.c"] in warnings[0]
    with pytest.raises(InputError, match=f"feature column 'b.c' is not numeric: text, since {n} of 2,00"):
        explain_columns(table, DataConfig(format="csv", feature_cols=("a", "b.c")))


def test_numbers_kept_as_text(numbers: DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    left_out, _ = explained(numbers, caplog)
    assert left_out == {"text": "text, although all its cells are numbers: cast it"}


@pytest.mark.parametrize("invalid", ["error", "drop"])
def test_invalid_numbers_are_counted_by_column(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture, invalid: str
) -> None:
    nan, inf = float("nan"), float("inf")
    rows = [(1.0, None, 2.0), (None, None, nan), (1.0, 2.0, -inf), (1e300, None, 0.0), *[(1.0, 2.0, 3.0)] * 9]
    frame = spark.createDataFrame(rows, "`a.b` double, c double, d double").repartition(3)
    data = DataConfig(invalid=invalid)  # type: ignore[arg-type]
    text = "by column: c (3 null), a.b (1 infinity, 1 null), d (1 NaN, 1 infinity)"
    with RunFolder(str(tmp_path)).build("rows", {"config": {}, "inputs": {}}) as build:
        if invalid == "error":
            with pytest.raises(InputError) as refused:
                ingest(resolve(frame, data), data, build)
            assert text in str(refused.value)
        else:
            assert ingest(resolve(frame, data), data, build)["dropped"] == 4
            assert text in caplog.text


def test_cells_are_counted_by_place_in_lists_of_any_length_and_slice() -> None:
    rows = [[1.0], [1.0, None, 2.0], [None, None, float("nan")], None, [1.0, 2.0, -1e300], [1e300, None, 0.0]]
    expected = {("null", 0): 1, ("null", 1): 3, ("nan", 2): 1, ("infinite", 0): 1, ("infinite", 2): 1}
    assert count_bad_values(pa.array(rows)) == expected
    assert count_bad_values(pa.array(rows).slice(2).filter(pa.array([False, False, True, True]))) == {
        ("null", 1): 1,
        ("infinite", 0): 1,
        ("infinite", 2): 1,
    }


def test_messages_name_five_columns_at_most() -> None:
    assert describe(["a"]) == "column 'a'" and describe(list("abcde")) == "columns a, b, c, d, e"
    assert describe(list("abcdef")) == "columns a, b, c, d, e, ..."
