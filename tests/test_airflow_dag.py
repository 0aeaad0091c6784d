"""What the DAG file gives Airflow, with stand-ins for Airflow; tests/cluster/test_airflow.py uses a real one."""

from __future__ import annotations

import datetime
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from ivis_spark.cli.options import parse

FILE = Path(__file__).parent.parent / "jobs" / "airflow" / "ivis_pipeline.py"
RUN = types.SimpleNamespace(logical_date=datetime.datetime(2026, 1, 2), run_id="scheduled__2026-01-02")


class AirflowFailException(Exception):
    pass


class Operator:
    """A SparkSubmitOperator whose job ends with an exit code."""

    code = 0

    def __init__(self, **given: Any) -> None:
        self.given = given

    def execute(self, context: Any) -> None:
        if self.code:
            raise RuntimeError(f"Cannot execute: spark-submit x.py. Error code is: {self.code}.")

    def __rshift__(self, other: Any) -> None:
        pass


class Dag:
    """Keeps what it is given."""

    def __init__(self, **given: Any) -> None:
        self.given = given

    def __enter__(self) -> Dag:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def module(name: str, **content: Any) -> None:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        vars(sys.modules[name]).update(content)

    for name in ("airflow", "airflow.providers", "airflow.providers.apache", "airflow.providers.apache.spark"):
        module(name)
    module("airflow.providers.apache.spark.operators")
    module("airflow.providers.apache.spark.operators.spark_submit", SparkSubmitOperator=Operator)
    module("airflow.sdk", DAG=Dag, Asset=str, Param=lambda value, **_: value)
    module("airflow.sdk.exceptions", AirflowFailException=AirflowFailException)
    return runpy.run_path(str(FILE))


@pytest.mark.parametrize(
    ("code", "raised"),
    [(0, None), (2, AirflowFailException), (1, RuntimeError), (20, RuntimeError), (75, RuntimeError)],
)
def test_what_a_retry_cannot_help_is_not_retried(
    file: dict[str, Any], code: int, raised: type[Exception] | None
) -> None:
    task = file["tasks"][0]
    task.code = code
    if raised is None:
        task.execute({})
        return
    with pytest.raises(raised, match=f"Error code is: {code}"):
        task.execute({})


def test_command_lines_are_those_of_the_jobs(file: dict[str, Any]) -> None:
    variable = {
        "run": "s3a://runs/a", "new_rows": "s3a://new/{date}", "target": "s3a://out", "partition_by": "day",
        "embed_options": ["--id-col", "key"], "input": "s3a://in", "runs": "s3a://runs/", "options": ["--id-col", "id"],
    }  # fmt: skip
    found = parse(["embed", *file["embed_arguments"]({"target": "s3a://other"}, variable, RUN)])
    assert (found.output, found.input, found.target) == ("s3a://runs/a", "s3a://new/2026-01-02", "s3a://other")
    assert (found.mode, found.set, found.id_col) == ("replace", ["embed.partition_by=day"], "key")
    for stage in file["STAGES"]:
        found = parse([stage, *file["arguments"](stage, {}, variable, RUN)])
        assert (found.output, found.id_col) == ("s3a://runs/2026-01-02T000000", "id")
