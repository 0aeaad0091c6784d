"""Whether Spark's Python workers can run this package, known before a job needs them."""

from __future__ import annotations

import re
import sys

from pyspark import SparkContext
from pyspark.sql import SparkSession

from ivis_spark.errors import DependencyError
from ivis_spark.spark.causes import account_of

_LACKING = re.compile(r"No module named '(\w+)")
_OTHER_PYTHON = ("Python in worker has different version", "PYTHON_VERSION_MISMATCH")
_NOT_STARTED = "Cannot run program"
_checked: set[str] = set()


def check_workers(spark: SparkSession) -> None:
    """Run a task that imports what embedding needs, once a Spark application.

    Runs on: driver, and a task of one executor.

    Raises:
        DependencyError: if Python workers lack the package or one that it needs, have another Python, or do not start.
    """
    context = spark.sparkContext
    if context.applicationId in _checked:
        return
    try:
        context.parallelize([0], 1).foreach(_import_package)
    except Exception as err:
        reason = _reason(account_of(err), context)
        if reason is None:
            raise
        raise DependencyError(
            f"{reason}. On one machine set os.environ['PYSPARK_PYTHON'] = sys.executable before the session starts; on "
            "a cluster install ivis_spark[spark] on every node, or ship an environment: spark.archives="
            "environment.tar.gz#environment and PYSPARK_PYTHON=./environment/bin/python"
        ) from err
    _checked.add(context.applicationId)


def _reason(text: str, context: SparkContext) -> str | None:
    worker = f"Python workers run {context.pythonExec!r}"
    driver = f"the driver {sys.executable} ({sys.version_info.major}.{sys.version_info.minor})"
    if lacking := _LACKING.search(text):
        return f"{worker}, which lacks the package {lacking[1]}; {driver} has it"
    if any(sign in text for sign in _OTHER_PYTHON):
        return f"{worker}, which is a different Python from {driver}"
    if _NOT_STARTED in text:
        return f"{worker}, which does not start; {driver} does"
    return None


def _import_package(_: int) -> None:
    import pandas  # noqa: F401
    import pyarrow  # noqa: F401
