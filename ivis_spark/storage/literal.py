"""Paths with *, ? or [ in them, on filesystems for which fsspec takes these for patterns.

`rm`, `mv`, `copy` and `get` of fsspec would then work on other files: a run in `s3://bucket/q?` would remove what
stands in `s3://bucket/q1`.
"""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Any

from ivis_spark.storage.careful import find, protocol

_LITERAL = frozenset({"file", "local", "hdfs", "arrow_hdfs"})  # whose own methods take paths as they are


def literal(fs: Any, path: str) -> Any:
    """Return a filesystem that takes `path`, and what is below it, as it is."""
    return LiteralPaths(fs) if glob.has_magic(path) and protocol(fs) not in _LITERAL else fs


class LiteralPaths:
    """A filesystem whose methods for whole folders know no patterns; all others are those of the one it wraps."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fs, name)

    def rm(self, path: str, recursive: bool = False) -> None:
        """Remove a file, or a folder with all that is in it."""
        if not self._fs.isdir(path):
            self._fs.rm_file(path)
            return
        names = find(self._fs, path) if recursive else {}
        for name in names:
            self._fs.rm_file(f"{path}/{name}")
        folders = {os.path.dirname(name) for name in names}
        for folder in sorted({*folders, *self._folders(path)}, key=len, reverse=True):
            with contextlib.suppress(FileNotFoundError):  # it goes with its last file where folders are but prefixes
                self._fs.rmdir(f"{path}/{folder}".rstrip("/"))
        self._fs.invalidate_cache()

    def _folders(self, path: str) -> list[str]:
        """Return the folders below one and itself, relative to it."""
        folders = [""]
        with contextlib.suppress(FileNotFoundError):
            for entry in self._fs.ls(path, detail=True):
                if entry["type"] == "directory":
                    name = entry["name"].rstrip("/").rpartition("/")[2]
                    folders += [f"{name}/{inner}".rstrip("/") for inner in self._folders(f"{path}/{name}")]
        return folders

    def mv(self, source: str, target: str) -> None:
        """Move a file to where none stands."""
        self._fs.makedirs(self._fs._parent(target), exist_ok=True)
        self._fs.cp_file(source, target)
        self._fs.rm_file(source)

    def get(self, source: str, target: str, recursive: bool = False) -> None:
        """Copy a file, or what is in a folder, to this machine."""
        source, target = source.rstrip("/"), target.rstrip("/")
        if not self._fs.isdir(source):
            self._fs.get_file(source, target)
            return
        for name in find(self._fs, source):
            local = os.path.join(target, *name.split("/"))
            os.makedirs(os.path.dirname(local), exist_ok=True)
            self._fs.get_file(f"{source}/{name}", local)
