"""The run folder: one folder per stage, published whole or not at all, by a pointer.

A stage is built in `<root>/<stage>/<token>/`, a folder that nobody else writes. `<root>/<stage>/manifest.json`, one
small file that is written last, names that folder and every file in it; replacing it publishes the next build. Nothing
is moved over anything, so a fault at any moment leaves the former build or the new one. What no manifest names is
garbage, which `clean` removes. Format 1, before tokens, had the files next to the manifest: such stages are read as
they are, and the next build of the stage takes their place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ivis_spark.config import listed
from ivis_spark.errors import ArtifactError, BusyError, InputError
from ivis_spark.manifest import (
    FORMAT_VERSION,
    Defaults,
    Manifest,
    installed_versions,
    replaced_since,
    stage_inputs,
)
from ivis_spark.progress import collect_steps, step
from ivis_spark.storage.careful import children, exists
from ivis_spark.storage.files import (
    check_bucket,
    digest_file,
    encode_json,
    filesystem,
    in_parallel,
    list_files,
    local_path,
    read_replaced,
    remove_file,
    remove_folder,
    replace_file,
)
from ivis_spark.storage.names import join, normalise_uri
from ivis_spark.storage.stage_build import StageBuild

MANIFEST, MARK = "manifest.json", ".ivis_spark-run.json"
DOCTOR = ".doctor-"  # begins the folders in which `doctor` tries the storage; one that was killed leaves them
_TOKEN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{12}")
_WORK = "work-"
_MOST_STAGES = 100

NO_DEFAULTS = Defaults()
MapFiles = Callable[[Callable[[str], Any], Mapping[str, int]], Iterable[Any]]


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
        return MARK in self._children() or self._has_manifest()

    def check(self) -> None:
        """Refuse a folder that holds files and is not a run folder: nothing may be written into it.

        Raises:
            InputError: names what is in it.
        """
        names = [name for name in self._children() if not name.startswith((MARK, DOCTOR))]  # a mark may be cut off
        if names and not self.is_run():
            raise InputError(
                f"{self.root} is not a run folder and not empty: it holds {listed(names, 5)}. Choose a new "
                "folder for the run"
            )

    def command(self, name: str) -> str:
        """Return a command for this folder, for messages."""
        return f"ivis-spark {name} --output {shlex.quote(self.root)}"

    def no_run(self) -> ArtifactError:
        """Return the error of a command that needs a run where there is none; raise that of a bucket that is none."""
        check_bucket(self.root)
        return ArtifactError(f"{self.root} holds no run; create one: {self.command('run')} --input TABLE")

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
            check_bucket(self.root)
            replace_file(self.path(MARK), encode_json({"format": FORMAT_VERSION}))
        except OSError as err:
            raise InputError(
                f"the run folder {self.root} cannot be written: {err.strerror or err}; choose another folder"
            ) from err

    def uri(self, manifest: Manifest, *parts: str) -> str:
        """Return the URI of something that a published stage holds."""
        return self.path(manifest.stage, *filter(None, (manifest.folder,)), *parts)

    def data(self, stage: str) -> str:
        """Return the URI of the table that a stage published, for any reader of Parquet.

        Raises:
            ArtifactError: if the stage is not published.
        """
        manifest = self.manifest(stage)
        if manifest is None:
            raise ArtifactError(f"{self.root} has no {stage!r}")
        return self.uri(manifest, "data")

    def work(self, stage: str, key: str) -> str:
        """Return the URI of a folder for parts of a stage that outlive the process, like finished units of a job."""
        return self.path(stage, f"{_WORK}{key}")

    def manifest(self, stage: str) -> Manifest | None:
        """Return the manifest of a stage, or None if it is not published.

        Raises:
            ArtifactError: if the manifest is corrupt or of a newer format.
        """
        content = read_replaced(self.path(stage, MANIFEST))
        if content is None:
            return None
        try:
            loaded = json.loads(content)
            newer = isinstance(loaded, dict) and isinstance(loaded.get("format_version"), int)
            if newer and loaded["format_version"] > FORMAT_VERSION:
                raise ArtifactError(
                    f"{self.path(stage, MANIFEST)} has format {loaded['format_version']}; this version reads up to "
                    f"{FORMAT_VERSION}: update ivis_spark"
                )
            manifest = Manifest.from_mapping(loaded)
            if manifest.stage != stage:
                raise ValueError(f"it belongs to {manifest.stage!r}")
            return manifest
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
            raise ArtifactError(f"{self.root} has no {stage!r}; make it first: {self.command(command)}")
        sizes = dict(list_files(self.uri(manifest)))
        for record in manifest.files:
            size = sizes.get(record["path"])
            if size != record["bytes"]:
                state = "is missing" if size is None else f"holds {size} bytes, {record['bytes']} were written"
                raise ArtifactError(
                    f"{self.uri(manifest, record['path'])} {state}; rebuild it: {self.command(command)} --overwrite"
                )
        return manifest

    def made_from(self, spec: Mapping[str, Any]) -> dict[str, str]:
        """Return the fingerprints of all published stages that go into a stage, directly or not, by its inputs."""
        digests: dict[str, str] = {}
        for stage, digest in stage_inputs(spec).items():
            manifest = self.manifest(stage)
            if manifest is not None:
                digests |= {**manifest.made_from, stage: digest}
        return digests

    def outdated(self, stage: str) -> dict[str, list[str]]:
        """Return which of a stage and all that it was made from do not belong to what is published now.

        Returns:
            By each such stage, those it was made from that were replaced since; empty if all belong together.
        """
        outdated: dict[str, list[str]] = {}
        manifests: dict[str, Manifest | None] = {}

        def look(name: str) -> Manifest | None:
            if name not in manifests:
                manifest = manifests[name] = self.manifest(name)
                if manifest is not None:
                    parents = {**stage_inputs(manifest.spec), **manifest.made_from}
                    replaced = [n for n, digest in parents.items() if (now := look(n)) and now.fingerprint != digest]
                    if replaced:
                        outdated[name] = replaced
            return manifests[name]

        look(stage)
        return outdated

    def is_current(
        self, stage: str, spec: Mapping[str, Any], *, overwrite: bool, defaults: Defaults = NO_DEFAULTS
    ) -> bool:
        """Tell whether a stage is published with this very configuration and input.

        Args:
            stage: Name of the folder.
            spec: Configuration and inputs.
            overwrite: Whether it may be published with others.
            defaults: Default settings; only what was set is compared.

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
        changes, replaced = published.changes(spec, defaults)
        if not changes and not replaced:
            return True
        if overwrite:
            return False
        if not changes:
            raise ArtifactError(
                f"{self.root}: {replaced_since(stage, replaced)}. Pass --overwrite to rebuild it, or choose another "
                "--output"
            )
        changes += [replaced_since(stage, replaced)] if replaced else []
        raise ArtifactError(
            f"{self.path(stage)} was made with other settings or input: {'; '.join(changes)}. Choose another --output, "
            "revert the change, or pass --overwrite to rebuild"
        )

    @contextlib.contextmanager
    def build(
        self,
        stage: str,
        spec: Mapping[str, Any],
        *,
        defaults: Defaults = NO_DEFAULTS,
        map_files: MapFiles = lambda function, files: map(function, files),
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[StageBuild]:
        """Build a stage and publish it when the block ends without an exception.

        Args:
            stage: Name of the folder.
            spec: Configuration and inputs, kept in the manifest and compared on a rerun.
            defaults: Default settings, to tell which were set.
            map_files: How to digest files, given by URI with their bytes; Spark's tasks where there are many.
            check: Called last before publishing; what it raises keeps the stage from being published.

        Yields:
            The build; what is written below its `uri` is what will be published.
        """
        self.claim()
        token = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:12]}"
        building = self.path(stage, token)
        fs, path = filesystem(building)
        fs.makedirs(path, exist_ok=True)
        started, made_from = time.time(), self.made_from(spec)
        try:
            build = StageBuild(building)
            with collect_steps() as seconds:
                yield build
                with step("digest", f"{stage}: digest files"):
                    files = list_files(building)
                    unknown = {join(building, name): size for name, size in files if name not in build.digests}
                    found = dict(zip(unknown, map_files(digest_file, unknown), strict=True))
            digests = [build.digests.get(name) or found[join(building, name)] for name, _ in files]
            build.check_sizes(files)
            manifest = Manifest(
                stage=stage,
                spec=dict(spec),
                info={**build.info, "seconds": round(time.time() - started, 3), "step_seconds": seconds},
                files=[{"path": name, **digest} for (name, _), digest in zip(files, digests, strict=True)],
                versions=installed_versions(),
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                folder=token,
                made_from=made_from,
                non_defaults=defaults.others(spec),
            )
            check()
            self._check_inputs(stage, made_from)
        except BaseException:
            self.discard(f"{stage}/{token}")
            raise
        former = self._former(stage)
        # A request that fails may have been served: from here on the build is left to `clean`.
        replace_file(self.path(stage, MANIFEST), encode_json(dataclasses.asdict(manifest)))
        self._remove_files(stage, former)

    def _check_inputs(self, stage: str, made_from: Mapping[str, str]) -> None:
        """Raise BusyError if a stage that goes into this one was replaced since."""
        for name, digest in made_from.items():
            manifest = self.manifest(name)
            if manifest is not None and manifest.fingerprint != digest:
                raise BusyError(
                    f"{self.path(name)} was replaced while {stage!r} was being built from it: run the same command "
                    f"again"
                )

    def remove(self, stage: str) -> None:
        """Remove a stage, its manifest first, and the builds of it that no manifest names; other files stay."""
        former = self._former(stage)
        remove_file(self.path(stage, MANIFEST))
        self._remove_files(stage, former)
        for name in self.garbage(stage):
            self.discard(name)
        self._remove_empty(stage)

    def discard(self, name: str) -> None:
        """Remove garbage by the name that `garbage` gave it, and the folder of its stage if that is empty then."""
        remove_folder(self.path(name))
        self._remove_empty(name.rpartition("/")[0])

    def garbage(self, stage: str) -> list[str]:
        """Return what no manifest names of a stage, relative to the run folder: superseded builds, parts of a job.

        It is garbage, and not work in progress, only while nobody else can publish the stage. Of a stage whose manifest
        cannot be read nothing is.
        """
        try:
            manifest = self.manifest(stage)
        except ArtifactError:
            return []
        kept = None if manifest is None else manifest.folder
        names = [name for name in self._children(stage) if name != kept]
        left = [n for n in names if _TOKEN.fullmatch(n) or n.startswith((_WORK, f"{MANIFEST}."))]
        return [f"{stage}/{name}" for name in left]

    def _former(self, stage: str) -> list[str]:
        """Return the files of a stage in format 1, which are next to its manifest."""
        with contextlib.suppress(ArtifactError):
            manifest = self.manifest(stage)
            if manifest is not None and not manifest.folder:
                return [record["path"] for record in manifest.files]
        return []

    def _remove_files(self, stage: str, names: list[str]) -> None:
        in_parallel(lambda name: remove_file(self.path(stage, name)), names)
        for folder in sorted({name.rpartition("/")[0] for name in names} - {""}, reverse=True):
            self._remove_empty(f"{stage}/{folder}")

    def _remove_empty(self, name: str) -> None:
        """Remove a folder of this disk if it is empty; elsewhere what is written into it meanwhile would go too."""
        folder = local_path(self.path(name))
        if folder is not None:
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def exists(self) -> bool:
        """Tell whether the folder is there."""
        fs, root = filesystem(self.root)
        return exists(fs, root)

    def stages(self) -> list[str]:
        """Return the folders that may hold a stage, published or not."""
        return [name for name in self._children() if not name.startswith(".")]

    def published(self) -> list[str]:
        """Return the names of the stages that have a manifest."""
        return [name for name in self.stages() if MANIFEST in self._children(name)]

    def _has_manifest(self) -> bool:
        """Tell whether a folder in it holds a manifest of ours; of a folder with many others only some are asked."""
        for name in self.stages()[:_MOST_STAGES]:
            with contextlib.suppress(ArtifactError):
                if self.manifest(name) is not None:
                    return True
        return False

    def _children(self, *parts: str) -> list[str]:
        return children(*filesystem(self.path(*parts)))
