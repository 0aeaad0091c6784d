"""Samples of rows on the driver, and the exact neighbours of some of them among all rows of the table.

Three disjoint samples are drawn by a hash of the ids, the same for any partitioning: regions are learnt from one, the
margin between them is chosen by another, and the recall is measured on the third.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import Broadcast
from pyspark.sql import DataFrame

from ivis_spark.core.knn.exact import exact_neighbours
from ivis_spark.core.knn.merge import NO_ID, merge_top_k
from ivis_spark.core.knn.metrics import Floats, Ints
from ivis_spark.core.knn.regions import Regions
from ivis_spark.spark.neighbours.task_plan import buffered, one_blas_thread
from ivis_spark.spark.tasks import map_arrow

_QUERIES_AT_ONCE = 16  # whose neighbours are compared with all regions
_FOLDED_AT_ONCE = 16  # records that go straight to the driver; more are folded in tasks first
_SCHEMA = "ids binary, keys binary"


@dataclass(frozen=True)
class RowSample:
    """ids int64 (n,), rows float32 (n, d)."""

    ids: Ints
    rows: Floats

    @classmethod
    def of(cls, records: list[Any], dims: int) -> RowSample:
        """Make one of collected `id`, `features`."""
        ids = np.array([record["id"] for record in records], dtype=np.int64)
        body = b"".join(record["features"] for record in records)
        return cls(ids, np.frombuffer(body, np.float32).reshape(len(records), dims))

    def part(self, start: int, stop: int | None = None) -> RowSample:
        """Return some of the rows."""
        return RowSample(self.ids[start:stop], self.rows[start:stop])

    def joined(self, other: RowSample) -> RowSample:
        """Return these rows and others."""
        return RowSample(np.concatenate([self.ids, other.ids]), np.concatenate([self.rows, other.rows]))


@dataclass(frozen=True)
class ExactLists:
    """Exact neighbours of the query rows: ids int64 (q, k) and keys float32 (q, k), nearest first."""

    ids: Ints
    keys: Floats

    @classmethod
    def empty(cls, n_queries: int, k: int) -> ExactLists:
        """Neighbours before any row was seen."""
        return cls(np.full((n_queries, k), NO_ID, dtype=np.int64), np.full((n_queries, k), np.inf, dtype=np.float32))

    def merge(self, other: ExactLists) -> ExactLists:
        """Keep the nearest of both."""
        rows = np.tile(np.arange(len(self.ids)), 2)
        both = np.concatenate([self.ids, other.ids]), np.concatenate([self.keys, other.keys])
        return ExactLists(*merge_top_k(rows, *both, self.ids.shape[1])[1:])

    def to_batch(self) -> pa.RecordBatch:
        """Pack into one record."""
        return pa.RecordBatch.from_pydict({"ids": [self.ids.tobytes()], "keys": [self.keys.tobytes()]})

    def merge_records(self, records: Iterable[Any]) -> ExactLists:
        """Merge what `to_batch` packed."""
        merged = self
        for record in records:
            ids, keys = np.frombuffer(record["ids"], np.int64), np.frombuffer(record["keys"], np.float32)
            merged = merged.merge(ExactLists(ids.reshape(self.ids.shape), keys.reshape(self.ids.shape)))
        return merged


@dataclass(frozen=True)
class Pairs:
    """Rows and some of their neighbours, by which the overlap of regions is chosen.

    Attributes:
        rows: Rows, q of them.
        neighbours: Their neighbours, each once, by ascending id.
        ids: int64 (q, m): which are whose.
        counts: bool (q, m): whether they count.
    """

    rows: RowSample
    neighbours: RowSample
    ids: Ints
    counts: npt.NDArray[np.bool_]

    def depths(self, regions: Regions, width: int) -> Floats:
        """Return float32 (q, m): how far neighbours are from the primary region of their row, as `choose_margin` takes.

        Args:
            regions: Regions.
            width: Maximum regions per row.
        """
        # By centroid: of equal rows, dealt to several regions, any does.
        centroid_of = regions.centroid_of
        primary = centroid_of[regions.primary(self.rows.rows, self.rows.ids)]
        place = np.searchsorted(self.neighbours.ids, self.ids)
        reached = np.empty(self.ids.shape, np.float32)
        for at in range(0, len(primary), _QUERIES_AT_ONCE):  # for dot, `width` is all regions
            part = slice(at, at + _QUERIES_AT_ONCE)
            flat = place[part].reshape(-1)
            numbers, depths = regions.depths(self.neighbours.rows[flat], self.neighbours.ids[flat], width)
            same = centroid_of[numbers] == np.repeat(primary[part], place.shape[1])[:, None]
            reached[part] = np.where(same, depths, np.float32(np.inf)).min(axis=1).reshape(-1, place.shape[1])
        return np.where(self.counts, reached, np.float32(np.nan))


def exact_lists(rows: DataFrame, queries: RowSample, k: int, metric: str) -> ExactLists:
    """Find the k nearest other rows of each query row among all rows. Runs on: driver. Memory: O(queries x k)."""
    context = rows.sparkSession.sparkContext
    broadcast = context.broadcast(queries)
    none = ExactLists.empty(len(queries.ids), k)
    partial_lists = map_arrow(rows, functools.partial(_search_rows, queries=broadcast, k=k, metric=metric), _SCHEMA)
    parts = rows.rdd.getNumPartitions()
    if parts > records_after_fold(parts):
        fold = functools.partial(_fold, n_queries=len(queries.ids), k=k)
        partial_lists = map_arrow(partial_lists.repartition(records_after_fold(parts)), fold, _SCHEMA)
    merged = none.merge_records(partial_lists.collect())
    broadcast.unpersist()
    return merged


def records_after_fold(parts: int) -> int:
    """Return how many records of lists, one of each partition, reach the driver; as many are folded into each."""
    return parts if parts <= _FOLDED_AT_ONCE else math.ceil(parts**0.5)


def _search_rows(
    batches: Iterable[pa.RecordBatch], *, queries: Broadcast[RowSample], k: int, metric: str
) -> Iterator[pa.RecordBatch]:
    """Find the nearest rows in this partition. Runs on: executor. Memory: O(batch + queries x k)."""
    sample = queries.value
    merged = ExactLists.empty(len(sample.ids), k)
    with one_blas_thread():
        for ids, rows, _ in buffered(batches, sample.rows.shape[1]):
            neighbours = exact_neighbours(sample.rows, rows, k, metric, own=sample.ids, ids=ids)
            merged = merged.merge(ExactLists(*neighbours))
    yield merged.to_batch()


def _fold(batches: Iterable[pa.RecordBatch], *, n_queries: int, k: int) -> Iterator[pa.RecordBatch]:
    """Merge the lists of several partitions. Runs on: executor."""
    merged = ExactLists.empty(n_queries, k)
    yield merged.merge_records(record for batch in batches for record in batch.to_pylist()).to_batch()
