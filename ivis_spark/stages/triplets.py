"""The stage `triplets`: positives of each anchor, packed into blocks with the pairs that must not be negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ivis_spark.config import Config
from ivis_spark.core.sizes import BROADCAST_BYTES, PYTHON_BYTES, SPLIT_BYTES
from ivis_spark.core.triplets.blocks import BlockPlan
from ivis_spark.errors import ArtifactError
from ivis_spark.progress import step
from ivis_spark.runtime.fitness import class_values
from ivis_spark.stages.estimate import Cluster, Estimate
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild

# Measured, in seconds of one core: the stage whatever its rows, a vector that is fetched, and a value of it; a row that
# vectors are fetched from, and a value of it.
_FIXED, _VECTOR, _VALUE, _ROW, _ROW_VALUE = 3.5, 3.6e-6, 8e-8, 1e-6, 1e-7
_REQUEST_BYTES = 56  # of a vector that is asked for: its bucket, place and id, in Spark's rows
_PACKED = 6  # copies of a block while it is packed and written


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
        with step("write", "triplets: draw and write"):
            chosen = Anchors.draw(lists, anchors, n_rows=held, random_state=seed)
            found = build_triplets(
                table,
                chosen.of(lists),
                run.config.triplets,
                n_rows=rows.info["rows"],
                n_anchors=chosen.count,
                k=neighbours.info["k"],
                random_state=seed,
                folder=stage.path("data"),
                negatives=negatives,
            )
        stage.digests.update({f"data/{name}": digest for name, digest in found.pop("digests").items()})
        stage.info |= found | {"rows": rows.info["rows"], "dims": rows.info["dims"]}

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
            f"{run.folder.root}: 'neighbours' holds the neighbours of {held:,} anchors, but triplets.anchors selects "
            f"{anchors or n_rows:,} of {n_rows:,} rows. Search for all rows, which works with any number of anchors: "
            f"ivis-spark "
            "neighbours --overwrite, or for the anchors only: with --set neighbours.query_rows=anchors"
        )
    return anchors


def _numbers_of_classes(rows: Manifest, metric: str | None) -> list[Any] | None:
    """Return the labels that must be numbered 0, 1, 2, ... for the loss, or None if they are as it takes them."""
    classes = class_values(rows.info, metric)
    numbered = classes is None or rows.info["labels"]["kind"] == "names" or classes == list(range(len(classes)))
    return None if numbered else classes


def estimate(rows: float, dims: int, config: Config, cluster: Cluster, seen: Mapping[str, Any]) -> Estimate:
    """Return what the stage needs, see `stages.estimate`."""
    settings, k, vector = config.triplets, config.neighbours.k, 4.0 * dims
    anchors = settings.anchors_of(int(rows)) or rows
    per_anchor = 1 + settings.positives_per_anchor
    vectors = anchors * per_anchor
    plan = BlockPlan.of(
        int(anchors),
        block_rows=settings.block_rows,
        file_blocks=settings.file_blocks,
        row_bytes=int(per_anchor * vector),
        list_bytes=8 * k,
    )
    table = rows * (vector + 8)
    broadcast = table <= BROADCAST_BYTES
    ranks, tasks = config.train.num_ranks, max(plan.buckets, int(table) // SPLIT_BYTES)
    starved = ranks > 1 and anchors < plan.block_rows * settings.group_blocks * ranks
    return Estimate(
        stage="triplets",
        tasks=tasks,
        slots=min(cluster.slots, tasks),
        fixed_seconds=_FIXED,
        core_seconds=vectors * (_VECTOR + _VALUE * dims) + rows * (_ROW + _ROW_VALUE * dims),
        shuffle_bytes=anchors * (8 * k + 16) + vectors * (vector + _REQUEST_BYTES) + (0.0 if broadcast else table),
        storage_bytes=(anchors + plan.padding) * per_anchor * vector,
        task_bytes=PYTHON_BYTES
        + _PACKED * plan.block_rows * per_anchor * vector
        + anchors / plan.buckets * (24 * k + 16),
        driver_bytes=1024.0 * plan.buckets + (2 * table if broadcast else 0.0),
        formula=f"A = {anchors:,.0f} anchors, F = {plan.buckets:,} files, v = A (1 + positives_per_anchor) vectors; "
        f"shuffles A (8 k + 16) + v (4 d + {_REQUEST_BYTES}){' + N (4 d + 8)' * (not broadcast)} B; stores 4 v d B "
        "and half a block a file; seconds v (a + b d) + N (c + e d)",
        remedy="lower triplets.block_rows",
        advice=["too few row groups for the ranks: lower triplets.block_rows or triplets.group_blocks"] * starved,
    )
