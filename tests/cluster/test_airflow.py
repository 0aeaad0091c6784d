"""The DAG under a real Airflow: it loads without pyspark, runs all stages, and goes on where a killed stage stopped.

Airflow lives in an environment of its own, which `make test-airflow` builds; $AIRFLOW_PYTHON names it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from clusters import ROOT, spark_home

from ivis_spark.config import Config
from ivis_spark.demo import write_digits
from ivis_spark.operations.inspect import verify

AIRFLOW = os.environ.get("AIRFLOW_PYTHON", str(ROOT / "build" / "venv-airflow" / "bin" / "python"))
STAGES = ("rows", "neighbours", "triplets", "model", "embeddings", "report")
DATE = "2026-01-02"

pytestmark = [
    pytest.mark.spark,
    pytest.mark.tf,
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(not Path(AIRFLOW).exists(), reason="no Airflow; make test-airflow builds it"),
]

LOAD = """
import json, sys
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag
bag = DagBag(sys.argv[1])
dag = bag.dags["ivis_pipeline"]
loaded = [name for name in ("pyspark", "tensorflow", "ivis_spark", "numpy") if name in sys.modules]
embed = [task.task_id for task in bag.dags["ivis_embed"].tasks]
tasks = {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks}
outlets = {task.task_id: [outlet.uri for outlet in task.outlets] for task in dag.tasks if task.outlets}
found = {"errors": bag.import_errors, "loaded": loaded, "tasks": tasks, "outlets": outlets, "embed": embed}
print("RESULT", json.dumps(found))
"""

EVENTS = """
import json
try:
    from airflow.models.asset import AssetEvent as Event
except ImportError:
    from airflow.models.dataset import DatasetEvent as Event
from airflow.utils.session import create_session
with create_session() as session:
    print("RESULT", json.dumps([event.extra for event in session.query(Event)]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An empty Airflow home with its database, and a Spark connection to this machine's cores."""
    folder = tmp_path_factory.mktemp("airflow")
    made = {
        "PATH": os.pathsep.join([str(Path(AIRFLOW).parent), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(folder),
        "JAVA_HOME": os.environ.get("JAVA_HOME", ""),
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "jobs" / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[2]"}),
        "SPARK_HOME": str(spark_home()),
        "PYSPARK_PYTHON": sys.executable,
    }
    subprocess.run([AIRFLOW, "-m", "airflow", "db", "migrate"], env=made, check=True, capture_output=True, timeout=600)
    return made


def run_in_airflow(program: str, environment: dict[str, str], *arguments: str) -> Any:
    command = [AIRFLOW, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def test_dag_loads_without_pyspark(environment: dict[str, str]) -> None:
    found = run_in_airflow(LOAD, environment, str(ROOT / "jobs" / "airflow"))
    assert found["outlets"] == {"embed": ["x-ivis-spark://embeddings"]}
    assert found["errors"] == {} and found["loaded"] == [] and found["embed"] == ["embed"]
    assert found["tasks"] == {
        "neighbours": ["triplets"],
        "triplets": ["train"],
        "train": ["embed"],
        "embed": ["evaluate"],
        "evaluate": [],
    }


def start(
    environment: dict[str, str], variable: dict[str, object], params: dict[str, object], log: Path
) -> subprocess.Popen[bytes]:
    settings = {**environment, "AIRFLOW_VAR_IVIS_SPARK": json.dumps(variable)}
    command = [AIRFLOW, "-m", "airflow", "dags", "test", "ivis_pipeline", DATE, "--conf", json.dumps(params)]
    with log.open("wb") as sink:
        return subprocess.Popen(command, env=settings, stdout=sink, stderr=sink, start_new_session=True)


def wait_for(path: Path, pattern: str, run: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and run.poll() is None:
        if any(path.glob(pattern)):
            return
        time.sleep(0.1)
    raise AssertionError(f"{path}/{pattern} did not come:\n{log.read_text(errors='replace')[-4000:]}")


def end_all(run: subprocess.Popen[bytes]) -> None:
    """Kill a run with all that it started, as a lost worker machine would be."""
    family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    for process in family:
        process.send_signal(signal.SIGKILL)
    run.wait(timeout=30)
    psutil.wait_procs(family, timeout=30)


def test_killed_in_a_stage_and_run_again(tmp_path: Path, environment: dict[str, str], wheel: Path) -> None:
    source, _ = write_digits(str(tmp_path / "table"), Config())
    options = ["--id-col", "id", "--label-col", "label", "--set", "train.epochs=6"]
    params = {"input": source}  # which wins over the Variable's
    variable = {"input": str(tmp_path / "nowhere"), "runs": str(tmp_path / "runs"), "options": options}
    variable |= {"jobs": str(ROOT / "jobs"), "py_files": str(wheel)}
    folder = tmp_path / "runs" / f"{DATE}T000000"
    killed = start(environment, variable, params, tmp_path / "first.log")
    wait_for(folder / "model", "2*", killed, tmp_path / "first.log")
    end_all(killed)
    finished = {stage: (folder / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES[:3]}
    assert not (folder / "model" / "manifest.json").exists()
    again = start(environment, variable, params, tmp_path / "second.log")
    assert again.wait(timeout=900) == 0, (tmp_path / "second.log").read_text(errors="replace")[-6000:]
    assert finished == {stage: (folder / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES[:3]}
    assert set(verify(str(folder))) == set(STAGES)
    text = (tmp_path / "second.log").read_text(errors="replace")
    assert "neighbours: already published, skipped" in text and "triplets: already published, skipped" in text
    before, after = (
        {json.loads((folder / stage / "manifest.json").read_text())["info"]["run_id"] for stage in stages}
        for stages in (STAGES[:3], STAGES[3:])
    )
    events = run_in_airflow(EVENTS, environment)
    assert [event["uri"] for event in events] == [f"{folder}/embeddings/manifest.json"]
    assert len(before) == len(after) == 1 and before != after  # Airflow's ids of its two runs
    assert all(run_id.startswith("manual__") for run_id in before | after)
