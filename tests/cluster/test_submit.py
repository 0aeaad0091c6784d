"""Every job under spark-submit on a real standalone cluster: a master and two workers of 2 GB, from PySpark's own jars.

The conditions are a cluster's: the package arrives as a wheel, named .zip, by --py-files, nothing has this checkout on
its path, executors work in folders of their own, the driver's JVM has 1 GB, and it starts in an empty folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ivis_spark.config import Config
from ivis_spark.demo import write_digits
from ivis_spark.operations.inspect import verify

HERE = Path(__file__).parent.parent.parent
STAGES = {
    "neighbours": "neighbours",
    "triplets": "triplets",
    "train": "model",
    "embed": "embeddings",
    "evaluate": "report",
}

pytestmark = [pytest.mark.spark, pytest.mark.tf, pytest.mark.slow, pytest.mark.cluster]

WHERE = """
import json, os, sys
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
def where(_):
    import ivis_spark, time
    time.sleep(1)
    yield ivis_spark.__file__, os.getcwd(), [path for path in sys.path if "ivis" in path]
import ivis_spark
found = context.parallelize(range(4), 4).mapPartitions(where).collect()
print("RESULT", json.dumps({"driver": ivis_spark.__file__, "executors": found}))
"""


def spark_home() -> Path:
    import pyspark

    return Path(pyspark.__file__).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that nothing of the build stays in the checkout; Spark wants it as a zip."""
    source, out = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("wheel")
    shutil.copytree(HERE / "ivis_spark", source / "ivis_spark", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HERE / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    shipped = out / "ivis_spark.zip"
    shutil.copy(next(out.glob("*.whl")), shipped)
    return shipped


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "JAVA_HOME", "TMPDIR") if name in os.environ}
    return {**kept, "SPARK_HOME": str(spark_home()), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[str]:
    """Start the cluster; yield its URL."""
    folder = tmp_path_factory.mktemp("cluster")
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, kind: str, *options: str) -> Path:
        log = folder / f"{name}.log"
        command = [str(spark_home() / "bin" / "spark-class"), f"org.apache.spark.deploy.{kind}", "--host", "127.0.0.1"]
        with log.open("wb") as sink:
            command += ["--webui-port", "0", *options]
            started.append(subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, cwd=folder))
        return log

    try:
        log = start("master", "master.Master", "--port", "0")
        url = wait_for(log, r"spark://127\.0\.0\.1:\d+")
        size = ["--cores", "1", "--memory", "2g"]
        logs = [
            start(f"worker-{n}", "worker.Worker", *size, "--work-dir", str(folder / f"work-{n}"), url) for n in (0, 1)
        ]
        for log in logs:
            wait_for(log, "Successfully registered with master")
        yield url
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=60)


def wait_for(log: Path, pattern: str) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        match = re.search(pattern, log.read_text(errors="replace"))
        if match:
            return match.group(0)
        time.sleep(0.2)
    raise AssertionError(f"{pattern} did not come:\n{log.read_text(errors='replace')[-3000:]}")


def submit(master: str, wheel: Path, environment: dict[str, str], folder: Path, job: Path, *options: str) -> str:
    folder.mkdir(exist_ok=True)
    command = [str(spark_home() / "bin" / "spark-submit"), "--master", master, "--driver-memory", "1g"]
    command += ["--executor-memory", "1g", "--py-files", str(wheel)]
    command += ["--conf", "spark.driver.host=127.0.0.1", "--conf", "spark.ui.enabled=false", str(job), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def test_the_wheel_is_what_runs(master: str, wheel: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "where.py").write_text(WHERE)
    text = submit(master, wheel, environment, tmp_path / "empty", tmp_path / "where.py")
    line = next(line for line in text.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    assert wheel.name in found["driver"]
    for file, folder, _ in found["executors"]:
        assert wheel.name in file and "/work-" in folder
    assert len({folder for _, folder, _ in found["executors"]}) == 2


def test_all_jobs(master: str, wheel: Path, environment: dict[str, str], tmp_path: Path) -> None:
    source, _ = write_digits(str(tmp_path / "table"), Config())
    output, cwd, jobs = tmp_path / "out", tmp_path / "empty", HERE / "jobs"
    options = ["--output", str(output), "--set", "train.epochs=3"]
    table = ["--input", source, "--id-col", "id", "--label-col", "label"]
    for job, stage in STAGES.items():
        submit(master, wheel, environment, cwd, jobs / f"{job}.py", *options, *(table if job == "neighbours" else []))
        assert (output / stage / "manifest.json").exists()
    assert pq.read_table(output / "embeddings" / "data").num_rows == 1797
    text = submit(master, wheel, environment, cwd, jobs / "run.py", *options, *table)
    assert text.count("already published, skipped") == 6
    assert set(verify(str(output))) == {"rows", *STAGES.values()}
    assert {path.stem for path in jobs.glob("*.py")} == {"run", *STAGES}, "a job that this test does not submit"
    assert list(cwd.iterdir()) == []


def test_doctor_looks_at_executors(master: str, wheel: Path, environment: dict[str, str], tmp_path: Path) -> None:
    job = tmp_path / "doctor.py"
    job.write_text("import sys\nfrom ivis_spark.cli import main\nsys.exit(main(['doctor', *sys.argv[1:]]))\n")
    text = submit(master, wheel, environment, tmp_path / "empty", job, "--output", str(tmp_path / "out"))
    assert "ok    executors: 2 tasks on" in text and "fail" not in text
