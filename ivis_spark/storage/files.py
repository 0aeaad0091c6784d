"""Files by URI: read, written, copied, listed and digested wherever fsspec reaches.

Paths are URIs for fsspec and Hadoop alike: local, hdfs://, s3://, dbfs:/ differ by their scheme only.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from ivis_spark.errors import UNREADABLE, ArtifactError, InputError
from ivis_spark.storage.careful import children, exists, find, protocol
from ivis_spark.storage.literal import literal
from ivis_spark.storage.names import join, normalise_uri

Item = TypeVar("Item")
Found = TypeVar("Found")

REQUESTS = 32  # at once: those of many files, one after the other, would take hours
_REBUILD = "rebuild its stage with --overwrite"
_DIGEST_CHUNK_BYTES = 1 << 20
_OBJECT_STORES = frozenset(
    {"s3", "gcs", "abfs", "memory"}
)  # as pyarrow names them; fsspec's own clients of them are async
_NEW = ".new"


def filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URI and the path on it.

    Hadoop's names are understood: `s3a://` is fsspec's s3, and `dbfs:/` is the mount that Databricks offers, or a
    volume of Unity Catalog.

    Raises:
        ArtifactError: if the scheme is unknown or its fsspec driver is not installed.
    """
    uri = normalise_uri(uri)
    if uri.startswith("dbfs:/"):
        path = uri[len("dbfs:/") :].lstrip("/")
        uri = f"file:///{path}" if path.startswith("Volumes/") else f"file:///dbfs/{path}"
    if uri.startswith("s3a://"):
        uri = "s3://" + uri[len("s3a://") :]
    try:
        if "::" in uri:  # in a name; fsspec would chain filesystems
            kind = fsspec.get_filesystem_class(uri.partition("://")[0])
            fs, path = kind(**kind._get_kwargs_from_urls(uri)), kind._strip_protocol(uri)
        else:
            fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as err:
        raise ArtifactError(f"{uri!r} cannot be reached: {err}") from err
    return literal(fs, path), path


def local_path(uri: str) -> str | None:
    """Return the path of a URI on this machine's disk, or None if it is elsewhere."""
    fs, path = filesystem(uri)
    return path if protocol(fs) in ("file", "local") else None


