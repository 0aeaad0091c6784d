"""Distribute groups of rows evenly over Spark partitions."""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

_found: dict[int, str] = {}  # what `_keys` gave, which asks Spark


def repartition_by_group(frame: DataFrame, group: str, partitions: int) -> DataFrame:
    """Repartition so that group g, an integer column counting from 0, lies whole in partition g mod `partitions`.

    `repartition(n, column)` distributes groups by a hash: of thousands of tasks, a third would get none and some would
    get six. Here each group is sent under a key that is known to hash to its partition.

    Runs on: driver.
    """
    if partitions not in _found:
        _found[partitions] = _keys(frame.sparkSession, partitions)
    # One text that Spark turns into one literal, however many keys it has
    keys = F.split(F.lit(_found[partitions]), ",").cast("array<long>")
    key = F.element_at(keys, (F.pmod(F.col(group), F.lit(partitions)) + 1).cast("int"))
    return frame.repartition(partitions, key)


def _keys(spark: SparkSession, partitions: int) -> str:
    """Return, for each partition, the smallest integer that Spark's hash sends there, separated by commas."""
    tried = 16 * partitions
    while True:
        partition = F.pmod(F.hash("id"), F.lit(partitions)).alias("partition")
        keys = spark.range(0, tried, numPartitions=1).groupBy(partition).agg(F.min("id").alias("key")).collect()
        if len(keys) == partitions:
            return ",".join(str(row["key"]) for row in sorted(keys))
        tried *= 4


def cores(spark: SparkSession) -> int:
    """Return how many tasks the session runs at once."""
    return max(1, int(spark.sparkContext.defaultParallelism))
