"""How many tasks Spark cuts its work into."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from pyspark.sql import SparkSession

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
