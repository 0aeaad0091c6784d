"""Random rows of a table, collected: those of the smallest hashes, the same for any partitioning."""

from __future__ import annotations

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

DRAW = "draw"
_LOW = -(2**63)  # of xxhash64


def draw_rows(table: DataFrame, size: int, *, n_rows: int, first: str | None = None) -> list[Row]:
    """Collect the `size` rows of the smallest hashes, or all if there are fewer, in the order of their hashes.

    To have Spark sort and limit the table takes `size` rows of every partition to the driver. So only rows are taken
    whose hash is below a share of all hashes, which holds slightly more rows than are drawn.

    Runs on: driver. Memory: O(size), however many partitions there are.

    Args:
        table: Its column `draw`, a long, is the hash, which no two rows share; all columns are collected.
        size: Number of rows.
        n_rows: Rows there are, or more: while too few are below the share, it grows.
        first: A boolean column that is true of rows, at most a few, which stand before all others.
    """
    share = min(1.0, (size + 4 * size**0.5 + 10) / max(n_rows, 1))
    while True:
        below = F.col(DRAW) < F.lit(_LOW + int(share * 2**64)) if share < 1 else F.lit(True)
        drawn = table.where(below if first is None else below | F.col(first)).collect()
        if len(drawn) >= size or share == 1:
            return sorted(drawn, key=lambda row: (not (first and row[first]), row[DRAW]))[:size]
        share = min(1.0, share * max(4.0, 1.5 * size / max(len(drawn), 1)))
