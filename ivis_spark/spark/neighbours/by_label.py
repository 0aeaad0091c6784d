"""Neighbours by label: rows with the same label are neighbours, as with ivis's `LabeledNeighbourMap`.

A class of n rows has n^2 pairs, so neighbours are not listed: every row gets k others of its class, drawn at random, to
take its positives from, and the number of its class, which gives the triplets stage its false-negative mask.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ivis_spark import storage
from ivis_spark.errors import InputError
from ivis_spark.spark.anchors import Anchors, row_hash
from ivis_spark.spark.causes import task_errors
from ivis_spark.spark.rows.tables import write_parquet
from ivis_spark.spark.session import describe_job

if TYPE_CHECKING:
    import pandas as pd

CLASS = "class"
_GROUP_ROWS = 4096
_SCHEMA = "id long, neighbour_ids array<long>, class long"


def build_label_neighbours(
    rows: DataFrame, *, k: int, random_state: int, folder: str, anchors: int | None = None
) -> dict[str, Any]:
    """Write `data/` with `id`, `neighbour_ids` and `class` of every anchor.

    Runs on: driver; nothing it holds grows with rows. A task holds about 4,096 rows' ids: large classes are split into
    random groups, and a row's neighbours come from its group.

    Args:
        rows: `id` long and `label`.
        k: Neighbours drawn for each row; of a small class all others. A row alone in its class gets itself.
        random_state: Seeds the groups and draws; they do not depend on partitioning.
        folder: URI of the stage.
        anchors: Number of rows, drawn by hash, that get a list; None for all.

    Returns:
        Facts for the manifest: by, k, classes, rows_alone (in their class), anchors.

    Raises:
        InputError: if there is one class only, so that no row has a negative, or a row has no label.
    """
    spark = rows.sparkSession
    describe_job(spark, "neighbours: by label")
    classes = rows.groupBy("label").count().cache()
    try:
        totals = classes.agg(
            F.count("*").alias("classes"),
            F.sum(F.col("label").isNull().cast("int")).alias("null"),
            F.sum((F.col("count") == 1).cast("int")).alias("alone"),
            F.sum("count").alias("rows"),
        ).collect()[0]
        if totals["null"] or totals["classes"] < 2:
            fault = "is null in some rows" if totals["null"] else "is the same in all rows, so no row has a negative"
            raise InputError(
                f"neighbours.by_label needs a label in every row and at least two classes: the label {fault}"
            )
        key = row_hash(random_state)
        drawn_anchors = Anchors.draw(rows, anchors, n_rows=totals["rows"], random_state=random_state)
        groups = F.ceil(F.col("count") / _GROUP_ROWS)
        grouped = rows.join(classes, "label").select(
            "id",
            key.alias("key"),
            F.xxhash64("label").alias(CLASS),
            F.pmod(F.shiftright(key, 20), groups).alias("group"),
        )
        draw = functools.partial(_draw_group, k=k, random_state=random_state)
        with task_errors():
            # a function without annotations: Spark would look those of `draw` up, and pandas is not imported here
            drawn = grouped.groupBy(CLASS, "group").applyInPandas(lambda group: draw(group), _SCHEMA)
            write_parquet(drawn_anchors.of(drawn), storage.join(folder, "data"))
    finally:
        classes.unpersist()
    facts = {"by": "label", "k": k, "classes": totals["classes"], "rows_alone": totals["alone"]}
    return {**facts, "anchors": drawn_anchors.count}


def _draw_group(group: pd.DataFrame, *, k: int, random_state: int) -> pd.DataFrame:
    """Draw k other rows of the group for each of its rows. Runs on: executor.

    Rows stand in random order in a ring, and all look the same k random steps ahead: each row's neighbours are a random
    set without itself or repeats.
    """
    group = group.sort_values(["key", "id"])
    ids = group["id"].to_numpy()
    n = len(ids)
    rng = np.random.default_rng([random_state, int(group["key"].iloc[0]) & (2**63 - 1)])
    steps = 1 + rng.permutation(n - 1)[:k] if n > 1 else np.zeros(1, np.int64)
    neighbours = ids[(np.arange(n)[:, None] + steps) % n]
    return group[["id"]].assign(neighbour_ids=list(neighbours), **{CLASS: group[CLASS]})
