"""The stage `neighbours`: the k nearest other rows of every row, searched, by label, or from a table of the user's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ivis_spark import storage
from ivis_spark.config import Config, DataConfig
from ivis_spark.config.checks import AUTO
from ivis_spark.core.knn.leaves import rows_per_leaf
from ivis_spark.core.knn.regions import FLAT_REGIONS
from ivis_spark.core.knn.sizes import NEIGHBOUR_BYTES, build_sizes, row_bytes
from ivis_spark.core.sizes import PYTHON_BYTES
from ivis_spark.errors import ArtifactError
from ivis_spark.progress import step
from ivis_spark.stages import rows as rows_stage
from ivis_spark.stages.estimate import Cluster, Estimate
from ivis_spark.stages.run import Run
from ivis_spark.storage import Manifest, StageBuild

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger(__name__)

# Measured (see docs/howto/scale.md), in seconds of one core: the stage's jobs whatever the rows; a row of the sample
# compared with a region, and a value of both, while the driver learns regions; a row and a value of it, to be sent to
# regions, compared with a sample and kept in an index, and what a row costs more where regions are found by an index; a
# value of a row compared with a leaf, while a region is laid out in leaves, and what else that costs, in values; a
# neighbour in a list, and a row whose list is sought, and a value of it, in each region that holds it, for the square
# root of that region's rows.
_FIXED, _LEARN, _LEARN_VALUE, _ROW, _VALUE, _ROUTED = 3.5, 2e-9, 2.5e-10, 8e-6, 1.5e-7, 1.5e-5
_LEAF_VALUE, _LEAF_VALUES = 8e-11, 16
_LISTED, _QUERY, _QUERY_VALUE = 4e-7, 1.4e-7, 1.5e-10
_REPLICAS = 2.5  # regions that hold a row, assumed: 1 to 4 in tables looked at


def publish(run: Run, *, for_training: bool = False) -> Manifest:
    """Find the neighbours of every row, or of the anchors; the rows are ingested first if an input is given.

    Neighbours of anchors only are another product than those of all rows, and their number is an input of the stage:
    `triplets.anchors` belongs to another section. Neighbours of all rows serve any anchors.

    Args:
        run: The run.
        for_training: Whether those of the anchors are enough where `neighbours.query_rows` is auto.
    """
    rows = rows_stage.publish(run)
    settings = run.config.for_rows(rows.info["rows"])
    config = settings.neighbours
    inputs: dict[str, Any] = {"rows": rows.fingerprint}
    if config.table is not None:
        inputs["table"] = run.source(_table_of_neighbours(run, config.table))

    query_rows = "anchors" if for_training and config.query_rows == AUTO else config.query_rows
    anchors = settings.triplets.anchors_of(rows.info["rows"]) if query_rows == "anchors" else None
    if anchors is not None:
        if run.stands("neighbours", run.spec("neighbours", "random_state", **inputs)):
            anchors = None
        else:
            inputs["anchors"] = anchors
    _refuse_other_anchors(run, inputs)

    def build(stage: StageBuild) -> None:
        search(stage)
        if rows.info.get("components"):
            stage.info.update(_by_features(run, rows, stage, config.target_recall))

    def search(stage: StageBuild) -> None:
        from ivis_spark.spark.neighbours.by_label import build_label_neighbours
        from ivis_spark.spark.neighbours.from_table import take_neighbours
        from ivis_spark.spark.neighbours.stage import build_neighbours

        seed = run.config.random_state
        if config.by_label:
            labelled = run.table(rows).select("id", "label")
            facts = build_label_neighbours(labelled, k=config.k, random_state=seed, folder=stage.uri, anchors=anchors)
            stage.info.update(facts)
            return
        frame = run.table(rows).select("id", "features")
        if config.table is not None:
            table = _table_of_neighbours(run, config.table)
            facts = take_neighbours(frame, table, config, random_state=seed, folder=stage.uri, anchors=anchors)
            stage.info.update(facts)
            return
        found = build_neighbours(
            frame, config, random_state=seed, folder=stage.uri, scaler=run.scaler(rows), anchors=anchors
        )
        stage.digests.update(found.pop("digests"))
        stage.info.update(found)

    return run.publish("neighbours", run.spec("neighbours", "random_state", **inputs), build)


def _by_features(run: Run, rows: Manifest, stage: StageBuild, target: float) -> dict[str, Any]:
    """Return what the manifest says of the components, and of the recall by all features."""
    from ivis_spark.core.knn.by_features import NearestByFeatures
    from ivis_spark.spark.neighbours.by_features import original_recall
    from ivis_spark.spark.rows.components import NEAREST
    from ivis_spark.spark.rows.tables import read_parquet

    names = ("count", "explained_variance", "kept_neighbours", "kept_neighbours_k")
    components = {name: rows.info["components"][name] for name in names}
    if stage.info.get("recall") is None:  # by label
        return {"components": components}
    nearest = storage.read_bytes(run.folder.uri(rows, NEAREST), NearestByFeatures.from_bytes)
    lists, count = read_parquet(run.get_spark(), stage.path("data")), components["count"]
    with step("original_recall", "neighbours: recall by all features"):
        found = original_recall(lists, nearest, stage.info, components=count, target=target)
    return {"components": components, "original_recall": found}


def _refuse_other_anchors(run: Run, inputs: Mapping[str, Any]) -> None:
    """Raise if the neighbours of other anchors are published and nothing else differs; says what to do."""
    published = run.folder.manifest("neighbours")
    held = None if published is None else published.spec["inputs"].get("anchors")
    if held is None or held == inputs.get("anchors") or run.runner.overwrite:
        return
    if run.stands("neighbours", run.spec("neighbours", "random_state", **{**inputs, "anchors": held})):
        requested = f"{inputs['anchors']:,} anchors" if "anchors" in inputs else "all rows"
        raise ArtifactError(
            f"{run.folder.root}: 'neighbours' holds the neighbours of {held:,} anchors, not of {requested}. "
            f"Build them with --overwrite; or keep these: --set triplets.anchors={held} --set "
            "neighbours.query_rows=anchors"
        )


def _table_of_neighbours(run: Run, uri: str) -> DataFrame:
    from ivis_spark.spark.rows.tables import read_table

    return read_table(run.get_spark(), uri, DataConfig(format="parquet"))


def estimate(rows: float, dims: int, config: Config, cluster: Cluster, seen: Mapping[str, Any]) -> Estimate:
    """Return what the stage needs in a run of all stages, see `stages.estimate`."""
    settings, vector = config.neighbours, 4.0 * dims
    copies = float(seen.get("replicas") or _REPLICAS)
    build = build_sizes(rows, dims, settings, copies=copies, slots=cluster.slots)
    copies = copies if build.regions > 1 else 1.0
    lists = rows if settings.query_rows == "all" else config.triplets.anchors_of(int(rows)) or rows
    many = build.regions > FLAT_REGIONS
    row = _ROW + _VALUE * dims + _ROUTED * many
    searched = (_QUERY + _QUERY_VALUE * dims) * min(rows, build.region_rows) ** 0.5
    listed = _LISTED * settings.k + copies * searched
    in_region = min(rows, copies * build.region_rows)
    leaf = rows_per_leaf(settings.leaf_rows, in_region)
    laid_out = copies * in_region / leaf * _LEAF_VALUE * (dims + _LEAF_VALUES)
    sampled = build.sample / vector if build.regions > 1 else 0.0
    return Estimate(
        stage="neighbours",
        tasks=build.tasks,
        slots=min(cluster.slots, build.tasks),
        fixed_seconds=_FIXED + sampled * build.regions * (_LEARN + _LEARN_VALUE * dims),
        core_seconds=rows * (row + laid_out) + lists * listed,
        shuffle_bytes=copies * rows * row_bytes(dims),
        storage_bytes=copies * rows * (vector + 8) + lists * NEIGHBOUR_BYTES * settings.k,
        task_bytes=PYTHON_BYTES + build.task,
        driver_bytes=build.driver,
        formula=f"R = {build.regions:,} regions, c = {copies:g} copies, A = {lists:,.0f} lists; shuffles c N (4 d + 9) "
        f"B; stores N c (4 d + 8) + A {NEIGHBOUR_BYTES} k B; seconds N (a + b d + c^2 h (d + 16) r / l) + A (e k + c "
        f"(f + g d) sqrt(r)), r = {build.region_rows:,} rows of a region, l = {leaf:,} of a leaf; fixed: learning R "
        f"regions from {sampled:,.0f} rows on the driver",
        remedy="lower neighbours.region_rows",
    )
