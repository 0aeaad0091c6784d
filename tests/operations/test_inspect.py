"""What status, verify and clean say of run folders, whole and hurt."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from object_store import s3_bucket
from runs import published

from ivis_spark import storage
from ivis_spark.cli import main
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.operations.clean import clean
from ivis_spark.operations.inspect import show, size_text, status, verify
from ivis_spark.runtime.lock import RunLock
from ivis_spark.storage import RunFolder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run folder of three small stages."""
    folder = RunFolder(str(tmp_path / "out"))
    inputs: dict[str, str] = {}
    for stage, info in {"rows": {"rows": 1234}, "neighbours": {"recall": {"value": 0.97}}, "model": {}}.items():
        with folder.build(stage, {"config": {}, "inputs": inputs}) as build:
            storage.write_json(build.path("data", "part-0"), [stage] * 50)
            build.info.update(info)
        manifest = folder.manifest(stage)
        assert manifest is not None
        inputs = {stage: manifest.fingerprint}
    return tmp_path / "out"


def test_status(root: Path) -> None:
    text = show(status(str(root)))
    assert "1,234" in text and "Neighbour recall 0.970" in text and "running" not in text
    with RunLock(str(root)):
        assert "running: process" in show(status(str(root)))


def test_status_names_the_page_of_the_report(tmp_path: Path) -> None:
    with RunFolder(str(tmp_path)).build("report", {"config": {}, "inputs": {}}) as build:
        storage.write_json(build.path("report.html"), "page")
    assert show(status(str(tmp_path))).splitlines()[-1].endswith("/report.html")


def test_status_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no run; create one: ivis-spark run"):
        status(str(tmp_path))


def test_a_bucket_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_bucket(monkeypatch) as bucket:
        for use in (status, lambda root: RunFolder(root).claim()):
            with pytest.raises(InputError, match="s3a://nobucket/cells: there is no 'nobucket'; check the URI"):
                use("s3a://nobucket/cells")
        with pytest.raises(ArtifactError, match="holds no run; create one"):
            status(f"{bucket}/cells")


