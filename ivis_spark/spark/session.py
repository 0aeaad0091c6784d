"""Gets or starts a Spark session, and shows the progress of Spark's jobs."""

from __future__ import annotations

import contextlib
import locale
import logging
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping

from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession

from ivis_spark.core.blas import VARIABLE, wrong_core
from ivis_spark.core.sizes import BATCH_BYTES, SPLIT_BYTES
from ivis_spark.errors import ConfigError, InputError, IvisError
from ivis_spark.progress import step
from ivis_spark.spark.environment import check_variables, ensure_java
from ivis_spark.spark.vectors import BATCH_ROWS
from ivis_spark.spark.watching import described

log = logging.getLogger(__name__)

_BATCH_BYTES = "spark.sql.execution.arrow.maxBytesPerBatch"  # from Spark 4.0 on; before, it has no effect
_SHUFFLE_TASKS = "spark.sql.shuffle.partitions"
_FIRST_SHUFFLE_TASKS = "spark.sql.adaptive.coalescePartitions.initialPartitionNum"  # wins, where it is set

# What a session on one machine needs beside Spark's defaults. A cluster's own settings win over these.
_LOCAL_SETTINGS = {
    "spark.driver.memory": "2g",  # rows live in Parquet and in Python workers; the JVM only moves them
    "spark.driver.host": "localhost",  # a laptop's host name may not resolve
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.showConsoleProgress": "false",  # ours shows the stage's name and goes to the log file too
    _SHUFFLE_TASKS: "8",  # 200 tiny tasks cost more than they do
    BATCH_ROWS: "2000",  # 2,000 x 784 float32 is 6 MB
    "spark.executorEnv.LC_ALL": "C.UTF-8",
}

# Java compiles with all optimisations what is called this often or loops this often, ten times its own numbers: it
# spends most of a short run's CPU on that, for code that is then hardly used; in a long one it is done seconds later.
_JAVA_COMPILES_LATER = (
    "-XX:Tier4InvocationThreshold=50000 -XX:Tier4MinInvocationThreshold=6000 "
    "-XX:Tier4CompileThreshold=150000 -XX:Tier4BackEdgeThreshold=400000"
)

# Java's log as lines like ours. What keeps it from being written, as a full disk, is not said on the console.
_LOG4J2 = """\
status = fatal
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = {path}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = {layout}
"""
_JAVA_LOG_TEXT = "%d{yyyy-MM-dd HH:mm:ss,SSS}{UTC}Z PID %p{WARN=WARNING} %c{1}: %m%n%ex"
_JAVA_LOG_JSON = (
    '{"time": "%d{yyyy-MM-dd\'T\'HH:mm:ss.SSS}{UTC}Z", "level": "%p{WARN=WARNING}", "logger": "%c", "pid": PID, '
    '"message": "%enc{%m}{JSON}", "traceback": "%enc{%ex}{JSON}"}%n'
)


