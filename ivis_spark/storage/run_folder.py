"""The run folder: one folder a stage, published whole or not at all, each with a manifest.

A stage is built under `<root>/.building/<stage>-<token>`, its manifest is written last, and only then the folder is
renamed to `<root>/<stage>`. What stood there before is first moved aside and comes back should the second rename
fail. So a stage without a manifest does not exist, and a fault loses nothing that was published.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import posixpath
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.manifest import FORMAT_VERSION, Manifest, differences, installed_versions
from ivis_spark.storage.careful import children, exists, move_folder
from ivis_spark.storage.files import digest_file, filesystem, list_files, remove_folder, write_json
from ivis_spark.storage.names import join, normalise_uri

MANIFEST, MARK = "manifest.json", ".ivis_spark-run.json"
_BUILDING, _REPLACED = ".building", ".replaced"


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

    def is_run(self) -> bool:
        """Tell whether the folder carries the mark of a run, or a stage of a version that wrote none."""
        return MARK in self._children() or bool(self._published_here())

    def check(self) -> None:
        """Refuse a folder that holds files and is not a run folder: nothing may be written into it.

        Raises:
            InputError: names what is in it.
        """
        names = self._children()
        if names and not self.is_run():
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise InputError(
                f"{self.root} is not a run folder and not empty: it holds {shown}. Choose a new folder for the run"
            )

    def claim(self) -> None:
        """Make the folder if it is not there, and mark it as that of a run.

        Raises:
            InputError: if it is somebody else's folder, or cannot be written.
        """
        fs, mark = filesystem(self.path(MARK))
        try:
            if exists(fs, mark):
                return
            self.check()
            write_json(self.path(MARK), {"format": FORMAT_VERSION})
        except OSError as err:
            raise InputError(
                f"the run folder {self.root} cannot be written: {err.strerror or err}; choose another folder"
            ) from err

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
        self.claim()
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
        names = [name for name in self._children() if not name.startswith(".")]
        return [name for name in names if exists(fs, posixpath.join(root, name, MANIFEST))]

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

    def _published_here(self) -> list[str]:
        """Return the folders that hold a manifest of ours."""
        found = []
        for name in self._children():
            with contextlib.suppress(ArtifactError):
                manifest = self.manifest(name)
                found += [name] if manifest is not None and manifest.stage == name else []
        return found

    def _children(self, *parts: str) -> list[str]:
        return children(*filesystem(self.path(*parts)))


def _remove_if_empty(fs: Any, path: str) -> None:
    if exists(fs, path) and not fs.ls(path, detail=False):
        fs.rmdir(path)
