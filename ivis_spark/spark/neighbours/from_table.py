"""Precomputed neighbours: checked against the rows, their recall measured, and published as the stage."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import Broadcast
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark import storage
from ivis_spark.config import NeighboursConfig, listed
from ivis_spark.core.knn.recall import Recall
from ivis_spark.core.knn.search import keys_of_pairs
from ivis_spark.errors import InputError, advice
from ivis_spark.spark.neighbours.row_facts import RowFacts
from ivis_spark.spark.neighbours.task_plan import RECORDS_PER_BATCH, packed_rows
from ivis_spark.spark.neighbours.truth import RowSample
from ivis_spark.spark.rows.columns import INTEGERS
from ivis_spark.spark.rows.ids import KEY_BYTES
from ivis_spark.spark.rows.tables import read_parquet, write_parquet
from ivis_spark.spark.session import arrow_batch_rows, shuffles_of
from ivis_spark.spark.tasks import map_arrow

log = logging.getLogger(__name__)


def take_neighbours(
    rows: DataFrame,
    table: DataFrame,
    config: NeighboursConfig,
    *,
    random_state: int,
    folder: str,
    anchors: int | None = None,
) -> dict[str, Any]:
    """Check a table of neighbours, measure its recall and publish it: the first k of each list.

    Runs on: driver; nothing it holds grows with rows.

    Args:
        rows: Columns `id` and `features`, packed.
        table: `id` and `neighbour_ids`, as the user has them.
        config: k, metric, rows to measure on, target recall.
        random_state: Seeds which rows the recall is measured on.
        folder: URI to build in: `data/` gets `id`, `neighbour_ids`.
        anchors: Number of rows, drawn by hash, that need a list; those of others are left out. None for all.

    Returns:
        Figures for the manifest: rows, anchors, dims, k, metric, backend `given`, recall.

    Raises:
        InputError: if a column is missing or of another type, a list is null, short, holds the row itself or an id
            twice, the ids of the table, or in its lists, are not those of the rows, or an anchor has no list; names a
            count and an example.
    """
    facts = RowFacts(rows, config, random_state, anchors)
    with arrow_batch_rows(facts.spark, RECORDS_PER_BATCH):
        facts.count()
        with facts.step("check", "check the table"):
            lists = _checked_types(table)
            _check_lists(lists, config.k)
            lists = lists.select("id", F.slice("neighbour_ids", 1, config.k).alias("neighbour_ids"))
            with shuffles_of(facts.spark, KEY_BYTES * facts.n_rows * config.k):
                _check_ids(lists, rows, facts.anchors.of(rows))
        with facts.step("write", "write the table"):
            write_parquet(facts.anchors.of(lists), storage.join(folder, "data"))
        lists = read_parquet(facts.spark, storage.join(folder, "data"))
        facts.find_truth(facts.draw(min(config.recall_sample, facts.anchors.count))[0])
        with facts.step("measure", "measure recall"):
            recall = _recall(facts, lists)
    if recall.low < config.target_recall:
        log.warning(
            advice("neighbours: the recall of neighbours.table is %.4f (%.4f to %.4f), neighbours.target_recall=%s"),
            recall.value,
            recall.low,
            recall.high,
            config.target_recall,
        )
    figures: dict[str, Any] = {"rows": facts.n_rows, "anchors": facts.anchors.count, "dims": facts.dims, "k": config.k}
    figures |= {"metric": config.metric, "backend": "given"}
    return {**figures, "recall": recall.to_mapping()}


def _checked_types(table: DataFrame) -> DataFrame:
    """Return `id` long and `neighbour_ids` array<long>."""
    kinds = {field.name: field.dataType for field in table.schema.fields}
    there = listed([f"{name} ({kind.simpleString()})" for name, kind in kinds.items()])
    ids, lists = kinds.get("id"), kinds.get("neighbour_ids")
    if not isinstance(ids, INTEGERS):
        raise InputError(f"neighbours.table needs an integer column 'id'; it has: {there}")
    if not isinstance(lists, T.ArrayType) or not isinstance(lists.elementType, INTEGERS):
        raise InputError(f"neighbours.table needs 'neighbour_ids', an array of integers; it has: {there}")
    return table.select(F.col("id").cast("long"), F.col("neighbour_ids").cast("array<long>"))


def _check_lists(lists: DataFrame, k: int) -> None:
    """Check every list by itself, in one pass."""
    neighbour_ids = F.col("neighbour_ids")
    faults: dict[str, Column] = {
        "have no id": F.col("id").isNull(),
        "have null for neighbour_ids or in it": neighbour_ids.isNull()
        | F.exists(neighbour_ids, lambda value: value.isNull()),
        f"have fewer than neighbours.k={k} neighbours": F.size(neighbour_ids) < k,
        "have themselves as a neighbour": F.array_contains(neighbour_ids, F.col("id")),
        "have a duplicate neighbour": F.size(F.array_distinct(neighbour_ids)) < F.size(neighbour_ids),
    }
    counts = [F.sum(F.when(wrong, 1).otherwise(0)).alias(f"n{i}") for i, wrong in enumerate(faults.values())]
    examples = [F.min(F.when(wrong, F.col("id"))).alias(f"e{i}") for i, wrong in enumerate(faults.values())]
    totals = lists.agg(*counts, *examples).first()
    for number, text in enumerate(faults):
        count = 0 if totals is None else totals[f"n{number}"] or 0
        if count:
            example = "" if totals is None or totals[f"e{number}"] is None else f" (id {totals[f'e{number}']} is one)"
            remedy = "lower neighbours.k or pass longer lists" if "fewer" in text else "fix the table"
            raise InputError(f"{count} rows of neighbours.table {text}{example}: {remedy}")


def _check_ids(lists: DataFrame, rows: DataFrame, anchors: DataFrame) -> None:
    """Check that the table has one list for every anchor, and that all neighbours are rows."""
    row_ids = rows.select("id")
    others = lists.select(F.explode("neighbour_ids").alias("id")).distinct()
    faults = {
        "ids are in neighbours.table more than once": lists.groupBy("id").count().where("count > 1"),
        "rows have no neighbours in neighbours.table": anchors.select("id").join(lists, "id", "left_anti"),
        "ids in neighbours.table are not rows of the input": lists.join(row_ids, "id", "left_anti"),
        "neighbours in neighbours.table are not rows of the input": others.join(row_ids, "id", "left_anti"),
    }
    for text, wrong in faults.items():
        totals = wrong.agg(F.count("*").alias("count"), F.min("id").alias("example")).first()
        if totals is not None and totals["count"]:
            raise InputError(
                f"{totals['count']} {text} (id {totals['example']} is one): use the same id column for both, and "
                f"provide one list per row"
            )


def _recall(facts: RowFacts, lists: DataFrame) -> Recall:
    """Compare the lists of the sampled rows, by distance, with their exact neighbours."""
    sample = facts.held_out
    some = lists.where(F.col("id").isin([int(number) for number in sample.ids]))
    pairs = some.select(F.col("id").alias("asking"), F.explode("neighbour_ids").alias("id"))
    broadcast = facts.spark.sparkContext.broadcast(sample)
    neighbours = facts.rows.join(F.broadcast(pairs), "id").select("asking", "features", "id")
    body = functools.partial(_pair_keys, sample=broadcast, metric=facts.config.metric)
    records = map_arrow(neighbours, body, "asking long, key float").collect()
    broadcast.unpersist()
    keys_of: dict[int, list[float]] = {}
    for record in records:
        keys_of.setdefault(record["asking"], []).append(record["key"])
    return facts.recall_of(sample.ids, np.array([sorted(keys_of[int(number)]) for number in sample.ids], np.float32))


def _pair_keys(
    batches: Iterable[pa.RecordBatch], *, sample: Broadcast[RowSample], metric: str
) -> Iterator[pa.RecordBatch]:
    """Compute the key of each (sampled row, neighbour). Runs on: executor. Memory: O(batch)."""
    order = np.argsort(sample.value.ids)
    ids, rows = sample.value.ids[order], sample.value.rows[order]
    for batch in batches:
        if batch.num_rows:
            asking = batch.column("asking").to_numpy()
            keys = keys_of_pairs(metric, packed_rows(batch, rows.shape[1])[1], rows[np.searchsorted(ids, asking)])
            yield pa.RecordBatch.from_arrays([batch.column("asking"), pa.array(keys)], ["asking", "key"])
