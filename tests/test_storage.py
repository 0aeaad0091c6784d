"""A stage stands whole with its manifest, or it does not stand; nothing published is lost."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any, ClassVar

import pytest
from faulty_storage import FlakyFileSystem

from ivis_spark import storage
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.storage import RunFolder

SPEC = {"config": {"neighbours": {"k": 15}}, "inputs": {"rows": "abc"}}


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}/out")


def publish(run: RunFolder, text: str, spec: dict = SPEC) -> None:
    with run.build("neighbours", spec) as build:
        fs, path = storage.filesystem(build.path("data", "part-0.txt"))
        fs.makedirs(fs._parent(path), exist_ok=True)
        fs.pipe_file(path, text.encode())
        build.info["rows"] = len(text)


def read(run: RunFolder) -> str:
    fs, path = storage.filesystem(run.path("neighbours", "data", "part-0.txt"))
    return fs.cat_file(path).decode()


def test_publish_writes_what_the_stage_is(run: RunFolder) -> None:
    assert run.manifest("neighbours") is None
    publish(run, "abc")
    manifest = run.require("neighbours", "neighbours")
    assert manifest.spec == SPEC
    assert manifest.info["rows"] == 3
    # sha256 of b"abc" is a published test vector (FIPS 180-2, appendix B.1)
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest.files == [{"path": "data/part-0.txt", "bytes": 3, "sha256": expected}]


def test_failed_build_publishes_nothing_and_leaves_nothing(run: RunFolder) -> None:
    with pytest.raises(RuntimeError), run.build("neighbours", SPEC):
        raise RuntimeError
    assert run.manifest("neighbours") is None
    fs, path = storage.filesystem(run.root)
    assert [name.rsplit("/", 1)[1] for name in fs.find(path)] == [storage.MARK]


def test_failed_rebuild_keeps_the_published(run: RunFolder) -> None:
    publish(run, "old")
    with pytest.raises(RuntimeError), run.build("neighbours", SPEC):
        raise RuntimeError
    run.require("neighbours", "neighbours")
    assert read(run) == "old"


def test_rebuild_replaces(run: RunFolder) -> None:
    publish(run, "old")
    publish(run, "new!")
    assert read(run) == "new!"
    fs, path = storage.filesystem(run.root)
    assert sorted(name.rsplit("/out/")[-1] for name in fs.find(path)) == [
        storage.MARK,
        "neighbours/data/part-0.txt",
        "neighbours/manifest.json",
    ]


def test_death_between_the_two_renames_is_mended(run: RunFolder) -> None:
    publish(run, "old")
    fs, final = storage.filesystem(run.path("neighbours"))
    _, aside = storage.filesystem(run.path(".replaced", "neighbours"))
    fs.makedirs(fs._parent(aside), exist_ok=True)
    fs.mv(final, aside, recursive=True)
    assert run.set_aside() == ["neighbours"]
    assert run.mend() == ["neighbours"] and run.set_aside() == []
    assert run.require("neighbours", "neighbours").info["rows"] == 3
    assert read(run) == "old"


def test_rerun_skips_equal_and_refuses_changed(run: RunFolder) -> None:
    assert not run.is_current("neighbours", SPEC, overwrite=False)
    publish(run, "abc")
    assert run.is_current("neighbours", SPEC, overwrite=False)
    changed = {"config": {"neighbours": {"k": 20}}, "inputs": {"rows": "abc"}}
    with pytest.raises(ArtifactError, match=r"config\.neighbours\.k: 15 -> 20\. .* --overwrite"):
        run.is_current("neighbours", changed, overwrite=False)
    assert not run.is_current("neighbours", changed, overwrite=True)


def test_torn_file_is_named(run: RunFolder) -> None:
    publish(run, "abc")
    fs, path = storage.filesystem(run.path("neighbours", "data", "part-0.txt"))
    fs.pipe_file(path, b"ab")
    with pytest.raises(ArtifactError, match=r"part-0\.txt holds 2 bytes, 3 were written"):
        run.require("neighbours", "neighbours")
    fs.rm_file(path)
    with pytest.raises(ArtifactError, match=r"part-0\.txt is missing"):
        run.require("neighbours", "neighbours")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": 1}'])
def test_torn_manifest_is_named_and_overwrite_mends_it(run: RunFolder, text: str) -> None:
    publish(run, "abc")
    fs, path = storage.filesystem(run.path("neighbours", "manifest.json"))
    fs.pipe_file(path, text.encode())
    with pytest.raises(ArtifactError, match="manifest"):
        run.is_current("neighbours", SPEC, overwrite=False)
    assert not run.is_current("neighbours", SPEC, overwrite=True)


def test_newer_format_is_refused(run: RunFolder) -> None:
    publish(run, "abc")
    fs, path = storage.filesystem(run.path("neighbours", "manifest.json"))
    manifest = json.loads(fs.cat_file(path))
    fs.pipe_file(path, json.dumps({**manifest, "format_version": 99}).encode())
    with pytest.raises(ArtifactError, match="format 99"):
        run.manifest("neighbours")


def test_missing_stage_names_the_command(run: RunFolder) -> None:
    with pytest.raises(ArtifactError, match=r"has no 'rows'; make it first: ivis-spark neighbours"):
        run.require("rows", "neighbours")


def test_unwritable_output_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        storage.check_writable(str(tmp_path / "file" / "out"))


def test_schemes() -> None:
    assert storage.normalise_uri("/a/b/") == "file:///a/b"
    assert storage.normalise_uri("s3://bucket/x/") == "s3://bucket/x"
    assert storage.filesystem("dbfs:/a/b")[1] == "/dbfs/a/b"
    assert storage.filesystem("dbfs:/Volumes/main/x")[1] == "/Volumes/main/x"
    with pytest.raises(ArtifactError, match="nosuch"):
        storage.filesystem("nosuch://x/y")


def test_volumes_on_databricks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_RUNTIME_VERSION", raising=False)
    assert storage.normalise_uri("/Volumes/main/x") == "file:///Volumes/main/x"
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "15.4")
    assert storage.normalise_uri("/Volumes/main/x/") == "dbfs:/Volumes/main/x"


def test_a_request_that_fails_is_no_absence() -> None:
    """fsspec's `exists` would say no, and its `find` would leave the folder out."""
    root = f"flaky://{uuid.uuid4().hex}"
    run = RunFolder(root)
    publish(run, "abc")
    for look in (lambda: run.manifest("neighbours"), lambda: storage.list_files(root)):
        FlakyFileSystem.fail(-1)
        whole = look()
        requests = list(FlakyFileSystem.done)
        assert whole and {"look"} <= set(requests)
        for at in range(len(requests)):
            FlakyFileSystem.fail(at)
            with pytest.raises(OSError, match="Input/output"):
                look()
    FlakyFileSystem.fail(-1)


@pytest.mark.parametrize("kind", ["copied", "renamed"])
def test_a_folder_that_moves_counts_only_when_whole(kind: str, tmp_path: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}" if kind == "copied" else str(tmp_path)
    for name in ("manifest.json", "zeta"):  # which sorts after the manifest
        storage.write_json(storage.join(root, "old", name), name)
    fs, path = storage.filesystem(root)

    class Seen:
        """Notes what is copied, in order."""

        copied: ClassVar[list[str]] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(fs, name)

        def copy(self, sources: list[str], targets: list[str], **options: Any) -> None:
            self.copied.extend(targets)
            fs.copy(sources, targets, **options)

    storage.move_folder(Seen(), f"{path}/old", f"{path}/new", seal="manifest.json")
    assert [name for name, _ in storage.list_files(root)] == ["new/manifest.json", "new/zeta"]
    wanted = [f"{path}/new/zeta", f"{path}/new/manifest.json"] if kind == "copied" else []
    assert Seen.copied == wanted
