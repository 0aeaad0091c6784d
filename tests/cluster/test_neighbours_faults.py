"""The neighbours stage under accidents on a real local-cluster: the same table, whole files, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ivis_spark.serving.index import PartitionedIndex

pytestmark = [pytest.mark.spark, pytest.mark.cluster]
PROGRAM = Path(__file__).parent / "build_under_fault.py"


def build(folder: Path, fault: str) -> tuple[dict, pa.Table]:
    """Build in a driver of its own; return what it tells and the table, after looking at what it left."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), fault], capture_output=True, text=True, env=environment, timeout=600
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads(lines[0].removeprefix("RESULT "))
    assert sorted(os.listdir(folder / "out")) == ["data", "index"]
    index = json.loads((folder / "out" / "index" / "index.json").read_text())
    named = {file["path"] for region in index["regions"] for file in region["files"].values()}
    named |= {record["path"] for record in index["quantiser"]} | {"index.json"}
    assert named == set(os.listdir(folder / "out" / "index"))
    assert not [name for _, names, _ in os.walk(folder) for name in names if name.startswith("ivis-spark-")]
    ids, distances = PartitionedIndex.load(str(folder / "out" / "index")).query(np.zeros((3, 24)), 10, exact=True)
    assert np.isfinite(distances).all() and ids.shape == (3, 10)  # reads every leaf
    return told, pq.read_table(folder / "out" / "data").sort_by("id")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    told, table = build(tmp_path_factory.mktemp("calm") / "none", "none")
    assert not told["killed"] and told["rows"] == 24_000 == table.num_rows and told["recall"] >= 0.9
    return table


@pytest.mark.parametrize("fault", ["count", "exact", "assign", "search"])
def test_a_killed_executor_changes_nothing(undisturbed: pa.Table, tmp_path: Path, fault: str) -> None:
    told, table = build(tmp_path / fault, fault)
    assert told["killed"].startswith(fault)
    assert table.equals(undisturbed)


def test_racing_attempts_change_nothing(undisturbed: pa.Table, tmp_path: Path) -> None:
    assert build(tmp_path / "speculation", "speculation")[1].equals(undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 12 MB, where one may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_published(small_disk: Path) -> None:
    """Lists of 5 neighbours fit, lists of 500 do not: the first are still there and whole, and serve again."""
    command = [sys.executable, "-m", "ivis_spark.cli", "neighbours", "--output", str(small_disk / "run"), "--quiet"]
    command += ["--id-col", "id", "--master", "local[2]", "--log-file", os.devnull]
    with tempfile.TemporaryDirectory() as folder:
        X = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)
        features = pa.FixedSizeListArray.from_arrays(X.reshape(-1), 3).cast(pa.list_(pa.float32()))
        pq.write_table(pa.table({"id": np.arange(5000), "features": features}), f"{folder}/rows.parquet")
        command += ["--input", f"{folder}/rows.parquet"]
        assert subprocess.run([*command, "--set", "neighbours.k=5"], capture_output=True).returncode == 0
        before = files(small_disk / "run")
        large = [*command, "--set", "neighbours.k=500", "--overwrite"]
        done = subprocess.run(large, capture_output=True, text=True)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1 and last.startswith("ivis-spark neighbours: No space left on device, in a task: ")
        assert files(small_disk / "run") == before
        ids, _ = PartitionedIndex.load(str(small_disk / "run")).query(X[:3], 1)
        assert ids[:, 0].tolist() == [0, 1, 2]
        assert subprocess.run([*command, "--set", "neighbours.k=5"], capture_output=True).returncode == 0


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
