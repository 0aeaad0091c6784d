"""Progress of Spark's tasks, with a status tracker that is not Spark's."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import Any

import pyspark
import pytest

from ivis_spark.spark import watching


def test_tasks_are_shown_once_however_often_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = SimpleNamespace(stageId=3, numTasks=7, numCompletedTasks=2)
    tracker = SimpleNamespace(getActiveStageIds=lambda: [3], getStageInfo=lambda _: stage)
    context: Any = SimpleNamespace(statusTracker=lambda: tracker)
    monkeypatch.setattr(watching, "_PROGRESS_INTERVAL_S", 0.01)
    monkeypatch.setitem(watching.described, "text", "search")
    monkeypatch.setattr(pyspark.SparkContext, "_active_spark_context", None)
    with caplog.at_level(logging.INFO):
        with watching.SparkProgress(), watching.SparkProgress():  # before there is a session
            time.sleep(0.05)
            assert not caplog.messages
            monkeypatch.setattr(pyspark.SparkContext, "_active_spark_context", context)
            time.sleep(0.2)
        with watching.SparkProgress():
            time.sleep(0.1)
    assert [text.split(",")[0] for text in caplog.messages] == ["search: 2/7 tasks"] * 2


def test_a_stage_that_ended_between_two_looks_is_shown_complete(caplog: pytest.LogCaptureFixture) -> None:
    stages = {number: SimpleNamespace(stageId=number, numTasks=1, numCompletedTasks=0) for number in (1, 2)}
    active = [1]
    tracker: Any = SimpleNamespace(getActiveStageIds=lambda: active, getStageInfo=stages.get)
    progress = watching.SparkProgress()
    with caplog.at_level(logging.INFO):
        progress._show(tracker)
        progress._show(tracker)
        stages[1].numCompletedTasks, active[:] = 1, [2]
        progress._show(tracker)
    assert [text.rpartition(": ")[2] for text in caplog.messages] == ["1/1 tasks"]
