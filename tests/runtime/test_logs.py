"""JSON log lines: each says its run and stage."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from ivis_spark.runtime import logs


@pytest.fixture(autouse=True)
def _restore() -> object:
    package = logging.getLogger("ivis_spark")
    before = package.level, package.propagate, list(package.handlers)
    yield
    package.setLevel(before[0])
    package.propagate = before[1]
    for handler in list(package.handlers):
        package.removeHandler(handler)
        handler.close()
    for handler in before[2]:
        package.addHandler(handler)


def test_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.start_run("nightly-1")
    logs.set_up(level=logging.WARNING, form="json", path=str(tmp_path / "log"))
    log = logging.getLogger("ivis_spark.somewhere")
    logs.enter_stage("neighbours")
    log.info("%d cells", 7)
    try:
        raise ValueError("a\nb")
    except ValueError:
        log.warning("failed", exc_info=True)
    info, warning = (json.loads(line) for line in (tmp_path / "log").read_text().splitlines())
    assert info.pop("time").endswith("Z")
    assert info == {
        "level": "INFO",
        "logger": "ivis_spark.somewhere",
        "pid": os.getpid(),
        "run_id": "nightly-1",
        "stage": "neighbours",
        "message": "7 cells",
    }
    assert "ValueError: a\nb" in warning["traceback"]
    console = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in console] == ["failed"]


def test_run_id_is_made_once() -> None:
    assert logs.start_run() != logs.start_run()
    assert logs.run_id() == logs.run_id()
