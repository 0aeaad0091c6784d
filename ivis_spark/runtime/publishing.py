"""How a stage is published: skipped if it is up to date, else built under the lock, published, and logged to MLflow."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ivis_spark.errors import ArtifactError
from ivis_spark.manifest import Defaults, replaced_since
from ivis_spark.runtime import logs
from ivis_spark.runtime.lock import RunLock
from ivis_spark.runtime.tracking import Tracker
from ivis_spark.storage import Manifest, MapFiles, RunFolder, StageBuild

log = logging.getLogger(__name__)


class StageRunner:
    """Publishes the stages of one run folder. Runs on: driver.

    Args:
        output: URI of the run folder.
        commands: The command that makes each stage, for messages.
        overwrite: Whether stages made with other settings or input are rebuilt instead of refused.
        experiment: MLflow experiment to log to; None disables it.
    """

    def __init__(
        self, output: str, commands: Mapping[str, str], *, overwrite: bool = False, experiment: str | None = None
    ) -> None:
        self.folder = RunFolder(output)
        self.tracker = None if experiment is None else Tracker(self.folder, experiment)
        self._commands, self.overwrite = commands, overwrite
        self._lock: RunLock | None = None

    def publish(
        self,
        name: str,
        spec: dict[str, Any],
        build: Callable[[StageBuild], None],
        *,
        lock: str,
        defaults: Defaults,
        map_files: MapFiles,
        after: Callable[[], None] = lambda: None,
    ) -> Manifest:
        """Build a stage unless it stands with the same settings and input; return its manifest.

        Args:
            name: Folder of the stage.
            spec: Configuration and inputs.
            build: Writes the stage below the build's `uri`.
            lock: Name of the lock to hold; a command that holds one already needs no other.
            defaults: Default settings; only what was set decides whether it is published with the same.
            map_files: How to digest many files.
            after: Called when it is published, still under the lock.

        Raises:
            ArtifactError: if it stands with other settings and is not to be overwritten.
            BusyError: if another run holds the lock.
        """
        logs.enter_stage(name)
        self.folder.check()
        command = self._commands.get(name, "embed")
        if self.folder.is_current(name, spec, overwrite=self.overwrite, defaults=defaults):
            log.info("%s: already published, skipped", name)
        else:
            log.info("%s: started", name)
            started = time.monotonic()
            with self.locked(lock) as held:
                with self.folder.build(name, spec, defaults=defaults, map_files=map_files, check=held.check) as stage:
                    build(stage)
                    stage.info["run_id"] = logs.run_id()
                after()
            log.info("%s: published in %.1f s", name, time.monotonic() - started)
        manifest = self.folder.require(name, command)
        if self.tracker is not None:
            self.tracker.stage_published(manifest)
        return manifest

    def require(self, name: str) -> Manifest:
        """Return the manifest of a stage that must be published, made from what is published now.

        Raises:
            ArtifactError: if it is not published (names the command that makes it), is not whole, or belongs to stages
                that were replaced since (names the commands to run again).
        """
        manifest = self.folder.require(name, self._commands[name])
        outdated = self.folder.outdated(name)
        if outdated:
            first = next(stage for stage in self._commands if stage in outdated)
            again = [self.folder.command(self._commands[stage]) for stage in self._commands if stage in outdated]
            raise ArtifactError(
                f"{self.folder.root}: {replaced_since(first, outdated[first])}. Run again, with --overwrite: "
                f"{', then '.join(again)}"
            )
        return manifest

    @contextlib.contextmanager
    def locked(self, name: str = "run") -> Iterator[RunLock]:
        """Hold a lock of the run folder."""
        if self._lock is not None:
            yield self._lock
            return
        self.folder.claim()
        with RunLock(self.folder.root, name) as lock:
            self._lock = lock
            try:
                yield lock
            finally:
                self._lock = None
