"""One line out of Spark's accounts of errors. The accounts are shortened; their shape is Spark's."""

from __future__ import annotations

import pytest

from ivis_spark import errors
from ivis_spark.errors import ArtifactError, InputError, IvisError, raised_remotely
from ivis_spark.spark.causes import deepest_cause, task_errors

STACK = "\tat org.apache.spark.Some.method(Some.scala:1)\n\tat java.base/java.lang.Thread.run(Thread.java:840)\n"
LOST = (
    "An error occurred while calling o71.collectToPython.\n: org.apache.spark.SparkException: Job aborted due to stage "
    "failure: Task 0 in stage 1.0 failed 1 times, most recent failure: Lost task 0.0 in stage 1.0 (TID 1) "
    "(192.0.2.2 executor driver): "
)
PYTHON = (
    "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
    '  File "/x/worker.py", line 1225, in main\n    process()\n{error}\n\n' + STACK
)
ACCOUNTS = {
    "types of columns": (
        LOST + PYTHON.format(error="EOFError") + "Caused by: org.apache.spark.SparkException: Parquet column cannot be "
        "converted in file file:///data/my table/b.parquet. Column: [x], Expected: double, Found: INT64.\n" + STACK
        + "Caused by: org.apache.spark.Schema: column: [x], physicalType: INT64\n" + STACK + "\t... 1 more\n",
        "Schema: column: [x], physicalType: INT64 (reading file:///data/my table/b.parquet)",
    ),
    "not Parquet": (
        LOST + "java.lang.X: " + STACK + "Caused by: java.lang.RuntimeException: file:/t/b.parquet is not a Parquet "
        "file. Expected magic number\n" + STACK,
        "RuntimeException: file:/t/b.parquet is not a Parquet file. Expected magic number",
    ),
    "a plan": (
        "org.apache.spark.sql.AnalysisException: [UNRESOLVED_COLUMN] A column `x` cannot be resolved.;\n'Project ['x]\n"
        "+- Relation [id#0L] parquet\n\n" + STACK,
        "AnalysisException: [UNRESOLVED_COLUMN] A column `x` cannot be resolved.;",
    ),
    "a message on the next line": ("java.io.IOException: \n  disk gone\n" + STACK, "IOException: disk gone"),
    "no cause": (LOST + "java.io.IOException: broken pipe\n" + STACK, "IOException: broken pipe"),
    "a task's own error": (LOST + PYTHON.format(error="ValueError: no such thing"), "ValueError: no such thing"),
    "a cause without words": (
        LOST + "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)\n" + STACK
        + "Caused by: java.io.EOFException\n" + STACK,
        "SparkException: Python worker exited unexpectedly (crashed)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCOUNTS)
def test_the_deepest_cause_is_one_line(name: str) -> None:
    account, line = ACCOUNTS[name]
    assert str(deepest_cause(Exception(account))) == line


def test_an_error_that_is_not_sparks_is_its_own_cause() -> None:
    assert str(deepest_cause(KeyError("x"))) == "KeyError: 'x'"
    assert str(deepest_cause(OSError())) == "OSError: no message"
    assert len(str(deepest_cause(OSError("long " * 1000)))) <= 500


def raised_by(account: str) -> IvisError:
    with pytest.raises(IvisError) as caught, task_errors():
        raise RuntimeError(account)
    return caught.value


def test_files_that_cannot_be_read_are_the_inputs_fault() -> None:
    err = raised_by(ACCOUNTS["not Parquet"][0])
    assert isinstance(err, InputError) and err.exit_code == 2
    assert "file:/t/b.parquet is not a Parquet file" in str(err) and "\n" not in str(err)


def test_what_a_task_raised_on_purpose_is_raised() -> None:
    err = raised_by(LOST + PYTHON.format(error="ivis_spark.errors.ArtifactError: index/7.ann is torn"))
    assert isinstance(err, ArtifactError) and str(err) == "index/7.ann is torn"
    assert "No space left on device" in str(raised_by(LOST + "java.io.IOException: No space left on device\n" + STACK))


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="mine"), task_errors():
        raise ValueError("mine")
    with pytest.raises(InputError) as caught, task_errors():
        raise InputError("is not a Parquet file \tat ")
    assert str(caught.value) == "is not a Parquet file \tat "


@pytest.mark.parametrize("name", [n for n in vars(errors) if n.endswith("Error")])
def test_errors_that_travel_keep_their_class(name: str) -> None:
    for account in (f"UnknownError: {name}: words\n at x", f"ivis_spark.errors.{name}: words"):
        found = raised_remotely(account)
        assert type(found).__name__ == name and str(found) == "words"
    assert raised_remotely(f"sklearn.exceptions.{name}: words") is None
