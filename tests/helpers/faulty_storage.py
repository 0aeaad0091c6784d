"""Storage that dies, fails, fills up, dawdles or lists what was: for tests of what is published on it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from ivis_spark import storage
from ivis_spark.errors import IvisError
from ivis_spark.runtime import lock


class Killed(BaseException):
    """The process is gone: nothing that it still tries reaches the storage."""


class DyingFileSystem:
    """Passes everything on to a filesystem; after so many operations that change it the process is gone.

    Operations on many files are taken apart, since a process may also die in the middle of them.
    """

    CHANGES = frozenset({"makedirs", "pipe_file", "rm_file", "rmdir", "put_file", "open", "cp_file"})

    def __init__(self, fs: Any, deaths: Deaths) -> None:
        self._fs, self._deaths = fs, deaths

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what kind of filesystem it is decides how files are replaced
        return type(self._fs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._deaths.check()
            result = found(*arguments, **options)
            if name in self.CHANGES:
                self._deaths.count()
            return result

        return call

    def copy(self, sources: list[str], targets: list[str], **_: Any) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.cp_file(source, target)

    def mv(self, source: str, target: str, **options: Any) -> None:
        if storage.protocol(self._fs) == "memory":  # there as on object stores a move is a copy
            self.cp_file(source, target)
            self.rm_file(source)
            return
        self._deaths.check()
        self._fs.mv(source, target, **options)
        self._deaths.count()

    def rm(self, path: str, recursive: bool = False) -> None:
        if recursive and self._fs.isdir(path):
            for name in sorted(self._fs.find(path)):
                self.rm_file(name)
        self._deaths.check()
        if self._fs.exists(path):
            self._fs.rm(path, recursive=recursive)
            self._deaths.count()


class Deaths:
    """Counts operations and knows after which of them the process is gone; None only counts."""

    def __init__(self, after: int | None) -> None:
        self.after, self.done = after, 0

    def check(self) -> None:
        if self.after is not None and self.done > self.after:
            raise Killed

    def count(self) -> None:
        self.done += 1
        self.check()


def dies_after(operations: int | None, work: Callable[[], Any]) -> tuple[bool, int]:
    """Do some work in a process that dies after so many operations; tell whether it did, and how many were done."""
    deaths, plain = Deaths(operations), fsspec.core.url_to_fs

    def dying(uri: str, **options: Any) -> tuple[Any, str]:
        fs, path = plain(uri, **options)
        return DyingFileSystem(fs, deaths), path

    fsspec.core.url_to_fs = dying
    try:
        work()
    except Killed:
        return True, deaths.done
    finally:
        fsspec.core.url_to_fs = plain
    return False, deaths.done


def each_death(work: Callable[[], Any], prepare: Callable[[], Any], *, most: int | None = None) -> Iterator[int]:
    """Do some work that dies after each of its operations; yields after each death, and in the end after none.

    Args:
        work: What to do.
        prepare: Puts everything where it stood before, for each death.
        most: Try about so many deaths, evenly spread, where each takes long.
    """
    prepare()
    died, total = dies_after(None, work)
    assert not died and total
    for operations in range(0, total - 1, 1 if most is None else max(1, total // most)):
        prepare()
        died, _ = dies_after(operations, work)
        assert died, "work does not do the same operations every time"
        yield operations


def bury(root: str) -> None:
    """Make the locks of a run folder those of processes that are gone: these died in this one, which lives."""
    for uri, owner in lock.owners(root).items():
        if owner.token:  # else it died while it wrote the lock
            storage.write_json(uri, {**dataclasses.asdict(owner), "born": "0"})


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

    def cp_file(self, *arguments: Any, **options: Any) -> None:
        super().cp_file(*arguments, **options)
        self.invalidate_cache()

    def rm_file(self, *arguments: Any, **options: Any) -> None:
        super().rm_file(*arguments, **options)
        self.invalidate_cache()

    def rm(self, *arguments: Any, **options: Any) -> None:
        self.invalidate_cache()
        super().rm(*arguments, **options)
        self.invalidate_cache()

    def invalidate_cache(self, path: str | None = None) -> None:
        self._listed.clear()


def write_as_executor(uri: str, value: Any) -> None:
    """Write a file without the driver's client hearing of it."""
    fs, path = storage.filesystem(uri)
    MemoryFileSystem.pipe_file(fs, path, json.dumps(value).encode())