def get_session(
    app_name: str,
    *,
    master: str | None = None,
    settings: dict[str, str] | None = None,
    log_file: str | None = None,
    log_as_json: bool = False,
) -> SparkSession:
    """Return the running session, or start one.

    Under `spark-submit` and in notebooks the existing session is used. Without one, and without `master`, Spark runs in
    this process on all cores.

    Runs on: driver.

    Args:
        app_name: Name shown in Spark's UI.
        master: Spark master URL; None leaves the choice to the environment.
        settings: Spark settings that override all others.
        log_file: File for the log of a JVM started here; None leaves it on the console.
        log_as_json: Whether that log is a JSON object per line.

    Returns:
        The session.

    Raises:
        DependencyError: if there is no Java that this PySpark supports, or SPARK_HOME or PYSPARK_PYTHON is wrong.
        IvisError: if called inside a task.

    Example:
        >>> from ivis_spark.spark.session import get_session
        >>> get_session("my job").range(3).count()
        3
    """
    if TaskContext.get() is not None:
        raise IvisError("a Spark session was requested inside a task; only the driver has one")
    if (master or (settings or {}).get("spark.master") or "").startswith("sc://"):
        raise ConfigError(
            f"--master {master or (settings or {})['spark.master']} is Spark Connect, but stages use Spark's "
            f"executors directly: pass a classic master. " + CONNECT_CAN
        )
    active = SparkSession.getActiveSession()
    if active is not None:
        return refuse_connect(active, "a stage")
    ensure_java()
    builder = SparkSession.builder.appName(app_name)
    chosen = dict(settings or {})
    if "PYSPARK_GATEWAY_PORT" in os.environ or "DATABRICKS_RUNTIME_VERSION" in os.environ:  # spark-submit, a notebook
        with _own_interrupts():
            return _configured(builder, chosen).getOrCreate()
    if locale.getlocale(locale.LC_CTYPE)[1] != "UTF-8":  # else Java finds no file whose name is beyond ASCII
        os.environ["LC_ALL"] = "C.UTF-8"
    master = master or chosen.get("spark.master") or "local[*]"
    check_variables(local=master.startswith("local"))
    if master.startswith("local"):
        chosen = {**_LOCAL_SETTINGS, **chosen}
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else workers are whatever `python3` is on PATH
        if VARIABLE not in os.environ and (found := wrong_core()) is not None:
            chosen.setdefault(f"spark.executorEnv.{VARIABLE}", found[1])
    with _own_interrupts(), _java_logging(log_file, as_json=log_as_json) as log_options:
        options = [*log_options, *([_JAVA_COMPILES_LATER] if master.startswith("local") else [])]
        if options:
            chosen.setdefault("spark.driver.defaultJavaOptions", " ".join(options))
        session = _configured(builder.master(master), chosen).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def end_quietly(spark: SparkSession) -> None:
    """Cancel all jobs and silence Java's log, when the process is being ended. Runs on: driver, any thread."""
    with contextlib.suppress(Exception):  # a Java that is gone needs neither
        spark.sparkContext.setLogLevel("OFF")
        spark.sparkContext.cancelAllJobs()


def stop_quietly() -> None:
    """Let spark-submit, which stops Spark after the command, not log that below its last line. Runs on: driver."""
    active = SparkSession.getActiveSession()
    if active is not None and "PYSPARK_GATEWAY_PORT" in os.environ:
        with contextlib.suppress(Exception):  # as above
            active.sparkContext.setLogLevel("WARN")


def _configured(builder: SparkSession.Builder, settings: dict[str, str]) -> SparkSession.Builder:
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Keep a handler of SIGINT that is not Python's own.

    PySpark puts its own in the place of any: it talks to Java on the connection that it interrupted, which breaks both.
    """
    handler = signal.getsignal(signal.SIGINT)
    yield
    if handler is not signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _java_logging(path: str | None, *, as_json: bool) -> Iterator[list[str]]:
    """Yield the option with which a Java that starts now appends its log to a file; none without a file."""
    if path is None:
        yield []
        return
    layout = (_JAVA_LOG_JSON if as_json else _JAVA_LOG_TEXT).replace("PID", str(os.getpid()))
    with tempfile.NamedTemporaryFile("w", suffix=".properties", prefix="ivis-spark-log4j2-", encoding="utf-8") as file:
        file.write(_LOG4J2.format(path=_in_properties(os.path.abspath(path)), layout=layout))
        file.flush()
        yield [f'"-Dlog4j2.configurationFile={file.name}"']


def _in_properties(text: str) -> str:
    """Return text as a file of Java properties has it, whose characters are those of Latin-1."""
    units = text.replace("\\", "\\\\").encode("utf-16-be")
    pairs = zip(units[::2], units[1::2], strict=True)
    return "".join(chr(low) if high == 0 and low < 128 else f"\\u{high:02x}{low:02x}" for high, low in pairs)


CONNECT_CAN = "Spark Connect supports IvisModel (transform, save, load), EmbeddingEvaluator and Pipeline.evaluate"


def is_connect(spark: SparkSession) -> bool:
    """Tell whether a session is one of Spark Connect, which has no executors to speak to directly."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def refuse_connect(spark: SparkSession, what: str) -> SparkSession:
    """Return a session that is not one of Spark Connect.

    Raises:
        ConfigError: if it is; says what works there.
    """
    if is_connect(spark):
        raise ConfigError(
            f"{what} uses Spark's executors directly, which Spark Connect does not support: use a classic session. "
            f"{CONNECT_CAN}"
        )
    return spark


