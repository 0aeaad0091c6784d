"""A driver of its own that builds neighbours on a real local-cluster while an executor is killed or tasks race.

    python build_under_fault.py FOLDER FAULT

FAULT is `none`, `speculation`, or the sub-stage in which an executor is killed by its process id: `count`, `exact`,
`assign` or `search`. Prints `RESULT <JSON>`: what was killed, and the files of the stage.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ivis_spark.config import NeighboursConfig
from ivis_spark.spark import session, watching
from ivis_spark.spark.neighbours.stage import build_neighbours

SEARCH_STEPS = ("assign", "search")  # Spark stages, in order, of the one search job
SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "20ms",
    "spark.speculation.multiplier": "1.0",
    "spark.speculation.quantile": "0.1",
    "spark.speculation.minTaskRuntime": "1ms",
}


def main(folder: str, fault: str) -> None:
    """Build, with the accident, and tell."""
    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.memory": "512m",
        "spark.executor.memory": "512m",
        "spark.local.dir": os.path.join(folder, "spill"),
        "spark.task.maxFailures": "6",
    }
    spark = session.get_session(
        "faults",
        master="local-cluster[2,1,1024]",
        settings={**settings, **(SPECULATION if fault == "speculation" else {})},
    )
    rows = spark.read.parquet(write_rows(os.path.join(folder, "rows")))
    killer = Killer(spark, fault)
    killer.start()
    config = NeighboursConfig(k=10, region_rows=800, leaf_rows=100, target_recall=0.9)
    info = build_neighbours(rows, config, random_state=0, folder=f"file://{folder}/out")
    killer.stop.set()
    killer.join()
    result = {"killed": killer.killed, "rows": info["rows"], "recall": info["recall"]["value"]}
    result["attempts"] = max(int(name.rsplit("-", 1)[1].split(".")[0]) for name in os.listdir(f"{folder}/out/data"))
    spark.stop()
    sys.stdout.write(f"RESULT {json.dumps(result)}\n")


def write_rows(path: str) -> str:
    """Write 24,000 packed rows of 24 features in 8 files."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(30, 24))[rng.integers(0, 30, 24_000)] * 2 + rng.normal(size=(24_000, 24))).astype("<f4")
    os.makedirs(path)
    for number, some in enumerate(np.array_split(np.arange(len(X)), 8)):
        features = pa.array([X[row].tobytes() for row in some], pa.binary())
        pq.write_table(pa.table({"id": some, "features": features}), os.path.join(path, f"part-{number}.parquet"))
    return path


class Killer(threading.Thread):
    """Kills one executor, once, while tasks of the wanted sub-stage run."""

    def __init__(self, spark: Any, fault: str) -> None:
        super().__init__(daemon=True)
        self.tracker, self.fault = spark.sparkContext.statusTracker(), fault
        self.stop, self.killed = threading.Event(), ""
        self._search_stages: list[int] = []

    def run(self) -> None:
        """Watch Spark's status a hundred times a second."""
        wanted = self.fault in ("count", "exact", *SEARCH_STEPS)
        while wanted and not self.killed and not self.stop.wait(0.01):
            if self.fault == self._running():
                pid = executors()[0]
                os.kill(pid, signal.SIGKILL)
                self.killed = f"{self.fault}: {pid}"

    def _running(self) -> str:
        """Return the sub-stage that has tasks running now."""
        text = watching.described.get("text", "")
        step = text.removeprefix("neighbours: ").split(" ")[0]
        for stage in sorted(self.tracker.getActiveStageIds()):
            found = self.tracker.getStageInfo(stage)
            if found is None or not found.numActiveTasks or "partitioning.py" in found.name:
                continue
            if step != "search":
                return step
            if stage not in self._search_stages:
                self._search_stages.append(stage)
            return SEARCH_STEPS[min(self._search_stages.index(stage), 1)]
        return ""


def executors() -> list[int]:
    """Return the process ids of the executors below this driver."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/cmdline") as file:
                    command = file.read()
            except OSError:
                continue
            if "CoarseGrainedExecutorBackend" in command and below(int(entry)):
                found.append(int(entry))
        if found:
            return sorted(found)
    raise SystemExit("no executor is running")


def below(pid: int) -> bool:
    """Tell whether a process descends from this one."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            with open(f"/proc/{pid}/stat") as file:
                pid = int(file.read().rsplit(")", 1)[1].split()[1])
        except OSError:
            return False
    return False


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
