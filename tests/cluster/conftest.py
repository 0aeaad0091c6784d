"""What the cluster tests share: the package as a wheel, and a Spark standalone cluster from PySpark's own jars."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clusters import ROOT, Cluster, environment, spark_home
from fault_table import FaultTable
from runs import Run

from ivis_spark.config import Config
from ivis_spark.demo import write_digits


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that nothing of the build stays in the checkout; Spark wants it named .zip."""
    source, out = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "ivis_spark", source / "ivis_spark", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(out), str(source)], check=True, capture_output=True, timeout=300)
    return shutil.copy(next(out.glob("*.whl")), out / "ivis_spark.zip")


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Iterator[FaultTable]:
    """The table of faults; it is printed when all were tried, whether they were survived or not."""
    lines = FaultTable()
    yield lines
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n\n{lines}")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits, as a table."""
    return write_digits(str(tmp_path_factory.mktemp("table")), Config())[0]


@pytest.fixture(scope="session")
def finished(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("finished") / "out"
    Run(source, output).finish()
    return output


@pytest.fixture
def cluster_environment(tmp_path: Path) -> dict[str, str]:
    """What all processes of the cluster see; ranks find $IVIS_TEST_FOLDER = tmp_path."""
    return environment(IVIS_TEST_FOLDER=str(tmp_path))


@pytest.fixture
def cluster(tmp_path: Path, cluster_environment: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One master and two workers that offer one core and 2 GB each, or what the fixture's parameter says."""
    cores, memory = getattr(request, "param", (1, "2g"))
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, kind: str, *options: str) -> Path:
        log = tmp_path / f"{name}.log"
        command = [str(spark_home() / "bin" / "spark-class"), f"org.apache.spark.deploy.{kind}"]
        command += ["--host", "127.0.0.1", "--webui-port", "0", *options]
        with log.open("wb") as sink:
            started.append(subprocess.Popen(command, stdout=sink, stderr=sink, env=cluster_environment, cwd=tmp_path))
        return log

    try:
        url = _wait_for(start("master", "master.Master", "--port", "0"), r"spark://127\.0\.0\.1:\d+")
        size = ["--cores", str(cores), "--memory", memory]
        logs = [
            start(name, "worker.Worker", *size, "--work-dir", str(tmp_path / name), url)
            for name in ("worker-0", "worker-1")
        ]
        for log in logs:
            _wait_for(log, "Successfully registered with master")
        yield Cluster(url, [psutil.Process(worker.pid) for worker in started[1:]])
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=60)


def _wait_for(log: Path, pattern: str) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        match = re.search(pattern, log.read_text(errors="replace"))
        if match:
            return match.group(0)
        time.sleep(0.2)
    raise AssertionError(f"{pattern} did not come:\n{log.read_text(errors='replace')[-3000:]}")