def test_stages_are_shown_in_their_order(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if one of them was built again."""
    monkeypatch.setattr("time.gmtime", lambda *_: time.localtime(0))
    with RunFolder(str(root)).build("queries-a", {"config": {}, "inputs": {}}):
        pass
    monkeypatch.setattr("time.gmtime", lambda *_: time.localtime(2e9))
    with RunFolder(str(root)).build("rows", {"config": {}, "inputs": {}}):
        pass
    assert [stage["stage"] for stage in status(str(root)).stages] == ["rows", "neighbours", "model", "queries-a"]


def test_status_of_a_run_that_failed_names_its_log(tmp_path: Path) -> None:
    RunFolder(str(tmp_path)).claim()
    (tmp_path / "ivis-spark.log").write_text("why")
    text = show(status(str(tmp_path)))
    assert "no stage is published" in text and text.endswith(f"file://{tmp_path}/ivis-spark.log")


def test_verify(root: Path) -> None:
    assert verify(str(root)) == {"model": 1, "neighbours": 1, "rows": 1}


def test_verify_names_every_fault(root: Path) -> None:
    altered = published(root, "rows") / "data" / "part-0"
    altered.write_bytes(altered.read_bytes().replace(b"rows", b"ROWS"))  # of the same size: only the digest tells
    (published(root, "neighbours") / "data" / "part-0").unlink()
    (published(root, "model") / "data" / "foreign").write_text("x")
    with pytest.raises(ArtifactError) as caught:
        verify(str(root))
    for text in (
        "rows/data/part-0 was modified",
        "neighbours/data/part-0 is missing",
        "model/data/foreign is not in the manifest",
    ):
        assert text in str(caught.value)


def test_verify_sees_a_replaced_input(root: Path) -> None:
    with RunFolder(str(root)).build("rows", {"config": {"k": 1}, "inputs": {}}) as build:
        storage.write_json(build.path("data", "part-0"), [])
    with pytest.raises(ArtifactError, match="'neighbours' was made from 'rows' that has been replaced since"):
        verify(str(root))
    assert "outdated: 'neighbours' was made from 'rows' that has been replaced since" in show(status(str(root)))


def leave_wreck(root: Path) -> None:
    """Leave what a run killed while it builds leaves: its lock, a half-built folder; and a build superseded before."""
    with RunFolder(str(root)).build("model", {"config": {}, "inputs": {}, "text": "new"}) as build:
        storage.write_json(build.path("data", "part-0"), [])
    program = (
        "import os, sys; from ivis_spark.runtime.lock import RunLock; from ivis_spark.storage import RunFolder\n"
        "folder = RunFolder(sys.argv[1])\n"
        "with RunLock(sys.argv[1]), folder.build('triplets', {}) as build:\n"
        "    open(os.path.join(build.uri.removeprefix('file://'), 'half'), 'w').close(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", program, str(root)], check=False)


def test_clean_removes_what_no_manifest_names(root: Path) -> None:
    leave_wreck(root)
    lock, superseded, half_built = status(str(root)).left
    assert lock.startswith("lock of process")
    assert superseded.startswith("model/") and half_built.startswith("triplets/")
    before = sorted(path for path in root.rglob("*"))
    planned = clean(str(root), dry_run=True)
    assert before == sorted(path for path in root.rglob("*"))
    done = clean(str(root))
    assert done[1:] == [f"file://{root}/{name}: removed" for name in (superseded, half_built)]
    assert planned[1:] == [line.replace(": removed", ": would be removed") for line in done[1:]]
    assert planned[0].startswith(done[0].split(",")[0].replace(": removed", ": would be removed"))
    assert "run.json: removed, the lock of process" in done[0]
    assert sorted(path.name for path in root.iterdir()) == [storage.MARK, "model", "neighbours", "rows"]
    verify(str(root))
    assert clean(str(root)) == []


def test_clean_takes_nothing_that_is_being_built(root: Path) -> None:
    """Also what is built beside the run, under a lock of its own, after `clean` looked for locks."""
    folder = RunFolder(str(root))
    with RunLock(folder.root, "embeddings-x"), folder.build("embeddings-x", {}) as build:
        with pytest.raises(ArtifactError, match="is being written by"):
            clean(str(root))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ivis_spark.operations.clean.owners", lambda root: {})
            with pytest.raises(ArtifactError, match="is being written by"):
                clean(str(root))
        storage.write_json(build.path("data", "a"), 1)
    folder.require("embeddings-x", "embed")


def test_a_folder_that_is_being_written_is_no_wrong_input(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(str(root)):
        assert main(["clean", str(root)]) == 75
    assert "is being written by" in capsys.readouterr().err


def test_clean_leaves_a_living_run_alone(root: Path) -> None:
    with RunLock(str(root)), pytest.raises(ArtifactError, match="clean it after that process has ended"):
        clean(str(root))


def test_clean_stages(root: Path) -> None:
    with pytest.raises(ArtifactError, match="has no stage 'nope'; it has: model, neighbours, rows"):
        clean(str(root), stages=["rows", "nope"])
    assert (root / "rows").exists()
    with pytest.raises(ArtifactError, match="nowhere does not exist; pass the folder that was given as --output"):
        clean(str(root / "nowhere"))
    clean(str(root), stages=["neighbours"])
    assert not (root / "neighbours").exists() and (root / "rows").exists()


def test_commands(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(root), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert {stage["table"] for stage in stages} == {RunFolder(str(root)).data(stage["stage"]) for stage in stages}
    assert {stage["stage"]: stage["rows"] for stage in stages} == {"rows": 1234, "neighbours": None, "model": None}
    assert main(["verify", str(root)]) == 0
    (published(root, "rows") / "data" / "part-0").write_text("")
    assert main(["verify", str(root)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ivis-spark verify: ") and "rows/data/part-0 was modified" in error
    assert main(["clean", str(root), "--stages", "rows,model", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"file://{root / name}: would be removed" for name in ("rows", "model")]
    assert main(["clean", str(root)]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_sizes() -> None:
    assert [size_text(size) for size in (0, 999, 1500, 2.5e9)] == ["0 B", "999 B", "1.5 kB", "2.5 GB"]
