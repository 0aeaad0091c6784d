"""What the body of every stage is given: the run folder, the settings, the session and the user's table."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ivis_spark import storage
from ivis_spark.config import Config
from ivis_spark.core.scaling import FORMER_SCALER, SCALER, Scaler
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.manifest import Defaults
from ivis_spark.runtime.fitness import rows_facts
from ivis_spark.runtime.publishing import StageRunner
from ivis_spark.spark.causes import task_errors
from ivis_spark.spark.watching import SparkProgress
from ivis_spark.stages import STAGES, lock_of
from ivis_spark.stages.input_table import InputTable
from ivis_spark.stages.outputs import check_table
from ivis_spark.storage import Manifest, RunFolder, StageBuild

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_DIGEST_ON_EXECUTORS_BYTES, _DIGEST_TASK_BYTES = 1 << 30, 256 << 20


@dataclass(frozen=True)
class Run:
    """One run folder at work. Runs on: driver.

    Args:
        runner: Publishes stages.
        config: All settings.
        get_spark: Returns the session; called when a stage needs Spark, so that training alone starts no JVM.
        input: The table that the user gave, if any.
    """

    runner: StageRunner
    config: Config
    get_spark: Callable[[], SparkSession]
    input: InputTable

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return self.runner.folder

    def spec(self, *sections: str, **inputs: Any) -> dict[str, Any]:
        """Return what decides a stage's result: sections of the configuration, and what it reads."""
        return {"config": {name: self.config.result_settings(name) for name in sections}, "inputs": inputs}

    def check_settings(self, *names: str) -> None:
        """Refuse other settings than those of published stages, before Spark starts to tell whether the input changed.

        Args:
            names: Of stages whose settings are whole sections: rows, neighbours, triplets, model.

        Raises:
            ArtifactError: showing the difference, unless stages are to be rebuilt.
        """
        for name in names:
            manifest = None if self.runner.overwrite else self.folder.manifest(name)
            if manifest is not None:
                spec = self.spec(*manifest.spec["config"]) | {"inputs": manifest.spec["inputs"]}
                self.folder.is_current(name, spec, overwrite=False, defaults=self._defaults(spec))

    def stands(self, name: str, spec: dict[str, Any]) -> bool:
        """Tell whether a stage is published with this specification."""
        return self.folder.is_current(name, spec, overwrite=True, defaults=self._defaults(spec))

    def _defaults(self, spec: dict[str, Any]) -> Defaults:
        plain, preset = (
            {section: self.config.default_settings(section, preset=preset) for section in spec["config"]}
            for preset in (False, True)
        )
        return Defaults(plain, preset)

    def publish(
        self,
        name: str,
        spec: dict[str, Any],
        build: Callable[[StageBuild], None],
        *,
        after: Callable[[], None] = lambda: None,
    ) -> Manifest:
        """Publish a stage unless it is already published with this specification; `after` removes what it left."""
        with task_errors(), SparkProgress():
            return self.runner.publish(
                name,
                spec,
                build,
                lock=lock_of(name),
                defaults=self._defaults(spec),
                map_files=self.map_files,
                after=after,
            )

    def name_of(self, section: str, prefix: str, given: str | None, *, own: bool = False) -> str:
        """Return the name of the folder for what is made from the input table: that given, or one by the table's name.

        Args:
            section: Of the configuration that decides the content; each has folders of its own.
            prefix: Before the table's name; the stage for the run's own rows, if there is one, is called so.
            given: `--name`.
            own: Whether it is that stage.

        Raises:
            InputError: if the name is that of another stage, holds what is not made by this command, or is not a valid
                folder name.
        """
        name = given if given is not None else f"{prefix}-{self.input.name}"
        taken = [stage for stage in STAGES if not (own and stage == prefix)]
        fault = ""
        if given is None and not self.input.name:
            fault = "the input is a DataFrame and has no name"
        elif name.lower() in taken:
            fault = f"{name!r} is the folder of a stage of the run"
        elif not name.isprintable() or "/" in name or name.strip(" .") != name or name.startswith("_") or not name:
            fault = f"{name!r} cannot be a folder name: slashes are not allowed, nor a dot, space or _ at either end"
        else:
            with contextlib.suppress(ArtifactError):  # one that cannot be read says nothing of itself
                stands = self.folder.manifest(name)
                if stands is not None and set(stands.spec["config"]) != {section}:
                    fault = f"{name!r} was published by another command"
        if fault:
            raise InputError(f"{fault}; choose another name with --name")
        return name

    def require(self, stage: str) -> Manifest:
        """Return the manifest of a stage that must be published."""
        manifest = self.runner.require(stage)
        if stage != "rows":
            return manifest
        return dataclasses.replace(manifest, info=rows_facts(manifest.info))

    def source(self, table: DataFrame, *outputs: str) -> dict[str, Any]:
        """Return what identifies an input table, after looking that nothing is written where its files are.

        Raises:
            InputError: if its files lie in the run folder or another output, or the other way round.
        """
        from ivis_spark.spark.rows.identity import files_of
        from ivis_spark.spark.rows.tables import roots_of

        for output in (self.folder.root, *outputs):
            check_table(files_of(table), roots_of(table), output)
        source = self.input.fingerprint(table)
        rows = self.folder.manifest("rows")
        if rows is not None and "read_as" not in rows.spec["inputs"]["source"]:  # published by a former version
            former = self.input.former_fingerprint(table)
            known = [manifest for name in self.folder.published() if (manifest := self.folder.manifest(name))]
            if any(manifest.spec["inputs"].get("source") == former for manifest in known):
                return former
        return source

    def scaler(self, rows: Manifest) -> Scaler:
        """Return the scaling of the rows, and their projection."""
        kept = {record["path"] for record in rows.files}
        return storage.read_bytes(self.folder.uri(rows, SCALER if SCALER in kept else FORMER_SCALER), Scaler.from_bytes)

    def table(self, manifest: Manifest) -> DataFrame:
        """Return the table that a stage published."""
        from ivis_spark.spark.rows.tables import read_parquet

        return read_parquet(self.get_spark(), self.folder.uri(manifest, "data"))

    def map_files(self, function: Callable[[str], Any], files: Mapping[str, int]) -> list[Any]:
        """Apply a function to files, given with their bytes: here if they are few and small, else in Spark tasks."""
        uris, size = list(files), sum(files.values())
        if size < _DIGEST_ON_EXECUTORS_BYTES:
            return storage.in_parallel(function, uris)
        # An index has many small files, and a task costs more than reading one; large files stand side by side in the
        # list, so each task gets every n-th.
        tasks = min(len(uris), -(-size // _DIGEST_TASK_BYTES))
        shares = self.get_spark().sparkContext.parallelize([uris[i::tasks] for i in range(tasks)], tasks)
        results = dict(shares.flatMap(functools.partial(_apply_to_each, function=function)).collect())
        return [results[uri] for uri in uris]


def _apply_to_each(uris: list[str], *, function: Callable[[str], Any]) -> list[tuple[str, Any]]:
    return [(uri, function(uri)) for uri in uris]
