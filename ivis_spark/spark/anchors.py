"""Which rows are anchors: those with the smallest hashes of their ids, so that fewer are a part of more.

The hash orders whatever a stage draws, so the rows that the neighbours stage measures its recall on are anchors too.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

_GROUP_BITS = 14  # of the hash, by which rows are counted before the hashes of one group are collected


@dataclass(frozen=True)
class Anchors:
    """Rows that are anchors, the same for any partitioning.

    Attributes:
        count: How many.
        last_hash: The largest hash of theirs; None if all rows are anchors.
        random_state: Seed of the hash.
    """

    count: int
    last_hash: int | None
    random_state: int

    @classmethod
    def draw(cls, rows: DataFrame, count: int | None, *, n_rows: int, random_state: int) -> Anchors:
        """Draw anchors by a hash of the ids. Runs on: driver; holds n_rows / 16,384 hashes.

        Args:
            rows: Column `id` long, unique.
            count: How many; None, or as many as there are rows, for all.
            n_rows: Rows there are.
            random_state: Seed.
        """
        if count is None or count >= n_rows:
            return cls(n_rows, None, random_state)
        hashes = rows.select(row_hash(random_state).alias("hash"))
        group = F.shiftright("hash", 64 - _GROUP_BITS)
        before = 0
        for record in sorted(hashes.groupBy(group.alias("group")).count().collect()):
            if before + record["count"] >= count:
                break
            before += record["count"]
        group_hashes = sorted(row["hash"] for row in hashes.where(group == record["group"]).collect())
        return cls(count, group_hashes[count - before - 1], random_state)

    @property
    def condition(self) -> Column:
        """Whether a row is an anchor, by its column `id`."""
        return F.lit(True) if self.last_hash is None else row_hash(self.random_state) <= F.lit(self.last_hash)

    def of(self, frame: DataFrame) -> DataFrame:
        """Return the records of a table with an `id` that are those of anchors."""
        return frame if self.last_hash is None else frame.where(self.condition)


def row_hash(random_state: int) -> Column:
    """Return a hash of the column `id`, which no two ids share, as long: the order in which rows are drawn."""
    return F.xxhash64(F.col("id"), F.lit(random_state))
