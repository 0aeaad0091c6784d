"""The stage `rows`: the user's table, checked and scaled."""

from __future__ import annotations

from ivis_spark import storage
from ivis_spark.runtime.fitness import check_fit
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild


def publish(run: Run) -> Manifest:
    """Check, scale and keep the rows of the input table; without one, return those that are published.

    Raises:
        InputError: if the table or the settings that go with it cannot be used; nothing is published then.
    """
    table = run.input.read()
    if table is None:
        return checked(run)
    run.folder.claim()
    storage.check_writable(run.folder.root)

    def build(stage: StageBuild) -> None:
        from ivis_spark.spark.rows import choice, columns, ingest

        left_out = choice.explain_columns(table, run.config.data)
        source = columns.resolve(table, run.config.data)
        stage.info.update(ingest.ingest(source, run.config.data, stage))
        stage.info["left_out"] = left_out
        stage.info["table"] = run.input.uri
        check_fit(stage.info, run.config)

    run.publish("rows", run.spec("data", source=run.source(table)), build)
    return checked(run)


def checked(run: Run) -> Manifest:
    """Return the manifest of the published rows, after checking that the settings fit them."""
    manifest = run.require("rows")
    check_fit(manifest.info, run.config)
    return manifest
