"""SIGTERM and Ctrl-C in the middle of each stage: the right exit code within seconds, one line, nothing half published.

The rerun ends the work.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ivis_spark.config import Config
from ivis_spark.demo import write_digits
from ivis_spark.operations.inspect import verify
from ivis_spark.storage import MARK

pytestmark = [pytest.mark.spark, pytest.mark.tf, pytest.mark.slow, pytest.mark.cluster]
FAST_EXIT_S = 10.0


@pytest.mark.parametrize(
    ("number", "code", "text"), [(signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGINT, 130, "interrupted")]
)
def test_signal_in_each_stage(tmp_path: Path, number: int, code: int, text: str) -> None:
    source, _ = write_digits(str(tmp_path / "table"), Config())
    output = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "ivis_spark.cli",
        "run",
        "--input",
        source,
        "--output",
        str(output),
        "--id-col",
        "id",
    ]
    command += ["--label-col", "label", "--set", "train.epochs=20", "--log-format", "json", "--run-id", "nightly"]
    for stage in ("rows", "neighbours", "triplets", "model", "embeddings", "report"):
        run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("{") and json.loads(line)["message"] == f"{stage}: started":
                break
        time.sleep(0.5)
        started = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # to Spark's processes too, as a terminal does
        else:
            run.send_signal(number)
        error = run.communicate(timeout=60)[1]
        assert run.returncode == code, error
        assert time.monotonic() - started < FAST_EXIT_S
        own = [line for line in error.splitlines() if not line.startswith("{")]
        assert len(own) == 1 and own[0].startswith(f"ivis-spark run: {text}; published stages are kept"), error
        assert not (output / stage / "manifest.json").exists()
        # Units that are embedded stay for the rerun; nothing else does.
        left = [path.name for path in (output / stage).glob("*")] + [path.name for path in output.glob(".lock*")]
        assert all(stage == "embeddings" and name.startswith("work-") for name in left), left
        if stage != "rows":
            verify(str(output))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    skipped = {line["stage"] for line in lines if line["message"].endswith("already published, skipped")}
    assert skipped == {"rows", "neighbours", "triplets", "model", "embeddings"}
    assert {line["run_id"] for line in lines} == {"nightly"}
    assert [path.name for path in output.iterdir() if path.name.startswith(".")] == [MARK]
    verify(str(output))
