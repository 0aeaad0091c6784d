"""Labels that training does not see."""

from __future__ import annotations

import math

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ivis_spark.spark.held_out import hide_labels, is_held_out

pytestmark = pytest.mark.spark


def test_the_same_rows_are_held_out_everywhere(spark: SparkSession) -> None:
    rows = spark.range(5000).select("id", (F.col("id") % 3).alias("label"), F.array(F.lit(1.0), "id").alias("values"))
    hidden = hide_labels(rows, 0.1, 7)
    gone = {row["id"] for row in hidden.where("label IS NULL").collect()}
    assert 400 < len(gone) < 600
    chosen = rows.repartition(7).where(is_held_out(F.col("id"), 0.1, 7)).collect()
    assert gone == {row["id"] for row in chosen}
    assert gone != {row["id"] for row in rows.where(is_held_out(F.col("id"), 0.1, 8)).collect()}
    assert hidden.where("label IS NOT NULL AND label != id % 3").count() == 0
    arrays = hide_labels(rows.select("id", F.col("values").alias("label")), 0.1, 7).collect()
    for row in arrays:
        assert len(row["label"]) == 2 and all(map(math.isnan, row["label"])) == (row["id"] in gone)
    assert hide_labels(rows, 0.0, 7) is rows and hide_labels(rows.drop("label"), 0.1, 7).columns == ["id", "values"]
