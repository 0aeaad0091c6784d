"""The stage `triplets`: positives of each anchor, packed into blocks with the pairs that must not be negatives."""

from __future__ import annotations

from typing import Any

from ivis_spark.errors import ArtifactError
from ivis_spark.runtime.fitness import class_values
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild


def publish(run: Run) -> Manifest:
    """Sample triplets and pack them into blocks."""
    rows, neighbours = run.require("rows"), run.require("neighbours")
    anchors = _anchors(run, rows, neighbours)
    negatives = run.config.train.needs_negatives
    classes = _numbers_of_classes(rows, run.config.train.supervision_metric)

    def build(stage: StageBuild) -> None:
        from ivis_spark.spark.anchors import Anchors
        from ivis_spark.spark.rows import labels
        from ivis_spark.spark.triplets import build_triplets

        table = run.table(rows)
        table = table.drop("columns") if classes is None else labels.as_classes(table, classes)
        lists, seed = run.table(neighbours), run.config.random_state
        held = neighbours.info.get("anchors", rows.info["rows"])
        chosen = Anchors.draw(lists, anchors, n_rows=held, random_state=seed)
        stage.info.update(
            build_triplets(
                table,
                chosen.of(lists),
                run.config.triplets,
                n_anchors=chosen.count,
                random_state=seed,
                folder=stage.path("data"),
                negatives=negatives,
            )
        )
        stage.info |= {"rows": rows.info["rows"], "dims": rows.info["dims"]}

    inputs: dict[str, Any] = {"rows": rows.fingerprint, "neighbours": neighbours.fingerprint, "negatives": negatives}
    if classes is not None:
        inputs["classes"] = classes
    return run.publish("triplets", run.spec("triplets", "random_state", **inputs), build)


def _anchors(run: Run, rows: Manifest, neighbours: Manifest) -> int | None:
    """Return how many rows are anchors, None if all are.

    Raises:
        ArtifactError: if the published neighbours are those of other anchors.
    """
    n_rows = rows.info["rows"]
    anchors = run.config.triplets.anchors_of(n_rows)
    held = neighbours.spec["inputs"].get("anchors")
    if held is not None and held != anchors:
        raise ArtifactError(
            f"{run.folder.root}: 'neighbours' holds the lists of {held:,} anchors, and triplets.anchors asks for "
            f"{anchors or n_rows:,} of {n_rows:,} rows. Find those of all rows, which serve any number: ivis-spark "
            "neighbours --overwrite, or of the anchors only: with --set neighbours.query_rows=anchors"
        )
    return anchors


def _numbers_of_classes(rows: Manifest, metric: str | None) -> list[Any] | None:
    """Return the labels that must be numbered 0, 1, 2, ... for the loss, or None if they are as it takes them."""
    classes = class_values(rows.info, metric)
    numbered = classes is None or rows.info["labels"]["kind"] == "names" or classes == list(range(len(classes)))
    return None if numbered else classes
