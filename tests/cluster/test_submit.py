"""Every job under spark-submit on a real standalone cluster.

The conditions are a cluster's: the package arrives as a wheel, named .zip, by --py-files, nothing has this checkout on
its path, executors work in folders of their own, the driver's JVM has 1 GB, and it starts in an empty folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import venv_pack
from clusters import ROOT, Cluster, environment, spark_home
from runs import published

from ivis_spark.config import Config
from ivis_spark.demo import write_digits
from ivis_spark.operations.inspect import verify

STAGES = {
    "neighbours": "neighbours",
    "triplets": "triplets",
    "train": "model",
    "embed": "embeddings",
    "evaluate": "report",
}
JOBS = ROOT / "jobs"
TABLE = ["--id-col", "id", "--label-col", "label"]
# One rank a worker: the package must reach them too, and they are processes of their own.
TRAINING = ["--set", "train.epochs=3", "--set", "train.num_ranks=2", "--set", "triplets.block_rows=256"]
TRAINING += ["--set", "triplets.file_blocks=2"]

pytestmark = [pytest.mark.cluster, pytest.mark.horovod, pytest.mark.spark, pytest.mark.tf, pytest.mark.slow]

WHERE = """
import json, os, sys
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
def where(_):
    import ivis_spark, numpy, time
    time.sleep(1)
    yield {"package": ivis_spark.__file__, "numpy": numpy.__file__, "folder": os.getcwd()}
