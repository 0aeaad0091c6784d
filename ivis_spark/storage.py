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

from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.manifest import FORMAT_VERSION as FORMAT_VERSION  # `as`: readers of run folders find them here
from ivis_spark.manifest import Manifest as Manifest
from ivis_spark.manifest import differences as differences
from ivis_spark.manifest import fingerprint as fingerprint
from ivis_spark.manifest import installed_versions as installed_versions

MANIFEST = "manifest.json"
_BUILDING, _REPLACED = ".building", ".replaced"
_DIGEST_CHUNK_BYTES = 1 << 20


def normalise_uri(uri: str) -> str:
    """Return `uri` with a scheme, so that Spark and fsspec mean the same place: a bare path is local."""
    if "://" in uri:
        return uri.rstrip("/")
    if uri.startswith("file:"):
        uri = uri[len("file:") :]
    if uri.startswith("/Volumes/") and "DATABRICKS_RUNTIME_VERSION" in os.environ:
        uri = "dbfs:" + uri
    if uri.startswith("dbfs:/"):
        return uri.rstrip("/")
    return "file://" + os.path.abspath(os.path.expanduser(uri))


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
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return path if protocol in ("file", "local") else None


def join(uri: str, *parts: str) -> str:
    """Return the URI below `uri`."""
    return posixpath.join(uri, *parts)


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


def read_json(uri: str) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: if it is missing or torn.
    """
    fs, path = filesystem(uri)
    try:
        return json.loads(fs.cat_file(path))
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{uri} is missing or not JSON ({err}); rebuild its stage with --overwrite") from err


def put_folder(local: str, uri: str) -> None:
    """Copy every file below a local folder to the same place below `uri`."""
    for folder, _, names in os.walk(local):
        for name in names:
            source = os.path.join(folder, name)
            put_file(source, join(uri, *os.path.relpath(source, local).split(os.sep)))


def remove_folder(uri: str) -> None:
    """Remove a folder with all that is in it, if it is there."""
    fs, path = filesystem(uri)
    if fs.exists(path):
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
    fs, path = filesystem(uri)
    fs.invalidate_cache()  # object stores remember listings, and executors wrote since
    root = path.rstrip("/")
    found = fs.find(root, detail=True)
    names = {posixpath.relpath(name, root): entry["size"] for name, entry in found.items()}
    return sorted((name, size) for name, size in names.items() if not posixpath.basename(name).startswith((".", "_")))


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
        if not fs.exists(path):
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
        except (ValueError, RecursionError) as err:
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
            if fs.exists(path):
                fs.rm(path, recursive=True)
            parent = fs._parent(path)
            if fs.exists(parent) and not fs.ls(parent, detail=False):
                fs.rmdir(parent)

    def _swap(self, stage: str, building: str) -> None:
        """Put a finished build in the place of the stage; the old one stays aside until the new one stands."""
        fs, new = filesystem(building)
        _, final = filesystem(self.path(stage))
        _, aside = filesystem(self.path(_REPLACED, stage))
        if fs.exists(final):
            if fs.exists(aside):
                fs.rm(aside, recursive=True)
            fs.makedirs(fs._parent(aside), exist_ok=True)
            fs.mv(final, aside, recursive=True)
        fs.mv(new, final, recursive=True)
        self._forget(stage)

    def _forget(self, stage: str) -> None:
        fs, aside = filesystem(self.path(_REPLACED, stage))
        if fs.exists(aside):
            fs.rm(aside, recursive=True)
        if fs.exists(fs._parent(aside)) and not fs.ls(fs._parent(aside), detail=False):
            fs.rmdir(fs._parent(aside))

    def exists(self) -> bool:
        """Tell whether the folder is there."""
        fs, root = filesystem(self.root)
        return bool(fs.exists(root))

    def set_aside(self) -> list[str]:
        """Return the stages that are moved aside: by a run that is publishing right now, or by one that died then."""
        return self._children(_REPLACED)

    def unfinished(self) -> list[str]:
        """Return the folders of builds that go on, or that a killed run left, relative to the run folder."""
        return [posixpath.join(_BUILDING, name) for name in self._children(_BUILDING)]

    def published(self) -> list[str]:
        """Return the names of the stages that have a manifest."""
        fs, root = filesystem(self.root)
        return [name for name in self._children() if fs.exists(posixpath.join(root, name, MANIFEST))]

    def mend(self) -> list[str]:
        """Bring back stages that a run moved aside before it died; return their names. Only the lock's owner may."""
        back = []
        for stage in self.set_aside():
            fs, aside = filesystem(self.path(_REPLACED, stage))
            _, final = filesystem(self.path(stage))
            if fs.exists(posixpath.join(aside, MANIFEST)) and not fs.exists(posixpath.join(final, MANIFEST)):
                if fs.exists(final):
                    fs.rm(final, recursive=True)
                fs.mv(aside, final, recursive=True)
                back.append(stage)
            self._forget(stage)
        return back

    def _children(self, *parts: str) -> list[str]:
        fs, path = filesystem(self.path(*parts))
        fs.invalidate_cache()
        if not fs.exists(path):
            return []
        return sorted(posixpath.basename(name.rstrip("/")) for name in fs.ls(path, detail=False))


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
