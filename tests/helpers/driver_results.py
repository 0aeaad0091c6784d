"""How much the tasks of a job may send to the driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

_MOST = "spark.driver.maxResultSize"


@contextmanager
def results_below(spark: SparkSession, size: str) -> Iterator[None]:
    """Let Spark end a job whose results, of all its tasks, are larger: it asks this setting for every stage."""
    conf = spark.sparkContext._jsc.sc().conf()
    before = conf.getOption(_MOST)
    conf.set(_MOST, size)
    try:
        yield
    finally:
        if before.isDefined():
            conf.set(_MOST, before.get())
        else:
            conf.remove(_MOST)
