"""The stage `triplets`: positives of each anchor, packed into blocks with the pairs that must not be negatives."""

from __future__ import annotations

from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild


def publish(run: Run) -> Manifest:
    """Sample triplets and pack them into blocks."""
    rows, neighbours = run.require("rows"), run.require("neighbours")
    negatives = run.config.train.needs_negatives

    def build(stage: StageBuild) -> None:
        from ivis_spark.spark.triplets import build_triplets

        stage.info.update(
            build_triplets(
                run.table(rows),
                run.table(neighbours),
                run.config.triplets,
                n_rows=rows.info["rows"],
                random_state=run.config.random_state,
                folder=stage.path("data"),
                negatives=negatives,
            )
        )
        stage.info["dims"] = rows.info["dims"]

    inputs = {"rows": rows.fingerprint, "neighbours": neighbours.fingerprint}
    return run.publish("triplets", run.spec("triplets", "random_state", **inputs, negatives=negatives), build)
