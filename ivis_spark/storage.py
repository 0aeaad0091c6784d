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
import importlib.metadata
import json
import os
import platform
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

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_BUILDING, _REPLACED = ".building", ".replaced"
_PACKAGES = ("ivis_spark", "numpy", "pyarrow", "annoy", "pyspark", "petastorm", "tensorflow", "tensorflow-cpu", "keras")
_DIGEST_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a published stage says of itself. `spec` (configuration and inputs) decides whether a rerun may skip it."""

    stage: str
    spec: dict[str, Any]
    info: dict[str, Any]
    files: list[dict[str, Any]]
    versions: dict[str, str]
    created: str
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """Digest of the configuration and the inputs: equal for equal work, whatever the bytes of the files."""
        return fingerprint(self.spec)


def fingerprint(value: Any) -> str:
    """Return a short digest of anything JSON can hold."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def normalise_uri(uri: str) -> str:
    """Return `uri` with a scheme, so that Spark and fsspec mean the same place: a bare path is local."""
    if "://" in uri:
        return uri.rstrip("/")
    if uri.startswith("file:"):
        uri = uri[len("file:") :]
    if uri.startswith("dbfs:/"):
        return uri.rstrip("/")
    return "file://" + os.path.abspath(os.path.expanduser(uri))


def filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URI and the path on it.

    Hadoop's names are understood: `s3a://` is fsspec's s3, and `dbfs:/` is the mount that Databricks offers.

    Raises:
        ArtifactError: if the scheme is unknown or its fsspec driver is not installed.
    """
    uri = normalise_uri(uri)
    if uri.startswith("dbfs:/"):
        uri = "file:///dbfs/" + uri[len("dbfs:/") :].lstrip("/")
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
        self._restore(stage)
        fs, path = filesystem(self.path(stage, MANIFEST))
        if not fs.exists(path):
            return None
        try:
            loaded = json.loads(fs.cat_file(path))
            manifest = Manifest(**loaded)
        except (ValueError, TypeError) as err:
            raise ArtifactError(
                f"{self.path(stage, MANIFEST)} is not a manifest ({err}); rebuild the stage with --overwrite"
            ) from err
        if manifest.format_version > FORMAT_VERSION:
            raise ArtifactError(
                f"{self.path(stage, MANIFEST)} has format {manifest.format_version}; this version reads up to "
                f"{FORMAT_VERSION}: update ivis_spark"
            )
        return manifest

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
    ) -> Iterator[StageBuild]:
        """Build a stage and publish it when the block ends without an exception.

        Args:
            stage: Name of the folder.
            spec: Configuration and inputs, kept in the manifest and compared on a rerun.
            map_files: How to digest many files; Spark's tasks where there are many.

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
            if not fs.ls(fs._parent(aside), detail=False):
                fs.rmdir(fs._parent(aside))

    def _restore(self, stage: str) -> None:
        """Bring back a stage that was moved aside by a run which died before its new one stood in its place."""
        fs, aside = filesystem(self.path(_REPLACED, stage))
        _, final = filesystem(self.path(stage))
        if fs.exists(posixpath.join(aside, MANIFEST)) and not fs.exists(posixpath.join(final, MANIFEST)):
            if fs.exists(final):
                fs.rm(final, recursive=True)
            fs.mv(aside, final, recursive=True)


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


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return `name: old -> new` for every leaf in which two nested mappings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            inner = f"{name}.{key}" if name else str(key)
            found += differences(old.get(key), new.get(key), inner)
        return found
    return [] if old == new else [f"{name}: {old!r} -> {new!r}"]


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