def in_parallel(function: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """Apply a function that waits for storage to some items, many at once; the first fault is raised."""
    sequence = list(items)
    if len(sequence) < 2:
        return [function(item) for item in sequence]
    with ThreadPoolExecutor(min(REQUESTS, len(sequence))) as pool:
        return list(pool.map(function, sequence))


def move_files(moves: Iterable[tuple[str, str]]) -> None:
    """Move files, each given by where it is and where to; those that were moved already are left."""
    sequence = list(moves)
    in_parallel(_make_folder, {posixpath.dirname(target) for _, target in sequence})
    in_parallel(lambda move: _move_file(*move), sequence)


def _make_folder(uri: str) -> None:
    fs, path = filesystem(uri)
    fs.makedirs(path, exist_ok=True)


def _move_file(source: str, target: str) -> None:
    fs, old = filesystem(source)
    _, new = filesystem(target)
    try:
        fs.mv(old, new)
    except Exception:  # each storage has its own error for a file that is not there
        if exists(fs, old) or not exists(fs, new):
            raise


def move_folder(source: str, target: str) -> None:
    """Move a folder, file by file: object stores have no folders, and their clients fail to move one."""
    move_files((join(source, name), join(target, name)) for name in find(*filesystem(source)))
    remove_folder(source)


def digest_file(uri: str) -> dict[str, Any]:
    """Return `{"bytes", "sha256"}` of a file, read in chunks. Runs on: driver or executor."""
    fs, path = filesystem(uri)
    digest, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as file:
        while chunk := file.read(_DIGEST_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


class DigestedWriter(io.RawIOBase):
    """A file that is written from its start to its end, and digested meanwhile. Runs on: driver or executor.

    Args:
        file: What to write into; it is closed by whoever opened it.
    """

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file, self._digest, self._bytes = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        """Tell that it can be written."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._bytes

    def write(self, data: Any) -> int:
        """Write bytes."""
        self._file.write(data)
        self._digest.update(data)
        self._bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    @property
    def record(self) -> dict[str, Any]:
        """`{"bytes", "sha256"}` of what was written, as `digest_file` gives it."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def put_file(local: str, uri: str, *, parents: bool = True, move: bool = False) -> dict[str, Any]:
    """Copy a local file to a URI and return `{"path": uri, "bytes", "sha256"}`.

    Runs on: driver or executor.

    Args:
        local: Path of the file.
        uri: Where to.
        parents: Whether to make the folder. Not in tasks that may outlive the stage, which would bring it back.
        move: Whether the local file may go: on one file system that costs nothing.
    """
    fs, path = filesystem(uri)
    if parents:
        fs.makedirs(fs._parent(path), exist_ok=True)
    record = {"path": uri, **digest_file(local)}
    if move and local_path(uri) is not None:
        shutil.move(local, path)
        return record
    fs.put_file(local, path)
    if move:
        os.remove(local)
    return record


def encode_json(value: Any) -> bytes:
    """Return a value as readable JSON."""
    return json.dumps(value, indent=2, sort_keys=True, default=str).encode()


def write_json(uri: str, value: Any) -> None:
    """Write a value as readable JSON."""
    write_bytes(uri, encode_json(value))


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file."""
    fs, path = filesystem(uri)
    fs.makedirs(fs._parent(path), exist_ok=True)
    fs.pipe_file(path, content)


def replace_file(uri: str, content: bytes) -> None:
    """Write a file so that it is whole, the old one or the new one, whenever the process dies.

    An object store does so by itself. Elsewhere the new file is renamed; where a rename takes the place of no other
    file, as on HDFS, the old one goes first, and `read_replaced` reads the new one by its first name until it is moved.
    """
    fs, path = filesystem(uri)
    fs.makedirs(fs._parent(path), exist_ok=True)
    if _puts_whole(fs):
        fs.pipe_file(path, content)
        return
    new = f"{path}.{uuid.uuid4().hex[:12]}{_NEW}"
    fs.pipe_file(new, content)
    if local_path(uri) is None and exists(fs, path):
        fs.rm_file(path)
    fs.mv(new, path)


def read_replaced(uri: str) -> bytes | None:
    """Read what `replace_file` wrote; None if it is not there."""
    fs, path = filesystem(uri)
    if exists(fs, path):
        return bytes(fs.cat_file(path))
    if not _puts_whole(fs) and local_path(uri) is None:
        folder, _, name = path.rpartition("/")
        for new in children(fs, folder):
            if new.startswith(f"{name}.") and new.endswith(_NEW):
                content = bytes(fs.cat_file(f"{folder}/{new}"))
                with contextlib.suppress(ValueError):
                    json.loads(content)  # else it was cut off while it was written
                    return content
    return None


def _puts_whole(fs: Any) -> bool:
    """Tell whether a file that is written appears whole or not at all."""
    return getattr(fs, "async_impl", False) or isinstance(fs, MemoryFileSystem) or protocol(fs) in _OBJECT_STORES


def read_json(uri: str, read: Callable[[Any], Any] | None = None, *, remedy: str = _REBUILD) -> Any:
    """Read a JSON file; `read` makes something of it, or raises ValueError.

    Raises:
        ArtifactError: if it is missing, corrupt, or rejected by `read`; names it and what to do.
    """
    return parse_json(_content(uri, remedy), uri, read, remedy=remedy)


def read_bytes(uri: str, read: Callable[[bytes], Found], *, remedy: str = _REBUILD) -> Found:
    """Read a file; `read` makes something of it, or raises ArtifactError.

    Raises:
        ArtifactError: if it is missing or rejected by `read`; names it and what to do.
    """
    content = _content(uri, remedy)
    try:
        return read(content)
    except ArtifactError as err:
        raise ArtifactError(f"{uri}: {err}") from err


def _content(uri: str, remedy: str) -> bytes:
    fs, path = filesystem(uri)
    try:
        return bytes(fs.cat_file(path))
    except OSError as err:
        raise ArtifactError(f"{uri} is missing or cannot be read ({err}); {remedy}") from err


def parse_json(content: bytes, name: str, read: Callable[[Any], Any] | None = None, *, remedy: str = _REBUILD) -> Any:
    """Read the content of a JSON file, as `read_json` does; `name` is for messages."""
    try:
        value = json.loads(content)
        return value if read is None else read(value)
    except ArtifactError as err:
        raise ArtifactError(f"{name}: {err}") from err
    except UNREADABLE as err:
        raise ArtifactError(f"{name} is not what was written ({err}); {remedy}") from err


def put_folder(local: str, uri: str) -> None:
    """Copy every file below a local folder to the same place below `uri`."""
    for folder, _, names in os.walk(local):
        for name in names:
            source = os.path.join(folder, name)
            put_file(source, join(uri, *os.path.relpath(source, local).split(os.sep)))


def remove_file(uri: str) -> None:
    """Remove a file, if it is there."""
    fs, path = filesystem(uri)
    if exists(fs, path):
        fs.rm_file(path)


def remove_folder(uri: str) -> None:
    """Remove a folder with all that is in it, if it is there."""
    fs, path = filesystem(uri)
    if exists(fs, path):
        fs.rm(path, recursive=True)


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """Yield a local path with the content of a file or folder: itself if local, else a copy that is removed after."""
    path = local_path(uri)
    if path is not None:
        yield path
        return
    fs, remote = filesystem(uri)
    temporary = tempfile.mkdtemp(prefix="ivis-spark-")
    try:
        target = os.path.join(temporary, posixpath.basename(remote))
        fs.get(remote, target, recursive=True)
        yield target
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def list_files(uri: str) -> list[tuple[str, int]]:
    """Return (path relative to `uri`, bytes) of every file below it, sorted; checksums and markers left out."""
    files = find(*filesystem(uri))
    sizes = {name: entry["size"] for name, entry in files.items()}
    return sorted((name, size) for name, size in sizes.items() if not posixpath.basename(name).startswith((".", "_")))


def keep_only(folder: str, uris: Iterable[str | None]) -> None:
    """Remove every file of a folder but these: those of task attempts whose result Spark did not take."""
    taken = {posixpath.basename(uri) for uri in uris if uri}
    fs, root = filesystem(folder)
    left = [name for name, _ in list_files(folder) if posixpath.basename(name) not in taken]
    in_parallel(lambda name: fs.rm_file(posixpath.join(root, name)), left)


def describe_files(uris: Iterable[str]) -> list[list[Any]]:
    """Return [URI, bytes, time of change] of files, sorted: what tells whether one was rewritten, moved or added.

    Args:
        uris: URIs of files, or of folders, which stand for all files below them.
    """
    groups = [list(group) for _, group in itertools.groupby(sorted(uris), key=posixpath.dirname)]
    return sorted(itertools.chain(*in_parallel(_describe_siblings, groups)))


def _describe_siblings(uris: list[str]) -> list[list[Any]]:
    """Describe files, or folders, of one folder."""
    fs, path = filesystem(posixpath.dirname(uris[0]))
    # Asking for each of many files takes a request each.
    fs.invalidate_cache()
    listing = fs.ls(path, detail=True) if len(uris) > 9 else []
    listed = {posixpath.basename(entry["name"].rstrip("/")): entry for entry in listing}
    states = []
    for uri in uris:
        plain = filesystem(uri)[1]
        entry = listed.get(posixpath.basename(plain)) or fs.info(plain)
        root = normalise_uri(uri)
        if entry["type"] == "file":
            states.append([root, *_state(entry)])
        else:
            states += [[join(root, name), *_state(each)] for name, each in find(fs, plain).items()]
    return states


def _state(entry: dict[str, Any]) -> tuple[int, str]:
    """Return the size and the time of change of a file."""
    changed = entry.get("mtime", entry.get("LastModified", entry.get("last_modified", "")))
    if hasattr(changed, "microsecond"):  # listings of some object stores have milliseconds that other answers lack
        changed = changed.replace(microsecond=0)
    return entry["size"], str(changed)


def check_bucket(uri: str) -> None:
    """Refuse a bucket of S3 that does not exist, which its client would make.

    Raises:
        InputError: if the storage has buckets, and says that there is none of this name.
    """
    fs, path = filesystem(uri)
    bucket = path.strip("/").partition("/")[0]
    with contextlib.suppress(PermissionError):  # who may see a folder may not see its bucket
        if "s3" in fs.protocol and not exists(fs, bucket):
            raise InputError(f"{uri}: there is no {bucket!r}; check the URI, the credentials and the endpoint")


def check_writable(uri: str, option: str = "--output") -> None:
    """Make the folder and a file in it, so that a bad one is known before work is done.

    Args:
        uri: The folder.
        option: Where the user named it.

    Raises:
        InputError: if that fails.
    """
    try:
        fs, path = filesystem(uri)
        fs.makedirs(path, exist_ok=True)
        probe = posixpath.join(path, f".probe-{uuid.uuid4().hex[:8]}")
        fs.pipe_file(probe, b"")
        fs.rm_file(probe)
    except OSError as err:
        raise InputError(f"{option} {uri} cannot be written: {err.strerror or err}; choose another folder") from err
