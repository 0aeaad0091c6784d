"""A stage stands whole with its manifest, or it does not stand; nothing published is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from faulty_storage import FlakyFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from ivis_spark import storage
from ivis_spark.config import load_config
from ivis_spark.errors import ArtifactError, BusyError, InputError
from ivis_spark.manifest import Defaults, Manifest
from ivis_spark.operations.inspect import verify
from ivis_spark.pipeline import Pipeline
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
    fs, path = storage.filesystem(storage.join(run.data("neighbours"), "part-0.txt"))
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


def test_rebuild_replaces_by_pointer(run: RunFolder) -> None:
    publish(run, "old")
    old = run.data("neighbours")
    publish(run, "new!")
    assert read(run) == "new!"
    fs, path = storage.filesystem(old)
    assert fs.cat_file(f"{path}/part-0.txt") == b"old"  # who reads the former build goes on reading it
    [superseded] = run.garbage("neighbours")
    assert old == run.path(superseded, "data")
    run.discard(superseded)
    assert run.garbage("neighbours") == [] and read(run) == "new!"
    run.require("neighbours", "neighbours")


def test_a_manifest_is_shown_in_a_line() -> None:
    manifest = storage.Manifest("report", {}, {"loss": [0.1] * 999, "trustworthiness": 0.9}, [], {}, "2026-11-27")
    assert repr(manifest) == "Manifest('report', created='2026-11-27', info has loss, trustworthiness)"


def test_a_manifest_that_cannot_be_read_keeps_the_builds(run: RunFolder) -> None:
    publish(run, "old")
    storage.replace_file(run.path("neighbours", "manifest.json"), b'{"format_version": 99}')
    assert run.garbage("neighbours") == []


def test_removing_leaves_the_files_of_others(run: RunFolder) -> None:
    publish(run, "old")
    storage.write_json(run.path("neighbours", "notes.txt"), "mine")
    run.remove("neighbours")
    fs, path = storage.filesystem(run.path("neighbours"))
    assert [name.rsplit("/", 1)[1] for name in fs.find(path)] == ["notes.txt"] and run.published() == []


def test_a_pointer_whose_storage_dies_between_two_renames(tmp_path: Path) -> None:
    """As on HDFS, where a rename takes the place of no file: the old pointer is gone, the new one not there yet."""

    class Renaming(LocalFileSystem):
        protocol = "renaming"

        def mv(self, path1: str, path2: str, **_: Any) -> None:
            assert not self.exists(path2)
            if self.dead:
                raise KeyboardInterrupt
            super().mv(path1, path2)

        dead = False

    fsspec.register_implementation("renaming", Renaming, clobber=True)
    run = RunFolder(f"renaming://{tmp_path}/out")
    publish(run, "old")
    publish(run, "new")
    Renaming.dead = True
    with pytest.raises(KeyboardInterrupt):
        publish(run, "newest")
    assert not (tmp_path / "out" / "neighbours" / "manifest.json").exists()
    Renaming.dead = False
    assert read(run) == "newest" and run.require("neighbours", "neighbours").info["rows"] == 6
    publish(run, "last")
    assert read(run) == "last"
    cut_off = tmp_path / "out" / "rows" / "manifest.json.0.new"
    cut_off.parent.mkdir()
    cut_off.write_text("{")
    assert run.manifest("rows") is None


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
    fs, path = storage.filesystem(storage.join(run.data("neighbours"), "part-0.txt"))
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
    assert storage.normalise_uri("hdfs:///") == "hdfs:///" and storage.normalise_uri("s3://b/") == "s3://b"
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


KEPT = Path(__file__).parent / "kept_runs"


@pytest.fixture
def kept(tmp_path: Path) -> RunFolder:
    """A run of format 1, from before builds had folders of their own."""
    shutil.copytree(KEPT / "format-1", tmp_path / "out")
    return RunFolder(str(tmp_path / "out"))


def test_a_run_of_an_earlier_version_is_read_as_it_is(kept: RunFolder) -> None:
    assert kept.is_run() and kept.published() == ["embeddings", "model", "neighbours", "rows", "triplets"]
    assert verify(kept.root)["neighbours"] == 6
    assert kept.data("rows") == kept.path("rows", "data") and kept.outdated("embeddings") == {}
    train = ["train.epochs=2", "train.learning_rate=0.01", "train.batch_size=16", "train.model=small_networks:tiny"]
    train.append("train.warmup_epochs=1")  # the default of that version
    config = load_config(None, ["neighbours.k=5", "data.id_col=id", "data.label_col=label", *train])
    pipeline = Pipeline(kept.root, config, get_spark=lambda: pytest.fail("a stage would be built again"))
    for step in (pipeline.neighbours, pipeline.triplets, pipeline.train, pipeline.embed):
        step()


def test_a_stage_of_an_earlier_version_is_replaced(kept: RunFolder) -> None:
    storage.write_json(kept.path("rows", "notes.txt"), "mine")
    with pytest.raises(RuntimeError), kept.build("rows", {"new": 1}):
        raise RuntimeError
    kept.require("rows", "neighbours")
    with kept.build("rows", {"new": 1}) as build:
        storage.write_json(build.path("data", "a"), 1)
    assert sorted(name for name, _ in storage.list_files(kept.path("rows")) if "/" not in name) == [
        "manifest.json",
        "notes.txt",
    ]
    assert kept.garbage("rows") == [] and kept.outdated("neighbours") == {"neighbours": ["rows"]}
    assert set(kept.outdated("embeddings")) == {"neighbours", "triplets"}
    kept.remove("neighbours")
    assert not Path(kept.path("neighbours").removeprefix("file://")).exists()


def test_an_input_that_is_replaced_meanwhile(run: RunFolder) -> None:
    def rows(number: int) -> str:
        with run.build("rows", {"n": number}):
            pass
        manifest = run.manifest("rows")
        assert manifest is not None
        return manifest.fingerprint

    spec = {"inputs": {"rows": rows(1)}}
    with pytest.raises(BusyError, match="was replaced while 'neighbours' was being built from it"):
        with run.build("neighbours", spec):
            rows(2)
    assert run.manifest("neighbours") is None and not run.garbage("neighbours")


def test_a_stage_made_from_a_replaced_one_is_said_in_words(run: RunFolder) -> None:
    publish(run, "abc")
    replaced = {**SPEC, "inputs": {"rows": "def"}}
    assert not run.is_current("neighbours", replaced, overwrite=True)
    words = r"out.*: 'neighbours' was made from 'rows' that has been replaced since\. Pass --overwrite to rebuild it"
    with pytest.raises(ArtifactError, match=words):
        run.is_current("neighbours", replaced, overwrite=False)
    both = r"neighbours\.k: 15 -> 20; 'neighbours' was made from 'rows' that has been replaced since\. .* revert"
    with pytest.raises(ArtifactError, match=both):
        run.is_current("neighbours", {**replaced, "config": {"neighbours": {"k": 20}}}, overwrite=False)


CHANGED = "the content of the input changed since: "


@pytest.mark.parametrize(
    ("new", "changes"),
    [
        ({"files": 2, "bytes": 2345, "digest": "b"}, CHANGED + "1 file of 12 bytes then, 2 files of 2,345 bytes now"),
        ({"digest": "b"}, CHANGED + "1 file of 12 bytes then and now, whose times or query differ"),
        ({"uri": "/b", "digest": "b"}, "inputs.source.uri: '/a' -> '/b'"),
        ({}, None),
    ],
)
def test_changed_input_is_said_in_words(new: dict[str, Any], changes: str | None) -> None:
    source = {"uri": "/a", "read_as": "r", "files": 1, "bytes": 12, "digest": "a"}
    manifest = Manifest("rows", {"config": {}, "inputs": {"source": source}}, {}, [], {}, "")
    found, replaced = manifest.changes({"config": {}, "inputs": {"source": {**source, **new}}}, Defaults())
    assert found == ([] if changes is None else [changes]) and not replaced


def test_changed_frame_is_said_in_words() -> None:
    then, now = ({"uri": None, "digest": each} for each in "ab")
    manifest = Manifest("rows", {"config": {}, "inputs": {"source": then}}, {}, [], {}, "")
    found, _ = manifest.changes({"config": {}, "inputs": {"source": now}}, Defaults())
    assert found == [CHANGED + "its data, or how it is made"]


def test_only_what_was_set_is_compared() -> None:
    then = Defaults({"train": {"k": 1, "gone": 2, "set": 0, "moved": 5, "rate": 1}})
    now = Defaults({"train": {"k": 1, "new": "x", "set": 0, "moved": 6, "rate": 1}}, {"train": {"new": "by preset"}})

    def manifest(settings: dict[str, Any], non_defaults: list[str] | None) -> Manifest:
        return Manifest("a", {"config": {"train": settings}, "inputs": {}}, {}, [], {}, "", non_defaults=non_defaults)

    def changes(old: dict[str, Any], new: dict[str, Any], *, known: bool = True) -> list[str]:
        set_then = then.others({"config": {"train": old}}) if known else None
        found, _ = manifest(old, set_then).changes({"config": {"train": new}, "inputs": {}}, now)
        return [text.removeprefix("config.train.") for text in found]

    old = {"k": 1, "gone": 2, "set": 0, "moved": 5, "rate": 1}
    new = {"k": 1, "new": "x", "set": 0, "moved": 6, "rate": 1}
    assert changes(old, new) == []  # a field came, one went, and a default changed
    assert changes(old, {**new, "new": "by preset"}) == []
    assert changes(old, {**new, "new": "set"}) == ["new: None -> 'set'"]
    assert changes({**old, "gone": 3}, new) == ["gone: 3 -> None"]
    assert changes({**old, "moved": 7}, new) == ["moved: 7 -> 6"]
    assert changes(old, {**new, "moved": 7}) == ["moved: 5 -> 7"]
    assert changes({"options": {"password": "p", "a": 1}}, {"options": {"a": 1}}) == []
    assert changes({**old, "rate": 2}, new) == ["rate: 2 -> 1"]  # set then, also by a preset, and not now
    assert changes(old, new, known=False) == ["moved: 5 -> 6"]  # a manifest that does not say what was set


class MeetingFileSystem(MemoryFileSystem):
    """Files are removed once another is being removed, or after five seconds."""

    protocol = "meeting"
    inside: ClassVar[set[str]] = set()
    met = threading.Event()

    def rm_file(self, path: str) -> None:
        self.inside.add(path)
        if len(self.inside) > 1:
            self.met.set()
        self.met.wait(5)
        self.inside.remove(path)
        super().rm_file(path)


def test_files_of_an_earlier_version_are_removed_many_at_once() -> None:
    fsspec.register_implementation("meeting", MeetingFileSystem, clobber=True)
    run = RunFolder(f"meeting://{uuid.uuid4().hex}/out")
    storage.put_folder(str(KEPT / "format-1"), run.root)
    manifest = run.manifest("neighbours")
    assert manifest is not None and len(manifest.files) > 1
    run.remove("neighbours")
    assert storage.list_files(run.path("neighbours")) == []
    assert MeetingFileSystem.met.is_set()


class CountingFileSystem(MemoryFileSystem):
    """Counts requests, by what they do; folders of objects are listed in one."""

    protocol = "counting"
    requests: ClassVar[Counter[str]] = Counter()

    def info(self, path: str, **options: Any) -> Any:
        self.requests["info"] += 1
        return super().info(path, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self.requests["list"] += 1
        return super().ls(path, detail=detail, **options)

    def pipe_file(self, path: str, value: bytes, *arguments: Any, **options: Any) -> None:
        self.requests["write"] += 1
        super().pipe_file(path, value, *arguments, **options)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self.requests["open"] += mode == "rb"
        return super()._open(path, mode, **options)


def test_requests_do_not_grow_with_files_but_for_one_each() -> None:
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    counts = []
    for files in (10, 200):
        run = RunFolder(f"counting://{uuid.uuid4().hex}/out")
        CountingFileSystem.requests.clear()
        with run.build("rows", SPEC) as build:
            for number in range(files):
                storage.write_json(build.path("data", f"{number}"), number)
        run.require("rows", "neighbours")
        counts.append(dict(CountingFileSystem.requests))
        many = [f"{run.data('rows')}/{number}" for number in range(files)]
        CountingFileSystem.requests.clear()
        assert len(storage.describe_files(many)) == files
        assert sum(CountingFileSystem.requests.values()) < 5
    few, many_files = counts
    assert many_files["write"] - few["write"] == many_files["open"] - few["open"] == 190  # written once, digested once
    assert many_files["info"] == few["info"] and many_files["list"] == few["list"]


def test_options_of_a_storage_come_from_the_environment() -> None:
    """As the operations guide says: in every process, ranks and workers too."""
    told = "import ivis_spark.storage as s; print(s.filesystem('file:///x')[0].auto_mkdir)"
    environment = {**os.environ, "FSSPEC_FILE_AUTO_MKDIR": "told"}
    done = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "told\n"
