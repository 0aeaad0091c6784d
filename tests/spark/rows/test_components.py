"""The sample that principal components are learnt from: how many rows it has, and what they take on the driver."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ivis_spark.config import Config
from ivis_spark.core import projection
from ivis_spark.core.scaling import Scaler
from ivis_spark.spark.rows import components
from ivis_spark.spark.rows.ids import HASH
from ivis_spark.stages import rows as stage
from ivis_spark.stages.estimate import Cluster


@pytest.mark.spark
def test_a_table_of_copies_gives_a_whole_sample_of_distinct_rows(spark: SparkSession) -> None:
    table = spark.range(0, 3000, numPartitions=3).select(
        F.xxhash64(F.col("id") % 60).alias(HASH), F.encode((F.col("id") % 60).cast("string"), "utf-8").alias("features")
    )
    marks, rows = components._draw(table, 20, 3000)
    assert len(rows) == len(set(map(bytes, rows))) == 20 and len(set(marks)) == 20
    assert len(components._draw(table, 100, 3000)[1]) == 60
    again = components._draw(table.repartition(5), 20, 60)
    assert again[1] == rows and (again[0] == marks).all()  # the same, whatever share was drawn first


@pytest.mark.parametrize(("width", "sampled"), [(20, 2000), (1500, 1000), (400, 1000)])
def test_the_estimate_covers_what_a_sample_takes(monkeypatch: pytest.MonkeyPatch, width: int, sampled: int) -> None:
    monkeypatch.setattr(projection, "MOST_SAMPLE", 2000)
    monkeypatch.setattr(projection, "SAMPLE_BYTES", 400_000)
    config = Config.from_mapping({"data": {"components": 10}})
    assert projection.sample_rows(4 * width, 10) == sampled
    X = np.random.default_rng(0).normal(size=(sampled, width)).astype("<f4")
    scaler = Scaler("none", np.zeros(width), np.ones(width))
    components.learn(scaler, [row.tobytes() for row in X[:50]], width, 10)  # imports
    tracemalloc.start()
    try:
        _, facts = components.learn(scaler, [row.tobytes() for row in X], width, 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    expected = stage.estimate(1e9, width, config, Cluster(1, 1, 2.0**33), {}).driver_bytes
    assert facts["sample_rows"] == sampled and expected / 4 < peak < expected
