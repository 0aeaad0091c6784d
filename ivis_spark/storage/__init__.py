"""The run folder: one folder a stage, published whole or not at all, each with a manifest.

A stage is built under `<root>/.building/<stage>-<token>`, its manifest is written last, and only then the folder is
renamed to `<root>/<stage>`. What stood there before is first moved aside and comes back should the second rename
fail. So a stage without a manifest does not exist, and a fault loses nothing that was published.

Paths are URIs for fsspec and Hadoop alike: local, hdfs://, s3://, dbfs:/ differ by their scheme only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import posixpath
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec

from ivis_spark.errors import UNREADABLE, ArtifactError, InputError
from ivis_spark.manifest import FORMAT_VERSION as FORMAT_VERSION  # `as`: readers of run folders find them here
from ivis_spark.manifest import Manifest as Manifest
from ivis_spark.manifest import differences as differences
from ivis_spark.manifest import fingerprint as fingerprint
from ivis_spark.manifest import installed_versions as installed_versions
from ivis_spark.storage.careful import children as children
from ivis_spark.storage.careful import exists as exists
from ivis_spark.storage.careful import find as find
from ivis_spark.storage.careful import move_folder as move_folder
from ivis_spark.storage.careful import protocol as protocol
from ivis_spark.storage.names import join as join
from ivis_spark.storage.names import normalise_uri as normalise_uri

MANIFEST = "manifest.json"
_BUILDING, _REPLACED = ".building", ".replaced"
_REBUILD = "rebuild its stage with --overwrite"
_DIGEST_CHUNK_BYTES = 1 << 20


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
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as err:
        raise ArtifactError(f"{uri!r} cannot be reached: {err}") from err
    return fs, path


def local_path(uri: str) -> str | None:
    """Return the path of a URI on this machine's disk, or None if it is elsewhere."""
    fs, path = filesystem(uri)
    return path if protocol(fs) in ("file", "local") else None


