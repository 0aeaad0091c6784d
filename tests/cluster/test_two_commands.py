"""Two commands at once, in two processes that die at any operation: nothing published is lost, doubled or half."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_table import Fault, FaultTable
from object_store import s3_bucket
from two_commands import FILES, ROWS, commands

from ivis_spark import storage
from ivis_spark.errors import ArtifactError
from ivis_spark.operations.clean import clean
from ivis_spark.operations.inspect import verify
from ivis_spark.runtime import lock
from ivis_spark.storage import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.faults]

WORKER = Path(__file__).parent.parent / "helpers" / "two_commands.py"
SECONDS, ROUNDS = 5.0, 5
PAIRS = [
    ("neighbours", "neighbours"),
    ("neighbours", "clean"),
    ("neighbours", "embed"),
    ("train", "clean"),
    ("train", "neighbours"),
    ("embed", "embed"),
    ("embed", "embed other"),
    ("embed", "clean"),
    ("query", "query"),
    ("query", "neighbours"),
    ("query", "clean"),
    ("evaluate", "evaluate"),
    ("evaluate", "embed"),
    ("evaluate", "clean"),
    ("embed --target", "embed --target"),
]


@pytest.fixture(params=["disk", "copying", "hdfs-like", "s3 over http"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run folder on some storage that both processes reach."""
    monkeypatch.setattr(lock, "_SETTLE_S", 0.3)
    if request.param != "s3 over http":
        schemes = {"disk": "", "copying": "copying://", "hdfs-like": "renaming://"}
        yield f"{schemes[request.param]}{tmp_path}/out"
        return
    with s3_bucket(monkeypatch) as bucket:
        yield f"{bucket}/out"


def run(root: str, pair: tuple[str, str], fault: Fault) -> list[str]:
    """Do two commands at once again and again, each started again when it died; return what ended well."""
    ended: list[str] = []
    until, seed = time.monotonic() + SECONDS, 0
    running: dict[int, subprocess.Popen[str]] = {}
    while time.monotonic() < until or running:
        for place, command in enumerate(pair):
            worker = running.get(place)
            if worker is not None and worker.poll() is not None:
                output, error = worker.communicate()
                assert worker.returncode in (0, 9), error[-3000:]
                ended += output.split()
                del running[place]
            if place not in running and time.monotonic() < until:
                seed += 1
                line = [sys.executable, str(WORKER), root, command, str(seed), str(ROUNDS)]
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
                running[place] = subprocess.Popen(line, text=True, **pipes)  # type: ignore[call-overload]
        look(root, fault)
        time.sleep(0.1)
    return ended


def look(root: str, fault: Fault) -> None:
    """Count stages that are published and not whole; one that is replaced meanwhile is looked at another time."""
    folder = RunFolder(root)
    for stage in folder.published():
        before = folder.manifest(stage)
        try:
            folder.require(stage, "run")
        except (ArtifactError, FileNotFoundError):
            fault.half = (fault.half or 0) + (folder.manifest(stage) == before)


def rows(uri: str, files: list[str]) -> Counter[str]:
    return Counter(word for name in files for word in storage.read_json(storage.join(uri, name)))


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_two_commands_at_once(
    root: str, table: FaultTable, pair: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    where = request.node.callspec.params["root"]
    with table.fault(f"two at once, both may die: {' and '.join(pair)} ({where})") as fault:
        RunFolder(root).claim()
        fault.half = 0
        ended = run(root, pair, fault)
        assert ended, "nothing ended well"
        with fault.attempt(len(ended)):
            for command in set(pair) - {"clean"}:  # what died is ended, or done again, by the next command
                commands(root, f"last{command[:5]}")[command]()
            clean(root)
            folder = RunFolder(root)
            assert not any(folder.garbage(stage) for stage in folder.stages())
            for stage in folder.published():
                manifest = folder.require(stage, "run")
                fault.compare(
                    rows(folder.uri(manifest), [record["path"] for record in manifest.files]).elements(),
                    [manifest.spec["config"]["text"]] * ROWS * FILES,
                )
            if folder.published():
                verify(root)
            if "embed --target" in pair:
                uri = f"{root}-table"
                found = rows(uri, [name for name, _ in storage.list_files(uri) if not name.startswith("_ivis_spark")])
                fault.compare(found.elements(), [text for text in found for _ in range(ROWS * FILES)])
                assert {*ended, "lastembed"} <= found.keys()