def check_batch(frame: DataFrame, what: str) -> None:
    """Check that a DataFrame can be fitted on.

    Raises:
        ConfigError: if it is one of Spark Connect.
        InputError: if it is a stream.
    """
    refuse_connect(frame.sparkSession, what)
    if frame.isStreaming:
        raise InputError(
            f"{what} takes a batch table, not a stream: write rows of the stream to a table, fit on that, and embed "
            "the stream with the model's transform"
        )


def is_local(spark: SparkSession) -> bool:
    """Tell whether driver and executor are one process; a local-cluster has executors of its own."""
    return str(spark.sparkContext.master).partition("[")[0] == "local"


@contextlib.contextmanager
def arrow_batches(spark: SparkSession, row_bytes: int, *, most: int | None = None) -> Iterator[None]:
    """Let the Arrow batches of a block hold no more rows than take 64 MiB. Runs on: driver.

    Spark before 4.0 bounds only the rows of a batch; later ones bound the bytes too, of rows that are larger than most.

    Args:
        spark: The session, whose jobs of other threads have these batches too.
        row_bytes: What a row takes, about.
        most: Rows of a batch at most; the session's own number if left out.
    """
    usual, rows = int(spark.conf.get(BATCH_ROWS) or 0), max(1, BATCH_BYTES // max(1, row_bytes))
    rows = min(rows, most or (usual if usual > 0 else rows))  # Spark takes 0 and less for no limit
    with _set_for_a_while(spark, {BATCH_ROWS: rows, _BATCH_BYTES: BATCH_BYTES}):
        yield


@contextlib.contextmanager
def arrow_batch_rows(spark: SparkSession, rows: int) -> Iterator[None]:
    """Set the rows of an Arrow batch for a while. Runs on: driver."""
    with _set_for_a_while(spark, {BATCH_ROWS: rows}):
        yield


@contextlib.contextmanager
def shuffles_of(spark: SparkSession, n_bytes: float) -> Iterator[None]:
    """Let the shuffles of a block have so many tasks that none gets more than 128 MiB on average. Runs on: driver.

    Spark's own number of tasks is the same for any table; where it is higher, it stays.

    Args:
        spark: The session, whose jobs of other threads have these tasks too.
        n_bytes: What is shuffled, about.
    """
    tasks = shuffle_tasks(n_bytes, str(spark.conf.get(_SHUFFLE_TASKS)))
    names = [_SHUFFLE_TASKS] + [_FIRST_SHUFFLE_TASKS] * (spark.conf.get(_FIRST_SHUFFLE_TASKS, None) is not None)
    with _set_for_a_while(spark, {} if tasks is None else dict.fromkeys(names, tasks)):
        yield


def shuffle_tasks(n_bytes: float, usual: str) -> int | None:
    """Return how many tasks a shuffle of so many bytes needs, None if the usual number is enough.

    On Databricks that may be `auto`, which cannot know what comes out of a Python function: it is enough for one task.
    """
    tasks = math.ceil(n_bytes / SPLIT_BYTES)
    return tasks if tasks > (int(usual) if usual.isdigit() else 1) else None


@contextlib.contextmanager
def _set_for_a_while(spark: SparkSession, settings: Mapping[str, int]) -> Iterator[None]:
    before = {name: spark.conf.get(name, None) for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(name, str(value))
        yield
    finally:
        for name, former in before.items():
            if former is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, former)


def describe_job(spark: SparkSession, text: str) -> None:
    """Name the Spark jobs that follow, in Spark's UI and in the progress lines."""
    described["text"] = text
    if is_connect(spark):
        return
    spark.sparkContext.setJobDescription(text)


@contextlib.contextmanager
def job_step(spark: SparkSession, name: str, text: str) -> Iterator[None]:
    """Name the Spark jobs of a block, and time it as a `step`."""
    describe_job(spark, text)
    with step(name, text):
        yield
