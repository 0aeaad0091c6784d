"""Runs of the whole job on the digits, as processes that can be watched and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

STAGES = ("rows", "neighbours", "triplets", "model", "embeddings", "report")


class Run:
    """`ivis-spark run` in a process group of its own; its JSON log tells when a stage starts."""

    def __init__(self, source: str, output: Path, *options: str) -> None:
        command = [sys.executable, "-m", "ivis_spark.cli", "run", "--input", source, "--output", str(output)]
        command += ["--id-col", "id", "--label-col", "label", "--set", "train.epochs=4", "--log-format", "json"]
        pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        self.process = subprocess.Popen([*command, *options], **pipes)

    def lines(self) -> Iterator[str]:
        """Yield the messages of the log as they come."""
        assert self.process.stderr is not None
        self.text: list[str] = []
        for line in self.process.stderr:
            self.text.append(line)
            if line.startswith("{"):
                yield json.loads(line)["message"]

    def until(self, stage: str) -> None:
        for message in self.lines():
            if message == f"{stage}: started":
                return
        raise AssertionError("".join(self.text)[-3000:])

    def end(self) -> int:
        for _ in self.lines():
            pass
        return self.process.wait(timeout=60)

    def finish(self) -> None:
        assert self.end() == 0, "".join(self.text)[-3000:]

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=60)


def published(output: Path | str, stage: str) -> Path:
    """Return the folder of what a stage published."""
    folder = Path(str(output)) / stage
    return folder / json.loads((folder / "manifest.json").read_text())["folder"]


def embeddings(output: Path) -> Any:
    table = pq.read_table(published(output, "embeddings") / "data").sort_by("id")
    return np.array(table["embedding"].to_pylist(), dtype=np.float32)


def ids(table: Path | str) -> list[int]:
    """Return the ids of a Parquet table."""
    found: list[int] = pq.read_table(str(table).removeprefix("file://"), columns=["id"])["id"].to_pylist()
    return found
