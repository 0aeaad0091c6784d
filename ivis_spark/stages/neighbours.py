"""The stage `neighbours`: the k nearest other rows of every row, searched, by label, or from a table of the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ivis_spark import storage
from ivis_spark.config import DataConfig
from ivis_spark.config.checks import AUTO
from ivis_spark.core.scaling import Scaler
from ivis_spark.stages import rows as rows_stage
from ivis_spark.stages.run import SCALER, Run
from ivis_spark.storage import Manifest, StageBuild

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


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
        inputs["table"] = run.source(_given_table(run, config.table))

    wanted = "anchors" if for_training and config.query_rows == AUTO else config.query_rows
    anchors = settings.triplets.anchors_of(rows.info["rows"]) if wanted == "anchors" else None
    if anchors is not None:
        if run.stands("neighbours", run.spec("neighbours", "random_state", **inputs)):
            anchors = None
        else:
            inputs["anchors"] = anchors

    def build(stage: StageBuild) -> None:
        from ivis_spark.spark.neighbours.by_label import build_label_neighbours
        from ivis_spark.spark.neighbours.from_table import take_neighbours
        from ivis_spark.spark.neighbours.stage import build_neighbours

        seed = run.config.random_state
        if config.by_label:
            labelled = run.table(rows).select("id", "label")
            found = build_label_neighbours(labelled, k=config.k, random_state=seed, folder=stage.uri, anchors=anchors)
            stage.info.update(found)
            return
        frame = run.table(rows).select("id", "features")
        if config.table is not None:
            table = _given_table(run, config.table)
            found = take_neighbours(frame, table, config, random_state=seed, folder=stage.uri, anchors=anchors)
            stage.info.update(found)
            return
        scaler = storage.read_json(run.folder.uri(rows, SCALER), Scaler.from_mapping)
        found = build_neighbours(frame, config, random_state=seed, folder=stage.uri, scaler=scaler, anchors=anchors)
        stage.digests.update(found.pop("digests"))
        stage.info.update(found)

    return run.publish("neighbours", run.spec("neighbours", "random_state", **inputs), build)


def _given_table(run: Run, uri: str) -> DataFrame:
    from ivis_spark.spark.rows.tables import read_table

    return read_table(run.get_spark(), uri, DataConfig(format="parquet"))
