"""What fsspec does leniently, done so that a fault is an error and not an absence.

fsspec's own `exists` returns False for any error, and its `find` and `walk` leave folders out that they could not
list: one failed request would then count as a stage that is not there, or as a table of fewer rows.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any


def exists(fs: Any, path: str) -> bool:
    """Tell whether a file or folder is there.

    Raises:
        OSError: if the storage does not say.
    """
    try:
        fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def find(fs: Any, path: str) -> dict[str, dict[str, Any]]:
    """Return all files below a folder with what is known of each; none if it is not there.

    Raises:
        OSError: if a folder cannot be listed.
    """
    fs.invalidate_cache()  # object stores remember listings, and executors wrote since
    root = path.rstrip("/")
    if not exists(fs, root):
        return {}
    if getattr(fs, "async_impl", False):  # the clients of object stores list all at once, and raise by themselves
        entries: Iterable[dict[str, Any]] = fs.find(root, detail=True).values()
    else:
        entries = _walk(fs, root)
    return {posixpath.relpath(entry["name"], root): entry for entry in entries}


def _walk(fs: Any, folder: str) -> Iterator[dict[str, Any]]:
    for entry in fs.ls(folder, detail=True):
        if entry["type"] == "directory":
            yield from _walk(fs, entry["name"])
        else:
            yield entry


def children(fs: Any, path: str) -> list[str]:
    """Return the names in a folder, sorted; none if it is not there, or is a file.

    An object store may list the empty object that stands for the folder itself, which is not in it.
    """
    fs.invalidate_cache()
    if not exists(fs, path):
        return []
    names = (name.rstrip("/") for name in fs.ls(path, detail=False))
    return sorted(posixpath.basename(name) for name in names if name.lstrip("/") != path.strip("/"))


def protocol(fs: Any) -> str:
    """Return the first name of a filesystem's protocol."""
    return str(fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0])
