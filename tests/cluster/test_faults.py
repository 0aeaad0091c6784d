"""Faults and attacks, each done for real; a table at the end says what was tried and what survived.

A run survives a fault when it ends as if nothing had happened, or says in one line what is wrong and goes on when it is
started again; and when, in between, everything that is published is whole.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ivis_spark import storage
from ivis_spark.cli import main
from ivis_spark.config import Config
from ivis_spark.demo import write_digits
from ivis_spark.errors import ArtifactError
from ivis_spark.operations.inspect import verify
from ivis_spark.runtime.lock import RunLock
from ivis_spark.storage import RunFolder

pytestmark = [pytest.mark.spark, pytest.mark.tf, pytest.mark.slow, pytest.mark.cluster]

ROWS = 1797
STAGES = ("rows", "neighbours", "triplets", "model", "embeddings", "report")
# The command that reads each artefact, for those that another stage reads.
READERS = {
    "rows": "neighbours",
    "neighbours": "triplets",
    "triplets": "train",
    "model": "embed",
    "embeddings": "evaluate",
}

Record = Callable[..., None]


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Note a fault that was tried; the table is printed when all were."""
    lines: list[str] = []

    def note(fault: str, *, tried: int, survived: int, rows_lost: int = 0, half: int = 0) -> None:
        lines.append(f"{fault:<58}{tried:>6}{survived:>10}{rows_lost:>11}{half:>16}")
        assert survived == tried and rows_lost == 0 and half == 0

    yield note
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n\n{'fault':<58}{'tried':>6}{'survived':>10}{'rows lost':>11}{'half published':>16}")
        print("\n".join(lines))