class HookedFileSystem(MemoryFileSystem):
    """Calls a hook before every request, with its name and the bytes it writes. Folders are listed one by one."""

    @classmethod
    def before(cls, request: str, size: int = 0) -> None:
        raise NotImplementedError

    def pipe_file(self, path: str, value: bytes, *arguments: Any, **options: Any) -> None:
        self.before("write", len(value))
        super().pipe_file(path, value, *arguments, **options)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        self.before("copy", self.info(path1)["size"])
        super().cp_file(path1, path2, **options)

    def cat_file(self, *arguments: Any, **options: Any) -> Any:
        self.before("read")
        return super().cat_file(*arguments, **options)

    def _open(self, *arguments: Any, **options: Any) -> Any:
        self.before("open")
        return super()._open(*arguments, **options)

    def ls(self, *arguments: Any, **options: Any) -> Any:
        self.before("list")
        return super().ls(*arguments, **options)

    def info(self, *arguments: Any, **options: Any) -> Any:
        self.before("look")
        return super().info(*arguments, **options)

    def find(self, path: str, **options: Any) -> Any:
        return fsspec.AbstractFileSystem.find(self, path, **options)

    def rm_file(self, *arguments: Any, **options: Any) -> None:
        self.before("remove")
        super().rm_file(*arguments, **options)

    def rm(self, *arguments: Any, **options: Any) -> None:
        self.before("remove")
        super().rm(*arguments, **options)

    def makedirs(self, *arguments: Any, **options: Any) -> None:
        self.before("make a folder")
        super().makedirs(*arguments, **options)


class SlowFileSystem(HookedFileSystem):
    """Takes its time for every request."""

    protocol = "slow"

    @classmethod
    def before(cls, request: str, size: int = 0) -> None:
        time.sleep(0.01)


class FlakyFileSystem(HookedFileSystem):
    """Fails one request, and works from then on."""

    protocol = "flaky"
    fails_at: ClassVar[int] = -1
    done: ClassVar[list[str]] = []

    @classmethod
    def before(cls, request: str, size: int = 0) -> None:
        cls.done.append(request)
        if len(cls.done) - 1 == cls.fails_at:
            raise OSError(errno.EIO, "Input/output error")

    @classmethod
    def fail(cls, at: int) -> None:
        """Fail the request of this number, counted from now; -1 fails none."""
        cls.fails_at, cls.done = at, []


class FullFileSystem(HookedFileSystem):
    """Has room for so many bytes more."""

    protocol = "full"
    room: ClassVar[float] = float("inf")

    @classmethod
    def before(cls, request: str, size: int = 0) -> None:
        if size > cls.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        cls.room -= size


def each_failure(work: Callable[[], Any], prepare: Callable[[], Any]) -> Iterator[tuple[str, bool]]:
    """Do some work on `flaky://` while each of its requests fails once; yields the request and whether work raised."""
    for at in itertools.count():
        FlakyFileSystem.fail(-1)
        MemoryFileSystem.store.clear()  # each request looks through all that there is
        MemoryFileSystem.pseudo_dirs[:] = [""]
        prepare()
        FlakyFileSystem.fail(at)
        failed = False
        with contextlib.ExitStack() as stack:
            stack.callback(FlakyFileSystem.fail, -1)
            try:
                work()
            except (OSError, IvisError) as err:
                failed = True
                if not isinstance(err, OSError) and not isinstance(err.__cause__, OSError):
                    raise
            done = list(FlakyFileSystem.done)
        if len(done) <= at:
            return
        yield done[at], failed


for kind in (StaleFileSystem, SlowFileSystem, FlakyFileSystem, FullFileSystem):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