import ivis_spark
found = context.parallelize(range(4), 4).mapPartitions(where).collect()
settings = dict(context.getConf().getAll())
print("RESULT", json.dumps({"driver": ivis_spark.__file__, "executors": found, "settings": settings}))
"""

Submit = Callable[..., str]


@pytest.fixture
def cluster_environment() -> dict[str, str]:
    """No path of this checkout; Spark's Python is the one that has the packages."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "JAVA_HOME", "TMPDIR") if name in os.environ}
    return {**kept, "SPARK_HOME": str(spark_home()), "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}


@pytest.fixture
def submit(wheel: Path, cluster_environment: dict[str, str], tmp_path: Path) -> Submit:
    """Run spark-submit in an empty folder, with options of its own, a job and the job's options."""
    folder = tmp_path / "empty"
    folder.mkdir()

    def run(spark: list[str], job: Path, *options: str, **variables: str) -> str:
        command = [str(spark_home() / "bin" / "spark-submit"), *spark, "--py-files", str(wheel)]
        command += ["--conf", "spark.ui.enabled=false", str(job), *options]
        env = {**cluster_environment, **variables}
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=900, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        assert list(folder.iterdir()) == []
        return done.stdout + done.stderr

    return run


@pytest.fixture
def where(submit: Submit, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Ask a submitted job where it and its executors found the package, and which settings hold."""
    job = tmp_path / "where.py"
    job.write_text(WHERE)

    def ask(spark: list[str], **variables: str) -> dict[str, Any]:
        text = submit(spark, job, **variables)
        line = next(line for line in text.splitlines() if line.startswith("RESULT "))
        return dict(json.loads(line.removeprefix("RESULT ")))

    return ask


def on(cluster: Cluster) -> list[str]:
    return ["--master", cluster.url, "--conf", "spark.driver.host=127.0.0.1"]


def small(cluster: Cluster) -> list[str]:
    return [*on(cluster), "--driver-memory", "1g", "--executor-memory", "1g"]


def test_the_wheel_is_what_runs(cluster: Cluster, where: Callable[..., dict[str, Any]]) -> None:
    found = where(small(cluster))
    assert "ivis_spark.zip" in found["driver"]
    for executor in found["executors"]:
        assert "ivis_spark.zip" in executor["package"] and "/worker-" in executor["folder"]
    assert len({executor["folder"] for executor in found["executors"]}) == 2


def test_all_jobs(cluster: Cluster, submit: Submit, tmp_path: Path) -> None:
    source, _ = write_digits(str(tmp_path / "table"), Config())
    output, table = tmp_path / "out", ["--input", source, *TABLE]
    options = ["--output", str(output), *TRAINING]
    for job, stage in STAGES.items():
        submit(small(cluster), JOBS / f"{job}.py", *options, *(table if job == "neighbours" else []))
        assert (output / stage / "manifest.json").exists()
    assert pq.read_table(published(output, "embeddings") / "data").num_rows == 1797
    assert json.loads((output / "model" / "manifest.json").read_text())["info"]["ranks"] == 2
    submit(small(cluster), JOBS / "query.py", *options, *table, "--name", "queries")
    assert pq.read_table(published(output, "queries") / "data").num_rows == 1797
    assert set(verify(str(output))) == {"rows", *STAGES.values(), "queries"}
    assert {path.stem for path in JOBS.glob("*.py")} == {"run", "query", *STAGES}, "submit it here too"


def test_a_packed_environment(
    cluster: Cluster, submit: Submit, where: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Executors have nothing but Spark; Python's packages, Horovod too, come with the job."""
    archive = tmp_path / "environment.tar.gz"
    unneeded = [("exclude", f"*/site-packages/{name}/*") for name in ("pyspark", "onnx*", "cmake", "clang", "scipy")]
    filters = [*unneeded, ("exclude", "*__editable__*")]  # this checkout
    venv_pack.pack(prefix=sys.prefix, output=str(archive), filters=filters, compress_level=0)
    packed = [*small(cluster), "--archives", f"{archive}#environment"]
    pythons = {"PYSPARK_PYTHON": "./environment/bin/python", "PYSPARK_DRIVER_PYTHON": sys.executable}
    for executor in where(packed, **pythons)["executors"]:
        assert executor["numpy"].startswith(f"{executor['folder']}/environment/")
    source, _ = write_digits(str(tmp_path / "table"), Config())
    output = tmp_path / "out"
    submit(packed, JOBS / "run.py", "--input", source, "--output", str(output), *TABLE, *TRAINING, **pythons)
    assert set(verify(str(output))) == {"rows", *STAGES.values()}
    archive.unlink()
    for unpacked in tmp_path.glob("worker-*/*/*/environment"):  # gigabytes, which pytest would keep
        shutil.rmtree(unpacked)


def test_doctor_looks_at_executors(cluster: Cluster, submit: Submit, tmp_path: Path) -> None:
    job = tmp_path / "doctor.py"
    job.write_text("import sys\nfrom ivis_spark.cli import main\nsys.exit(main(['doctor', *sys.argv[1:]]))\n")
    text = submit(small(cluster), job, "--output", str(tmp_path / "out"))
    assert "ok    executors: 2 tasks on" in text and "fail" not in text


def test_doctor_sees_that_executors_have_storage_of_their_own() -> None:
    line = [sys.executable, "-m", "ivis_spark.cli", "doctor", "--master", "local-cluster[2,1,1024]"]
    line += ["--output", "memory://doctor"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "ok    executors: 2 tasks on" in done.stdout
    assert "fail  shared storage: memory://doctor is a different place on executors" in done.stdout


def settings_of(file: Path) -> dict[str, str]:
    lines = [line.split() for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {name: value for name, value in lines}


def submit_with_settings(name: str, master: list[str], submit: Submit, where: Any, tmp_path: Path) -> None:
    """All settings of a file of conf/ hold in a job, a run goes through with them, and the next finds it done."""
    file = ROOT / "conf" / f"spark-defaults-{name}.conf"
    spark = ["--properties-file", str(file), *master]
    wanted = settings_of(file)
    assert wanted and wanted.items() <= where(spark)["settings"].items()
    source, _ = write_digits(str(tmp_path / "table"), Config())
    output = tmp_path / "out"
    command = (spark, JOBS / "run.py", "--input", source, "--output", str(output), *TABLE, *TRAINING)
    submit(*command)
    assert set(verify(str(output))) == {"rows", *STAGES.values()}
    assert submit(*command).count("already published, skipped") == 6


def test_settings_of_a_laptop(submit: Submit, where: Any, tmp_path: Path) -> None:
    submit_with_settings("laptop", [], submit, where, tmp_path)


@pytest.mark.parametrize("cluster", [(4, "8g")], indirect=True)
def test_settings_of_a_cpu_cluster(cluster: Cluster, submit: Submit, where: Any, tmp_path: Path) -> None:
    """Workers that offer what the file asks for: Spark takes their word for it."""
    submit_with_settings("cpu", on(cluster), submit, where, tmp_path)
