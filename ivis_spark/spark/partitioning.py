"""Distribute groups of rows evenly over Spark partitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F


def repartition_by_group(frame: DataFrame, group: str, partitions: int) -> DataFrame:
    """Repartition so that group g, an integer column counting from 0, lies whole in partition g mod `partitions`.

    `repartition(n, column)` distributes groups by a hash: of thousands of tasks, a third would get none and some would
    get six. Here each group is sent under a key that is known to hash to its partition.

    Runs on: driver.
    """
    # One text that Spark turns into one literal, however many keys it has
    keys = F.split(F.lit(",".join(map(str, _keys(partitions)))), ",").cast("array<long>")
    key = F.element_at(keys, (F.pmod(F.col(group), F.lit(partitions)) + 1).cast("int"))
    return frame.repartition(partitions, key)


def _keys(partitions: int) -> list[int]:
    """Return, for each partition, the smallest integer that Spark's hash sends there."""
    tried = 16 * partitions
    while True:
        found, keys = np.unique(_hash(np.arange(tried)) % partitions, return_index=True)
        if len(found) == partitions:
            return list(map(int, keys))
        tried *= 4


def _hash(numbers: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return Spark's hash of longs: Murmur3 with its seed 42, without a job of Spark's."""

    def turned(x: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
        return (x << np.uint32(bits)) | (x >> np.uint32(32 - bits))

    h = np.full(len(numbers), 42, np.uint32)
    for half in (numbers, numbers >> 32):
        k = turned((half & 0xFFFFFFFF).astype(np.uint32) * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
        h = turned(h ^ k, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    h ^= np.uint32(8)  # bytes of a long
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h.view(np.int32)


def cores(spark: SparkSession) -> int:
    """Return how many tasks the session runs at once."""
    return max(1, int(spark.sparkContext.defaultParallelism))
