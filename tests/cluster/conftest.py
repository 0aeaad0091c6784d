"""A Spark standalone cluster of a master and two workers, started from PySpark's own jars."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clusters import Cluster, environment


def _start(folder: Path, name: str, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
    import pyspark

    home = Path(pyspark.__file__).parent
    log = folder / f"{name}.log"
    command = [str(home / "bin" / "spark-class"), *arguments]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=sink, env=environment(SPARK_HOME=str(home), IVIS_TEST_FOLDER=str(folder))
        )
    return process, log


def _wait_for(log: Path, pattern: str) -> str:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        match = re.search(pattern, log.read_text(errors="replace"))
        if match:
            return match.group(0)
        time.sleep(0.2)
    raise AssertionError(f"{pattern} did not come:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One master and two workers of one core each; ranks see $IVIS_TEST_FOLDER = tmp_path."""
    started = []
    try:
        master, log = _start(
            tmp_path, "master", "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", "0",
            "--webui-port", "0",
        )  # fmt: skip
        started.append(master)
        url = _wait_for(log, r"spark://127\.0\.0\.1:\d+")
        logs = []
        for number in range(2):
            worker, log = _start(
                tmp_path, f"worker-{number}", "org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1",
                "--cores", "1", "--memory", "1g", "--webui-port", "0", "--work-dir", str(tmp_path / f"work-{number}"),
                url,
            )  # fmt: skip
            started.append(worker)
            logs.append(log)
        for log in logs:
            _wait_for(log, "Successfully registered with master")
        yield Cluster(url, [psutil.Process(worker.pid) for worker in started[1:]])
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=60)
