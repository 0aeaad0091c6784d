"""Distribute groups of rows evenly over Spark partitions."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

# Above this many partitions chance deals well enough.
_MOST_DEALT = 2000
_found: dict[int, list[int]] = {}  # what `_keys` gave, which asks Spark


def repartition_by_group(frame: DataFrame, group: str, partitions: int) -> DataFrame:
    """Repartition so that group g, an integer column counting from 0, lies whole in partition g mod `partitions`.

    `repartition(n, column)` distributes groups by a hash, so a few groups on a few cores leave some idle while others
    do two. Here each group is sent under a key that is known to hash to its partition.

    Runs on: driver.
    """
    spark = frame.sparkSession
    key: Column = F.col(group)
    if partitions <= _MOST_DEALT:
        if partitions not in _found:
            _found[partitions] = _keys(spark, partitions)
        keys = F.array(*[F.lit(key) for key in _found[partitions]])
        key = F.element_at(keys, (F.pmod(F.col(group), F.lit(partitions)) + 1).cast("int"))
    return frame.repartition(partitions, key.cast("long"))


def _keys(spark: SparkSession, partitions: int) -> list[int]:
    """Return, for each partition, the smallest integer that Spark's hash sends there."""
    found: dict[int, int] = {}
    tried, step = 0, 8 * partitions + 16
    while len(found) < partitions:
        rows = spark.range(tried, tried + step, numPartitions=1).select("id", F.pmod(F.hash("id"), F.lit(partitions)))
        for key, partition in rows.collect():
            found.setdefault(partition, key)
        tried += step
    return [found[partition] for partition in range(partitions)]


def cores(spark: SparkSession) -> int:
    """Return how many tasks the session runs at once."""
    return max(1, int(spark.sparkContext.defaultParallelism))
