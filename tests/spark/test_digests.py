"""Files of large stages are digested by Spark's tasks: in order, and many small ones in one task."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from ivis_spark import storage
from ivis_spark.stages import run as run_module

pytestmark = pytest.mark.spark


def test_files_share_tasks_and_keep_their_order(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_DIGEST_ON_EXECUTORS_BYTES", 0)
    monkeypatch.setattr(run_module, "_DIGEST_TASK_BYTES", 250)
    uris = []
    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 100)
        uris.append(f"file://{tmp_path}/{number}")
    digest = run_module.Run(None, None, lambda: spark, None).map_files
    spark.sparkContext.setJobGroup("digests", "digests")
    assert digest(storage.digest_file, dict.fromkeys(uris, 100)) == [storage.digest_file(uri) for uri in uris]
    tracker = spark.sparkContext.statusTracker()
    (job,) = tracker.getJobIdsForGroup("digests")
    (stage,) = tracker.getJobInfo(job).stageIds
    assert tracker.getStageInfo(stage).numTasks == 4