def digest_file(uri: str) -> dict[str, Any]:
    """Return `{"bytes", "sha256"}` of a file, read in chunks. Runs on: driver or executor."""
    fs, path = filesystem(uri)
    digest, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as file:
        while chunk := file.read(_DIGEST_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


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


def write_json(uri: str, value: Any) -> None:
    """Write a value as readable JSON."""
    fs, path = filesystem(uri)
    fs.makedirs(fs._parent(path), exist_ok=True)
    fs.pipe_file(path, json.dumps(value, indent=2, sort_keys=True, default=str).encode())


def read_json(uri: str, read: Callable[[Any], Any] | None = None, *, remedy: str = _REBUILD) -> Any:
    """Read a JSON file; `read` makes something of it, or raises ValueError.

    Raises:
        ArtifactError: if it is missing, torn, or not what `read` wants; names it and what to do.
    """
    fs, path = filesystem(uri)
    try:
        content = fs.cat_file(path)
    except OSError as err:
        raise ArtifactError(f"{uri} is missing or cannot be read ({err}); {remedy}") from err
    return parse_json(content, uri, read, remedy=remedy)


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
    found = find(*filesystem(uri))
    sizes = {name: entry["size"] for name, entry in found.items()}
    return sorted((name, size) for name, size in sizes.items() if not posixpath.basename(name).startswith((".", "_")))


def keep_only(folder: str, uris: Iterable[str | None]) -> None:
    """Remove every file of a folder but these: those of task attempts whose result Spark did not take."""
    taken = {posixpath.basename(uri) for uri in uris if uri}
    for name, _ in list_files(folder):
        if posixpath.basename(name) not in taken:
            fs, path = filesystem(join(folder, name))
            fs.rm_file(path)


def source_fingerprint(paths: Iterable[str]) -> dict[str, Any]:
    """Describe the files of an input: names, sizes and times of change, folded into one digest.

    Args:
        paths: URIs of the files, as Spark lists them for a table.

    Returns:
        `{"files", "bytes", "digest"}`; a rewritten, added or removed file changes the digest.
    """
    rows = []
    for path in sorted(paths):
        fs, plain = filesystem(path)
        entry = fs.info(plain)
        changed = entry.get("mtime", entry.get("LastModified", entry.get("last_modified", "")))
        rows.append([posixpath.basename(plain), entry["size"], str(changed)])
    return {"files": len(rows), "bytes": sum(row[1] for row in rows), "digest": fingerprint(rows)}


@dataclass
class StageBuild:
    """A stage that is being built: write below `uri`, note facts in `info`, then leave the `with` block."""

    uri: str
    info: dict[str, Any] = field(default_factory=dict)

    def path(self, *parts: str) -> str:
        """Return the URI of a file or folder of the stage."""
        return join(self.uri, *parts)


class RunFolder:
    """The folder `--output` of a run. Runs on: driver.

    Args:
        root: URI of the folder; it is made when the first stage is built.
    """

    def __init__(self, root: str) -> None:
        self.root = normalise_uri(root)

    def path(self, *parts: str) -> str:
        """Return the URI of something in the run folder."""
        return join(self.root, *parts)

    def manifest(self, stage: str) -> Manifest | None:
        """Return the manifest of a stage, or None if it is not published.

        Raises:
            ArtifactError: if the manifest is torn or of a newer format.
        """
        fs, path = filesystem(self.path(stage, MANIFEST))
        if not exists(fs, path):
            return None
        try:
            loaded = json.loads(fs.cat_file(path))
            newer = isinstance(loaded, dict) and isinstance(loaded.get("format_version"), int)
            if newer and loaded["format_version"] > FORMAT_VERSION:
                raise ArtifactError(
                    f"{self.path(stage, MANIFEST)} has format {loaded['format_version']}; this version reads up to "
                    f"{FORMAT_VERSION}: update ivis_spark"
                )
            return Manifest.from_mapping(loaded)
        except (ValueError, RecursionError) as err:  # an OSError says nothing about the manifest
            raise ArtifactError(
                f"{self.path(stage, MANIFEST)} is not a manifest ({err}); rebuild the stage with --overwrite"
            ) from err

    def require(self, stage: str, command: str) -> Manifest:
        """Return the manifest of a stage that must be there, after looking whether its files are whole.

        Raises:
            ArtifactError: if the stage is not published (names the command that makes it), or a file of it is
                missing or of another size (names the file).
        """
        manifest = self.manifest(stage)
        if manifest is None:
            raise ArtifactError(f"{self.root} has no {stage!r}; make it first: ivis-spark {command} --output ...")
        sizes = dict(list_files(self.path(stage)))
        for record in manifest.files:
            found = sizes.get(record["path"])
            if found != record["bytes"]:
                state = "is missing" if found is None else f"holds {found} bytes, {record['bytes']} were written"
                raise ArtifactError(
                    f"{self.path(stage, record['path'])} {state}; rebuild it: ivis-spark {command} --overwrite"
                )
        return manifest

    def is_current(self, stage: str, spec: Mapping[str, Any], *, overwrite: bool) -> bool:
        """Tell whether a stage is published with this very configuration and input.

        Raises:
            ArtifactError: if it is published with another one and `overwrite` is off; the message shows the difference.
        """
        try:
            published = self.manifest(stage)
        except ArtifactError:
            if not overwrite:
                raise
            return False
        if published is None:
            return False
        changes = differences(published.spec, dict(spec))
        if not changes:
            return True
        if overwrite:
            return False
        raise ArtifactError(
            f"{self.path(stage)} was made with other settings or input: {'; '.join(changes)}. Choose another --output, "
            "take the change back, or pass --overwrite to build it anew"
        )

    @contextlib.contextmanager
    def build(
        self,
        stage: str,
        spec: Mapping[str, Any],
        *,
        map_files: Callable[[Callable[[str], Any], list[str]], Iterable[Any]] = map,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[StageBuild]:
        """Build a stage and publish it when the block ends without an exception.

        Args:
            stage: Name of the folder.
            spec: Configuration and inputs, kept in the manifest and compared on a rerun.
            map_files: How to digest many files; Spark's tasks where there are many.
            check: Called last before publishing; what it raises keeps the stage from being published.

        Yields:
            The build; what is written below its `uri` is what will stand in the folder.
        """
        building = self.path(_BUILDING, f"{stage}-{uuid.uuid4().hex[:12]}")
        fs, path = filesystem(building)
        fs.makedirs(path, exist_ok=True)
        started = time.time()
        try:
            build = StageBuild(building)
            yield build
            names = [name for name, _ in list_files(building)]
            digests = list(map_files(digest_file, [join(building, name) for name in names]))
            manifest = Manifest(
                stage=stage,
                spec=dict(spec),
                info={**build.info, "seconds": round(time.time() - started, 3)},
                files=[{"path": name, **digest} for name, digest in zip(names, digests, strict=True)],
                versions=installed_versions(),
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
            write_json(join(building, MANIFEST), dataclasses.asdict(manifest))
            check()
            self._swap(stage, building)
        finally:
            remove_folder(building)
            _remove_if_empty(fs, fs._parent(path))

    def _swap(self, stage: str, building: str) -> None:
        """Put a finished build in the place of the stage; the old one stays aside until the new one stands."""
        fs, new = filesystem(building)
        _, final = filesystem(self.path(stage))
        _, aside = filesystem(self.path(_REPLACED, stage))
        if not exists(fs, posixpath.join(final, MANIFEST)):
            remove_folder(self.path(stage))  # of a publication that died; what it had set aside stays until this stands
        else:
            self.remove(posixpath.join(_REPLACED, stage))
            fs.makedirs(fs._parent(aside), exist_ok=True)
            move_folder(fs, final, aside, seal=MANIFEST)
        move_folder(fs, new, final, seal=MANIFEST)
        self._forget(stage)

    def remove(self, stage: str) -> None:
        """Remove a stage; its manifest first, so that half of it never counts."""
        for part in (self.path(stage, MANIFEST), self.path(stage)):
            remove_folder(part)

    def _forget(self, stage: str) -> None:
        self.remove(posixpath.join(_REPLACED, stage))
        fs, replaced = filesystem(self.path(_REPLACED))
        _remove_if_empty(fs, replaced)

    def exists(self) -> bool:
        """Tell whether the folder is there."""
        fs, root = filesystem(self.root)
        return exists(fs, root)

    def set_aside(self) -> list[str]:
        """Return the stages that are moved aside: by a run that is publishing right now, or by one that died then."""
        return self._children(_REPLACED)

    def unfinished(self) -> list[str]:
        """Return the folders of builds that go on, or that a killed run left, relative to the run folder."""
        return [posixpath.join(_BUILDING, name) for name in self._children(_BUILDING)]

    def published(self) -> list[str]:
        """Return the names of the stages that have a manifest."""
        fs, root = filesystem(self.root)
        return [name for name in self._children() if exists(fs, posixpath.join(root, name, MANIFEST))]

    def torn(self) -> list[str]:
        """Return the folders that stand where stages do and have no manifest: what a removal that died left."""
        names = [name for name in self._children() if not name.startswith(".")]
        return [name for name in names if name not in self.published()]

    def mend(self) -> list[str]:
        """Bring back stages that a run moved aside before it died; return their names. Only the lock's owner may."""
        back = []
        for stage in self.set_aside():
            fs, aside = filesystem(self.path(_REPLACED, stage))
            _, final = filesystem(self.path(stage))
            if exists(fs, posixpath.join(aside, MANIFEST)) and not exists(fs, posixpath.join(final, MANIFEST)):
                remove_folder(self.path(stage))
                move_folder(fs, aside, final, seal=MANIFEST)
                back.append(stage)
            self._forget(stage)
        return back

    def _children(self, *parts: str) -> list[str]:
        return children(*filesystem(self.path(*parts)))


def _remove_if_empty(fs: Any, path: str) -> None:
    if exists(fs, path) and not fs.ls(path, detail=False):
        fs.rmdir(path)


def check_writable(uri: str) -> None:
    """Make the folder and a file in it, so that a bad `--output` is known before work is done.

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
        raise InputError(f"--output {uri} cannot be written: {err.strerror or err}; choose another folder") from err
