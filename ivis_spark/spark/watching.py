"""Progress of Spark's tasks, in terminals and notebooks. Importing it loads no PySpark."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any

from ivis_spark.progress import Meter

if TYPE_CHECKING:
    from pyspark import StatusTracker

_PROGRESS_INTERVAL_S = 2.0

# Spark keeps a job's description a thread, where the thread that watches cannot see it.
described: dict[str, str] = {}


class SparkProgress:
    """Shows every few seconds how many tasks of the running Spark stages are done, and when they will be.

    Runs on: driver; a thread that only asks the status tracker of the session that runs, once there is one. Inside
    another one it shows nothing of its own.
    """

    _lock = threading.Lock()

    def __init__(self) -> None:
        self._meter: Meter | None = None
        self._shown: tuple[Any, ...] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SparkProgress:
        if self._lock.acquire(blocking=False):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.ident is None:
            return
        self._stop.set()
        self._thread.join(timeout=2)  # a JVM that died would hold it longer
        self._lock.release()

    def _watch(self) -> None:
        with contextlib.suppress(Exception):  # a session that is being stopped must not break the stage that ends
            while not self._stop.wait(_PROGRESS_INTERVAL_S):
                context = getattr(
                    getattr(sys.modules.get("pyspark"), "SparkContext", None), "_active_spark_context", None
                )
                if context is not None:
                    self._show(context.statusTracker())
        self._close()

    def _show(self, tracker: StatusTracker) -> None:
        stages = [stage for stage in map(tracker.getStageInfo, tracker.getActiveStageIds()) if stage is not None]
        tasks = sum(stage.numTasks for stage in stages)
        shown = (described.get("text", "Spark job"), *sorted(stage.stageId for stage in stages))
        if shown != self._shown:
            self._close(tracker)
            self._shown = shown
            self._meter = Meter(str(shown[0]) + ":", tasks, unit="tasks") if tasks else None
        if self._meter is not None:
            self._meter.update(sum(stage.numCompletedTasks for stage in stages))

    def _close(self, tracker: StatusTracker | None = None) -> None:
        if self._meter is not None:
            if tracker is not None:  # tasks that finished since the last look
                stages = [tracker.getStageInfo(number) for number in self._shown[1:]]
                self._meter.update(sum(stage.numCompletedTasks for stage in stages if stage is not None))
            self._meter.close()
            self._meter = None
