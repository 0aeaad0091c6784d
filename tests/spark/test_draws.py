"""Rows drawn by a hash."""

from __future__ import annotations

import pytest
from driver_results import results_below
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ivis_spark.spark.draws import DRAW, draw_rows

pytestmark = pytest.mark.spark
N = 2000


@pytest.mark.parametrize("believed", [N, 100 * N], ids=["known", "fewer rows than believed"])
@pytest.mark.parametrize("first", [None, "rare"])
def test_the_smallest_hashes_are_drawn_however_a_table_is_cut(
    spark: SparkSession, believed: int, first: str | None
) -> None:
    tables = [
        spark.range(0, N, 1, parts).select("id", F.xxhash64("id").alias(DRAW), F.expr("id % 300 = 7").alias("rare"))
        for parts in (1, 9)
    ]
    rows = sorted(tables[0].collect(), key=lambda row: (not (first and row["rare"]), row[DRAW]))
    for table in tables:
        for size in (1, 30, N - 1, 2 * N):
            assert draw_rows(table, size, n_rows=believed, first=first) == rows[:size]


def test_partitions_do_not_add_to_what_the_driver_takes(spark: SparkSession) -> None:
    """A row is 2 KB of noise: of 30 partitions 30 rows each would be 1.8 MB, and 62 rows are .13 MB."""
    noise = F.concat(*[F.sha2(F.concat("id", F.lit(part)), 512) for part in range(16)]).alias("noise")
    table = spark.range(0, N, 1, 30).select(F.xxhash64("id").alias(DRAW), noise)
    with results_below(spark, "500k"):
        assert len(draw_rows(table, 30, n_rows=N)) == 30
