"""The recall of published lists by all features, where neighbours were searched among principal components."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ivis_spark.core.knn.by_features import NearestByFeatures
from ivis_spark.core.knn.merge import NO_ID

log = logging.getLogger(__name__)


def original_recall(
    lists: DataFrame, nearest: NearestByFeatures, found: Mapping[str, Any], *, components: int, target: float
) -> dict[str, Any] | None:
    """Measure the recall by all features on the sampled rows that have a list, and warn if it is below the target.

    The target is of the search, and no effort of it finds what the projection lost.

    Runs on: driver. Memory: the lists of the sampled rows.

    Args:
        lists: `id`, `neighbour_ids` and perhaps `distances`.
        nearest: What the rows stage found.
        found: The stage's facts: `k`, `anchors`, `recall`.
        components: Their number.
        target: `neighbours.target_recall`.

    Returns:
        The recall as the manifest records it, with `k`; None if no sampled row has a list.
    """
    some = lists.where(F.col("id").isin([int(number) for number in nearest.own])).collect()
    k, measured = int(found["k"]), "distances" in lists.columns
    ids = np.full((len(some), k), NO_ID)
    distances = np.full((len(some), k), np.inf, np.float32)
    for place, row in enumerate(some):
        ids[place, : len(row["neighbour_ids"])] = row["neighbour_ids"]
        if measured:
            distances[place, : len(row["neighbour_ids"])] = row["distances"]
    rows = np.array([row["id"] for row in some], np.int64)
    recall = nearest.recall(rows, ids, distances if measured else None, n_rows=found["anchors"])
    if recall is None:
        return None
    log.log(
        logging.WARNING if recall.low < target else logging.INFO,
        "neighbours: by all features the recall is %.4f (%.4f to %.4f on %d rows), among %d components %.4f: the "
        "difference is lost by the projection. More components (data.components) lose less, none lose nothing",
        *(recall.value, recall.low, recall.high, recall.sample, components, found["recall"]["value"]),
    )
    return {**recall.to_mapping(), "k": nearest.measured(k)}
