"""A driver killed half-way, and the same command again: every row is embedded once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import published

from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.serving.folder import ModelFolder, write_model

pytestmark = [pytest.mark.cluster, pytest.mark.spark, pytest.mark.slow]
FILES, ROWS = 40, 500


def start(tmp_path: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ivis_spark.cli", "embed", "--input", str(tmp_path / "table"), "--quiet"]
    command += ["--output", str(tmp_path / "run"), "--set", "embed.unit_bytes=1", "--master", "local[2]", *options]
    return subprocess.Popen(command, start_new_session=True)


def noted(folder: Path) -> list[Path]:
    """Return the records of finished units; a walk, unlike a glob, bears folders that vanish under it."""
    found = [Path(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".json")]
    return [path for path in found if path.parent.name == "units"]


def kill_when(process: subprocess.Popen[bytes], records: Path, least: int) -> None:
    deadline = time.monotonic() + 180
    try:
        while len(noted(records)) < least:
            assert process.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("into", ["stage", "target"])
def test_killed_driver(tmp_path: Path, into: str) -> None:
    X = np.random.default_rng(0).normal(size=(FILES * ROWS, 4)).astype(np.float32)
    (tmp_path / "table").mkdir()
    for number in range(FILES):
        rows = np.arange(number * ROWS, (number + 1) * ROWS)
        pq.write_table(pa.table({"id": rows, "features": X[rows].tolist()}), tmp_path / "table" / f"{number}.parquet")
    network = DenseNetwork((DenseLayer.of(np.random.default_rng(2).normal(size=(4, 2)), None, "tanh"),))
    serving = b'{"format": 1, "input_shape": [4], "n_outputs": 2, "features": ["features"]}'
    files = {"serving.json": serving, "dense.npz": network.to_bytes()}
    write_model(str(tmp_path / "run"), ModelFolder({"config": {}, "inputs": {}}, {}, files))
    target = ("--target", str(tmp_path / "target")) if into == "target" else ()
    records = tmp_path / "target" if into == "target" else tmp_path / "run"

    kill_when(start(tmp_path, *target), records, FILES // 4)
    assert not list((tmp_path / "target").glob("*.parquet"))
    assert not (tmp_path / "run" / "embeddings-table" / "manifest.json").exists()
    kill_when(start(tmp_path, *target), records, FILES // 2)
    kept = {path: path.stat().st_mtime_ns for path in noted(records)}
    last = start(tmp_path, *target)
    while last.poll() is None:
        for path, stamp in kept.items():
            assert not path.exists() or path.stat().st_mtime_ns == stamp, "a finished unit was done again"
        time.sleep(0.05)
    assert last.returncode == 0
    data = tmp_path / "target" if into == "target" else published(tmp_path / "run", "embeddings-table") / "data"
    found = pq.read_table(data).sort_by("id")
    np.testing.assert_array_equal(found["id"].to_numpy(), np.arange(FILES * ROWS))
    np.testing.assert_allclose(np.array(found["embedding"].to_pylist()), network(X), atol=1e-6)
