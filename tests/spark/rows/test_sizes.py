"""Bytes of a row, by which Arrow batches are sized: of columns of any type and name."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from ivis_spark.config import DataConfig
from ivis_spark.spark.rows import sizes
from ivis_spark.spark.rows.columns import resolve

pytestmark = pytest.mark.spark


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("repeat('x', 5000)", 5_000),
        ("repeat('\u00e9', 5000)", 10_000),
        ("binary(repeat('x', 5000))", 6_667),
        ("sequence(1000, 1999)", 5_000),
        ("named_struct('a b', map('k', repeat('x', 5000)))", 5_000),
        ("if(id % 2 = 0, repeat('x', 5000), null)", 2_500),
    ],
)
def test_text_lists_and_files_are_measured(spark: SparkSession, column: str, expected: int) -> None:
    frame = spark.range(400).selectExpr(f"{column} `a.b`", "id")
    assert sizes.mean_bytes(frame) == pytest.approx(expected, rel=0.02, abs=60)


def test_types_that_tell_their_bytes_start_no_job(spark: SparkSession) -> None:
    frame = spark.range(3).selectExpr("id / 0 a", "current_date() b", "id > 1 `A`", "raise_error('a job') IS NULL c")
    assert sizes.mean_bytes(frame) == 4 * 16
    assert sizes.mean_bytes(spark.range(0).selectExpr("string(id) a")) == sizes.mean_bytes(frame.select()) == 0


def test_rows_of_a_table(spark: SparkSession) -> None:
    """Features as if they were float64, columns that are kept, and images as they come, not only their pixels."""
    frame = spark.range(9).selectExpr("id", "array(1f, 2f) features", "repeat('x', 5000) text")
    kept, left = (resolve(frame, DataConfig(drop_columns=columns)) for columns in ((), ("text", "id")))
    assert kept.row_bytes(stays_sparse=False) == pytest.approx(5_000 + 16 + 16, abs=60)
    assert left.row_bytes(stays_sparse=False) == 16
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)).save(buffer, "PNG")
    images = spark.createDataFrame([(buffer.getvalue(),)], "features binary")
    config = DataConfig(image_height=10, image_width=10, image_mode="grayscale")
    expected = 8 * 100 + len(buffer.getvalue()) * 4 / 3
    assert resolve(images, config).row_bytes(stays_sparse=False) == pytest.approx(expected, abs=60)
