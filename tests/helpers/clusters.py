"""Processes of clusters that tests start and kill."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent.parent


def environment(**more: str) -> dict[str, str]:
    """Of processes that hold the package, the tests' helpers, and this Python for Spark's workers."""
    from ivis_spark.spark.environment import ensure_java

    ensure_java()
    paths = [str(ROOT), str(ROOT / "tests" / "helpers")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "SPARK_HOME": str(spark_home()),
        **more,
    }


def spark_home() -> Path:
    """Return the folder of the Spark that PySpark holds."""
    import pyspark

    return Path(pyspark.__file__).parent


@dataclass
class Cluster:
    """A running cluster; its executors' processes are children of the workers."""

    url: str
    workers: list[psutil.Process]

    def executors(self) -> list[psutil.Process]:
        """Return the executors' JVMs."""
        children = [child for worker in self.workers for child in worker.children(recursive=True)]
        return [child for child in children if "CoarseGrainedExecutorBackend" in " ".join(command_of(child))]


def command_of(process: psutil.Process) -> list[str]:
    """Return what a process was started as; nothing of one that has ended, also where nobody has waited for it yet."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def find_ranks() -> list[psutil.Process]:
    """Return all training processes of this machine that use this checkout."""
    found = []
    for process in psutil.process_iter():
        try:
            if "ivis_spark.train.rank" in process.cmdline() and str(ROOT) in process.environ().get("PYTHONPATH", ""):
                found.append(process)
        except psutil.Error:
            continue
    return found
