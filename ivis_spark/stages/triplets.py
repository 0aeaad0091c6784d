"""The stage `triplets`: positives of each anchor, packed into blocks with the pairs that must not be negatives."""

from __future__ import annotations

from typing import Any

from ivis_spark.runtime.fitness import class_values
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild


def publish(run: Run) -> Manifest:
    """Sample triplets and pack them into blocks."""
    rows, neighbours = run.require("rows"), run.require("neighbours")
    negatives = run.config.train.needs_negatives
    classes = _numbers_of_classes(rows, run.config.train.supervision_metric)

    def build(stage: StageBuild) -> None:
        from ivis_spark.spark.rows import labels
        from ivis_spark.spark.triplets import build_triplets

        table = run.table(rows)
        table = table.drop("columns") if classes is None else labels.as_classes(table, classes)
        stage.info.update(
            build_triplets(
                table,
                run.table(neighbours),
                run.config.triplets,
                n_rows=rows.info["rows"],
                random_state=run.config.random_state,
                folder=stage.path("data"),
                negatives=negatives,
            )
        )
        stage.info["dims"] = rows.info["dims"]

    inputs: dict[str, Any] = {"rows": rows.fingerprint, "neighbours": neighbours.fingerprint, "negatives": negatives}
    if classes is not None:
        inputs["classes"] = classes
    return run.publish("triplets", run.spec("triplets", "random_state", **inputs), build)


def _numbers_of_classes(rows: Manifest, metric: str | None) -> list[Any] | None:
    """Return the labels that must be numbered 0, 1, 2, ... for the loss, or None if they are as it takes them."""
    classes = class_values(rows.info, metric)
    numbered = classes is None or rows.info["labels"]["kind"] == "names" or classes == list(range(len(classes)))
    return None if numbered else classes
