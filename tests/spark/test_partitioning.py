"""Groups of rows are spread evenly, however many there are."""

from __future__ import annotations

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ivis_spark.spark.partitioning import _hash, _keys, repartition_by_group

pytestmark = pytest.mark.spark


def test_groups_lie_in_the_partitions_of_their_numbers(spark: SparkSession) -> None:
    groups = spark.range(0, 30, numPartitions=1).select(F.col("id").cast("int").alias("group"))
    placed = repartition_by_group(groups, "group", 12).select("group", F.spark_partition_id().alias("place")).collect()
    assert len(placed) == 30 and all(row["place"] == row["group"] % 12 for row in placed)


def test_thousands_of_groups_have_a_partition_each(spark: SparkSession) -> None:
    """By chance a third of so many partitions would be empty and some would hold six groups."""
    keys = [(key,) for key in _keys(5000)]
    places = spark.createDataFrame(keys, "key long").select(F.pmod(F.hash("key"), F.lit(5000))).collect()
    assert [row[0] for row in places] == list(range(5000))


def test_the_hash_is_that_of_spark(spark: SparkSession) -> None:
    numbers = [0, 1, -1, 2**31, 2**32 + 5, 2**63 - 1, -(2**63)]
    hashes = spark.createDataFrame([(n,) for n in numbers], "key long").select(F.hash("key")).collect()
    assert [row[0] for row in hashes] == _hash(np.array(numbers)).tolist()