class Run:
    """`ivis-spark run` on the digits in a process group of its own; its JSON log tells when a stage starts."""

    def __init__(self, source: str, output: Path, *options: str) -> None:
        command = [sys.executable, "-m", "ivis_spark.cli", "run", "--input", source, "--output", str(output)]
        command += [
            "--id-col",
            "id",
            "--label-col",
            "label",
            "--set",
            "train.epochs=4",
            "--log-format",
            "json",
            *options,
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

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

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_digits(str(tmp_path_factory.mktemp("table")), Config())[0]


@pytest.fixture(scope="module")
def finished(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("finished") / "out"
    run = Run(source, output)
    assert run.end() == 0, "".join(run.text)[-3000:]
    return output


def embeddings(output: Path) -> Any:
    table = pq.read_table(output / "embeddings" / "data").sort_by("id")
    return np.array(table["embedding"].to_pylist(), dtype=np.float32)


def half_published(output: Path) -> int:
    """Return 1 if something published is not whole."""
    published = [path for path in output.iterdir() if (path / "manifest.json").exists()] if output.exists() else []
    if not published:
        return 0
    try:
        verify(str(output))
    except ArtifactError:
        return 1
    return 0


def test_driver_killed_in_each_stage(source: str, finished: Path, tmp_path: Path, record: Record) -> None:
    output, half, survived = tmp_path / "out", 0, 0
    for number, stage in enumerate(STAGES):
        run = Run(source, output)
        run.until(stage)
        time.sleep(0.3 + 0.4 * (number % 3))
        run.kill()
        half += half_published(output)
        survived += not (output / stage / "manifest.json").exists()
    again = Run(source, output)
    assert again.end() == 0, "".join(again.text)[-3000:]
    np.testing.assert_array_equal(embeddings(output), embeddings(finished))
    record("driver killed (SIGKILL) in each stage, then run again", tried=len(STAGES), survived=survived, half=half)


def executors(run: Run) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(run.process.pid).children(recursive=True)
        return [child for child in children if "CoarseGrainedExecutorBackend" in " ".join(child.cmdline())]
    return []


def test_executor_killed_in_each_stage(source: str, finished: Path, tmp_path: Path, record: Record) -> None:
    output, killed = tmp_path / "out", []
    run = Run(source, output, "--master", "local-cluster[2,1,1024]")

    def kill_one(stage: str) -> None:
        time.sleep(0.5)
        for victim in executors(run)[:1]:
            victim.kill()
            killed.append(stage)

    stages = [stage for stage in STAGES if stage != "model"]  # this one trains in the driver
    threads = []
    for message in run.lines():
        name = message.removesuffix(": started")
        if name != message and name in stages:
            threads.append(threading.Thread(target=kill_one, args=(name,)))
            threads[-1].start()
    for thread in threads:
        thread.join()
    assert run.process.wait(timeout=60) == 0, "".join(run.text)[-4000:]
    assert killed == stages
    assert embeddings(output).shape == (ROWS, 2)
    np.testing.assert_allclose(embeddings(output), embeddings(finished), atol=1e-5)
    record("executor killed in each Spark stage (local-cluster)", tried=len(stages), survived=len(killed))


def publish(root: str, text: str, write: Callable[[str, Any], None] = storage.write_json) -> None:
    with RunLock(root), RunFolder(root).build("rows", {"text": text}) as build:
        for number in range(2):
            write(build.path("data", f"part-{number}"), [text] * 40)


def text_of(root: str) -> str:
    folder = RunFolder(root)
    manifest = folder.manifest("rows")
    assert manifest is not None
    words = {word for number in (0, 1) for word in storage.read_json(folder.path("rows", "data", f"part-{number}"))}
    assert words == {manifest.spec["text"]}
    return words.pop()


class DyingFileSystem:
    """Passes everything on to a filesystem; after so many operations that change it the process is gone."""

    CHANGES = frozenset({"makedirs", "pipe_file", "mv", "rm", "rm_file", "rmdir", "put_file", "open"})

    def __init__(self, fs: Any, left: Iterator[int]) -> None:
        self._fs, self._left = fs, left

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)
        if name not in self.CHANGES:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            result = found(*arguments, **options)
            if next(self._left, None) is None:
                os._exit(9)
            return result

        return call


def die_after(operations: int, root: str) -> int:
    """Rebuild the stage in a child that dies after so many operations; return the child's exit code."""
    child = os.fork()
    if child == 0:
        left, plain = iter(range(operations)), storage.filesystem

        def dying(uri: str) -> tuple[Any, str]:
            fs, path = plain(uri)
            return DyingFileSystem(fs, left), path

        storage.filesystem = dying  # type: ignore[assignment]
        try:
            publish(root, "new")
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_between_any_two_writes(tmp_path: Path, record: Record) -> None:
    seen: list[str] = []
    for operations in itertools.count():
        root = str(tmp_path / str(operations))
        publish(root, "old")
        code = die_after(operations, root)
        with RunLock(root):  # the lock of the dead is taken over
            RunFolder(root).mend()
        verify(root)
        seen.append(text_of(root))
        publish(root, "newest")
        assert text_of(root) == "newest"
        if code == 0:
            break
    assert seen[0] == "old" and seen[-1] == "new" and seen == sorted(seen, reverse=True)
    record("driver killed after each filesystem operation of a rebuild", tried=len(seen) - 1, survived=len(seen) - 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, for real."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_full(source: str, finished: Path, small_disk: Path, record: Record) -> None:
    output = small_disk / "out"
    run = Run(source, output, "--log-file", "/dev/null")
    code, said = run.end(), "".join(run.text).splitlines()[-1]
    assert code == 1 and said.startswith("ivis-spark run: ") and "No space left" in said, said
    half, standing = half_published(output), [stage for stage in STAGES if (output / stage).exists()]
    assert standing and not (output / ".building").exists()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    again = Run(source, output, "--log-file", "/dev/null")
    assert again.end() == 0, "".join(again.text)[-3000:]
    np.testing.assert_array_equal(embeddings(output), embeddings(finished))
    record("disk full in the middle of a run, then enlarged", tried=1, survived=1, half=half)


def biggest_file(stage: Path) -> Path:
    files = [path for path in stage.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return max((path for path in files if not path.name.startswith((".", "_"))), key=lambda path: path.stat().st_size)


def refuses(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


@pytest.mark.usefixtures("spark")
def test_torn_and_altered_files(
    finished: Path, tmp_path: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = altered = manifests = 0
    for stage in STAGES:
        output = tmp_path / f"torn-{stage}"
        shutil.copytree(finished, output)
        victim = biggest_file(output / stage)
        content = victim.read_bytes()
        victim.write_bytes(content[: len(content) // 2])
        assert victim.name in refuses(capsys, "verify", str(output))
        if stage in READERS:
            said = refuses(capsys, READERS[stage], "--output", str(output), "--set", "train.epochs=4", "--overwrite")
            assert victim.name in said and "were written" in said
        torn += 1
        middle = len(content) // 2
        victim.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert f"{victim.name} was altered" in refuses(capsys, "verify", str(output))
        altered += 1
        victim.write_bytes(content)
        manifest = output / stage / "manifest.json"
        manifest.write_bytes(manifest.read_bytes()[:-20])
        assert f"{stage}/manifest.json is not a manifest" in refuses(capsys, "verify", str(output))
        manifests += 1
    record("torn file in each artefact: its reader names it", tried=len(STAGES), survived=torn)
    record("one bit altered in each artefact: verify names the file", tried=len(STAGES), survived=altered)
    record("torn manifest of each stage", tried=len(STAGES), survived=manifests)


def test_two_runs_on_one_output(source: str, finished: Path, tmp_path: Path, record: Record) -> None:
    output = tmp_path / "out"
    first = Run(source, output)
    first.until("rows")
    second = Run(source, output)
    assert second.end() == 2
    assert f"is being written by process {first.process.pid}" in "".join(second.text)
    assert first.end() == 0, "".join(first.text)[-3000:]
    np.testing.assert_array_equal(embeddings(output), embeddings(finished))
    record("two runs on one output: the second is refused", tried=1, survived=1, half=half_published(output))


class StaleFileSystem(MemoryFileSystem):
    """Remembers the listing of a folder from when it made it, and so misses what executors write into it later."""

    protocol = "stale"
    _listed: ClassVar[dict[str, Any]] = {}

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        key = f"{path}{detail}"
        if key not in self._listed:
            self._listed[key] = super().ls(path, detail=detail, **options)
        return self._listed[key]

    def find(self, path: str, **options: Any) -> Any:
        return fsspec.AbstractFileSystem.find(self, path, **options)  # by way of ls, as object stores' clients do

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.invalidate_cache()
        super().makedirs(path, exist_ok=exist_ok)
        self.ls(path)

    def pipe_file(self, *arguments: Any, **options: Any) -> None:
        super().pipe_file(*arguments, **options)
        self.invalidate_cache()

    def mv(self, *arguments: Any, **options: Any) -> None:
        self.invalidate_cache()
        super().mv(*arguments, **options)
        self.invalidate_cache()

    def rm_file(self, *arguments: Any, **options: Any) -> None:
        super().rm_file(*arguments, **options)
        self.invalidate_cache()

    def invalidate_cache(self, path: str | None = None) -> None:
        self._listed.clear()


class SlowFileSystem(MemoryFileSystem):
    """Takes its time for every operation."""

    protocol = "slow"

    def cat_file(self, *arguments: Any, **options: Any) -> bytes:
        time.sleep(0.05)
        return super().cat_file(*arguments, **options)

    def pipe_file(self, *arguments: Any, **options: Any) -> None:
        time.sleep(0.05)
        super().pipe_file(*arguments, **options)


class FlakyFileSystem(MemoryFileSystem):
    """Fails one operation that changes it, and works from then on."""

    protocol = "flaky"
    fails_at: int = -1
    done: int = 0

    @classmethod
    def count(cls) -> None:
        cls.done += 1
        if cls.done - 1 == cls.fails_at:
            raise OSError(errno.EIO, "Input/output error")

    def pipe_file(self, *arguments: Any, **options: Any) -> None:
        self.count()
        super().pipe_file(*arguments, **options)

    def mv(self, *arguments: Any, **options: Any) -> None:
        self.count()
        super().mv(*arguments, **options)


for kind in (StaleFileSystem, SlowFileSystem, FlakyFileSystem):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


def write_as_executor(uri: str, value: Any) -> None:
    """Write a file without the driver's client hearing of it."""
    fs, path = storage.filesystem(uri)
    MemoryFileSystem.pipe_file(fs, path, json.dumps(value).encode())


def test_storage_that_lists_stale(record: Record) -> None:
    root = f"stale://{uuid.uuid4().hex}/out"
    for text in ("old", "new", "newest"):
        publish(root, text, write=write_as_executor)
        assert text_of(root) == text
        assert verify(root) == {"rows": 2}
    record("storage that lists what was there before", tried=3, survived=3)


def test_slow_storage(record: Record) -> None:
    root = f"slow://{uuid.uuid4().hex}/out"
    for text in ("old", "new", "newest"):
        publish(root, text)
        assert text_of(root) == text
    record("storage that takes its time", tried=3, survived=3)


def test_storage_that_fails_once(record: Record) -> None:
    tried = 0
    for at in itertools.count():
        root = f"flaky://{uuid.uuid4().hex}/out"
        FlakyFileSystem.fails_at = -1
        publish(root, "old")
        FlakyFileSystem.fails_at, FlakyFileSystem.done = at, 0
        failed = False
        try:
            publish(root, "new")
        except OSError:
            failed = True
        FlakyFileSystem.fails_at = -1
        with RunLock(root):
            RunFolder(root).mend()
        verify(root)
        assert text_of(root) == ("old" if failed else "new")
        publish(root, "newest")
        assert text_of(root) == "newest"
        if not failed:
            break
        tried += 1
    assert tried >= 5
    record("storage that fails one write or rename, each in turn", tried=tried, survived=tried)


class Bomb:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def lambda_model(path: Path, mark: Path) -> None:
    """Write a model whose Lambda layer would make a file, in a process of its own, where that is allowed."""
    program = f"""
import keras
code = lambda x: (__import__("pathlib").Path({str(mark)!r}).touch(), x)[1]
inputs = keras.Input((64,))
keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Lambda(code)(inputs))).save({str(path)!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    mark.unlink()


@pytest.mark.usefixtures("spark")
def test_hostile_model_folder(finished: Path, tmp_path: Path, record: Record) -> None:
    from ivis_spark.nn.persistence import load_model

    mark, survived = tmp_path / "was-here", 0
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    dense = output / "model" / "dense.npz"
    content = {"activations": np.array([Bomb(mark)], dtype=object)}
    np.savez(dense, **content)
    manifest = output / "model" / "manifest.json"
    told = json.loads(manifest.read_text())
    for entry in told["files"]:  # a careful attacker mends size and digest
        if entry["path"] == "dense.npz":
            entry.update(storage.digest_file(str(dense)))
    manifest.write_text(json.dumps(told))
    assert main(["embed", "--output", str(output), "--overwrite", "--name", "again", "--quiet"]) == 2
    survived += not mark.exists()
    told["files"].append({"path": "../../../../etc/passwd", "bytes": 1, "sha256": "0"})
    manifest.write_text(json.dumps(told))
    assert main(["verify", str(output)]) == 2
    survived += 1
    encoder, index = output / "model" / "encoder.keras", output / "model" / "model.json"
    lambda_model(encoder, mark)
    facts = json.loads(index.read_text())
    facts["files"]["encoder.keras"] = storage.digest_file(str(encoder))["sha256"]
    index.write_text(json.dumps(facts))
    with pytest.raises(ArtifactError):
        load_model(str(output / "model"))
    survived += not mark.exists()
    record("hostile model folder: pickle, path out of it, Lambda layer", tried=3, survived=survived)


def test_hostile_yaml(tmp_path: Path, record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    mark, survived = tmp_path / "was-here", 0
    bombs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
    )
    texts = [f"data: !!python/object/apply:pathlib.Path.touch [{mark}]", bombs, "data: " + "{a: " * 3000]
    for text in texts:
        (tmp_path / "c.yaml").write_text(text)
        assert "is not valid YAML" in refuses(
            capsys, "run", "--input", "x", "--output", str(tmp_path / "o"), "--config", str(tmp_path / "c.yaml")
        )
        survived += not mark.exists()
    record("hostile YAML: object, alias bomb, endless nesting", tried=len(texts), survived=survived)
