"""One run writes a folder at a time; a dead one's lock is taken over, a living one's never."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ivis_spark import storage
from ivis_spark.errors import ArtifactError, BusyError
from ivis_spark.runtime import lock
from ivis_spark.runtime.lock import Owner, RunLock, owners, read_owner

HOLD = """
import sys, time
from ivis_spark.runtime.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
RACE = """
import os, sys, time
from ivis_spark.errors import ArtifactError
from ivis_spark.runtime.lock import RunLock
inside = sys.argv[1] + "/inside"
for _ in range(20):
    try:
        with RunLock(sys.argv[1]):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            time.sleep(0.1)
            os.unlink(inside)
            print("held", flush=True)
    except ArtifactError:
        time.sleep(0.05)
"""


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}/out"


@pytest.fixture(autouse=True)
def _short_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_SETTLE_S", 0.05)
    monkeypatch.setattr(lock, "WATCH_S", 0.3)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of tmp_path/out."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    ) as made:
        assert made.stdout is not None and made.stdout.readline() == "held\n"
        yield made
        made.kill()


def test_second_run_is_refused_and_the_first_keeps_its_lock(root: str) -> None:
    with RunLock(root) as first:
        with pytest.raises(
            BusyError, match=rf"written by process {os.getpid()} of .* or restart after .* at once"
        ) as refused:
            RunLock(root).__enter__()
        assert refused.value.exit_code == os.EX_TEMPFAIL
        first.check()
        with RunLock(root, "embeddings-other"):
            assert len(owners(root)) == 2
    assert owners(root) == {}


def test_lock_of_another_process(
    tmp_path: Path, other: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = str(tmp_path / "out")
    with pytest.raises(ArtifactError, match=f"process {other.pid} of"):
        RunLock(root).__enter__()
    other.kill()
    other.wait()
    with caplog.at_level(logging.WARNING, "ivis_spark"), RunLock(root) as mine:
        mine.check()
    assert f"taking over a stale lock: process {other.pid} of" in caplog.text


def change(root: str, **fields: object) -> None:
    uri = storage.join(storage.normalise_uri(root), ".lock-run.json")
    fs, path = storage.filesystem(uri)
    fs.pipe_file(path, json.dumps({**json.loads(fs.cat_file(path)), **fields}).encode())


def test_silent_owner_elsewhere_is_taken_over_and_hears_of_it(root: str) -> None:
    with RunLock(root) as first:
        change(root, host="elsewhere", heartbeat=time.time() - lock.STALE_S + 30)
        with pytest.raises(ArtifactError, match=r"on elsewhere, .* restart in 30 s"):
            RunLock(root).__enter__()
        change(root, host="elsewhere", heartbeat=time.time() - lock.STALE_S - 1)
        with RunLock(root):
            with pytest.raises(ArtifactError, match="is being written by process"):
                first.check()
            assert len(owners(root)) == 1
        with pytest.raises(ArtifactError, match="was removed"):
            first.check()


def test_a_process_of_this_machine_is_waited_for(root: str) -> None:
    said = rf"^--target here is .*another --target, or restart after process {os.getpid()} has ended; .* at once$"
    with RunLock(root), pytest.raises(ArtifactError, match=said):
        RunLock(root, option="--target", place="here").__enter__()


def test_a_later_process_with_the_same_number_is_not_the_owner(root: str) -> None:
    with RunLock(root):
        change(root, born="1")
        with RunLock(root) as second:
            second.check()


def test_the_same_hostname_with_other_processes(root: str) -> None:
    """As two containers that are both called `localhost`: a number that is nobody's here says nothing of theirs."""
    with RunLock(root):
        change(root, pid=2**22 + 1, processes="another boot pid:[1]")
        with pytest.raises(ArtifactError, match="is being written by process 4194305"):
            RunLock(root).__enter__()
        change(root, processes=None)  # of a version that did not say, or without /proc
        with pytest.raises(ArtifactError, match="is being written by process 4194305"):
            RunLock(root).__enter__()
        change(root, processes=lock._processes())
        with RunLock(root) as second:
            second.check()


@pytest.mark.parametrize("off", [-3600, 3600], ids=["behind", "ahead"])
def test_clocks_that_differ(root: str, off: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A living owner elsewhere keeps its lock whatever its clock says; a dead one loses it."""
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    change_clock = time.time
    monkeypatch.setattr(lock.Owner, "me", classmethod(lambda cls: owner_elsewhere(off)))
    with RunLock(root) as first:
        with monkeypatch.context() as patch:
            beats = [0]

            def theirs() -> float:
                beats[0] += 1
                return change_clock() + off if threading.current_thread() is first._thread else change_clock()

            patch.setattr(lock.time, "time", theirs)
            time.sleep(0.2)
            assert abs(read_owner(first.uri).heartbeat - change_clock() - off) < 60  # type: ignore[union-attr]
            with pytest.raises(ArtifactError, match="is being written by process"):
                RunLock(root).__enter__()
        first._stop.set()
        first._thread.join()
        change(root, heartbeat=change_clock() + off)
        with RunLock(root):
            with pytest.raises(ArtifactError):
                first.check()


def owner_elsewhere(off: float) -> Owner:
    now = time.time() + off
    return Owner(uuid.uuid4().hex, "elsewhere", 1, "somebody", "1", now, now, "another boot pid:[1]")


def test_heartbeat_is_written(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.05)
    with RunLock(root) as held:
        first = read_owner(held.uri)
        deadline = time.monotonic() + 10
        while read_owner(held.uri) == first and time.monotonic() < deadline:
            time.sleep(0.02)
        second = read_owner(held.uri)
    assert first is not None and second is not None
    assert second.heartbeat > first.heartbeat and second.token == first.token


def test_torn_lock_is_taken_over(root: str) -> None:
    fs, path = storage.filesystem(storage.join(storage.normalise_uri(root), ".lock-run.json"))
    fs.makedirs(fs._parent(path), exist_ok=True)
    fs.pipe_file(path, b'{"token": "a')
    with RunLock(root) as mine:
        mine.check()
    assert not fs.exists(path)


def test_never_two_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path / "out")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [run.communicate(timeout=120)[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0, 0]  # two inside at once: one would raise FileExistsError
    assert sum(map(len, said)) >= 4
