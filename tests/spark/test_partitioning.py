"""Groups of rows are spread evenly, however many there are."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ivis_spark.spark.partitioning import _keys, repartition_by_group

pytestmark = pytest.mark.spark


def test_groups_lie_in_the_partitions_of_their_numbers(spark: SparkSession) -> None:
    groups = spark.range(0, 30, numPartitions=1).select(F.col("id").cast("int").alias("group"))
    placed = repartition_by_group(groups, "group", 12).select("group", F.spark_partition_id().alias("place")).collect()
    assert len(placed) == 30 and all(row["place"] == row["group"] % 12 for row in placed)


def test_thousands_of_groups_have_a_partition_each(spark: SparkSession) -> None:
    """By chance a third of so many partitions would be empty and some would hold six groups."""
    keys = [(int(key),) for key in _keys(spark, 5000).split(",")]
    places = spark.createDataFrame(keys, "key long").select(F.pmod(F.hash("key"), F.lit(5000))).collect()
    assert [row[0] for row in places] == list(range(5000))
