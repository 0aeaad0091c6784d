"""How many tasks Spark cuts its work into, and how large batches are asked for."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType

import pytest
from pyspark.sql import SparkSession

from ivis_spark.spark.session import arrow_batches

AQE = "spark.sql.adaptive.enabled"


def most_tasks(spark: SparkSession, work: Callable[[], object]) -> int:
    """Return the tasks of the largest stage of all jobs, before Spark joins up those that are small."""
    context, group, before = spark.sparkContext, uuid.uuid4().hex, spark.conf.get(AQE)
    context.setJobGroup(group, group)
    spark.conf.set(AQE, "false")
    try:
        work()
    finally:
        spark.conf.set(AQE, str(before))
        context.setLocalProperty("spark.jobGroup.id", None)
    tracker = context.statusTracker()
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
    stages = [tracker.getStageInfo(stage) for job in jobs if job is not None for stage in job.stageIds]
    return max(stage.numTasks for stage in stages if stage is not None)


def batches_asked_for(patch: pytest.MonkeyPatch, module: ModuleType) -> list[tuple[int, int]]:
    """Return a list that gets what a module asks `arrow_batches` for: the bytes of a row, and the most rows."""
    asked: list[tuple[int, int]] = []

    def batches(spark: SparkSession, row_bytes: int, *, most: int) -> AbstractContextManager[None]:
        asked.append((row_bytes, most))
        return arrow_batches(spark, row_bytes, most=most)

    patch.setattr(module, "arrow_batches", batches)
    return asked
