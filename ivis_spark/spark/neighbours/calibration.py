"""Task bodies that look at all rows before any cell is searched: rows by cell, and exact neighbours of a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import Broadcast

from ivis_spark.core.knn.merge import NO_ID, merge_top_k
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.overlap import count_ranks
from ivis_spark.core.knn.search import exact_neighbours, rank_rows
from ivis_spark.spark.neighbours.task_plan import Plan, buffered, one_blas_thread, read_rows

SURVEY_SCHEMA = "counts binary, ids binary, keys binary, cells binary, bins binary"


def survey_rows(batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan]) -> Iterator[pa.RecordBatch]:
    """Count rows by cell, rank and depth, and find the exact neighbours of the asked rows in this partition.

    Runs on: executor. Memory: O(batch + asked x k).
    """
    p, k = plan.value, plan.value.truth_width
    space, merged = Space(p.config.metric), ExactLists.empty(len(p.asked_ids), k)
    counts = np.zeros((2 if space.asymmetric else 1, 0), dtype=np.int64)
    total: npt.NDArray[Any] | None = None
    with one_blas_thread():
        for ids, rows in buffered(batches, p.dims):
            data = rank_rows(p.router, rows, ids, p.config)
            tables = [count_ranks(data.cells, data.bins, p.router.n_cells)]
            if space.asymmetric:
                asking = rank_rows(p.router, rows, ids, p.config, as_queries=True)
                tables.append(count_ranks(asking.cells, asking.bins, p.router.n_cells))
            counts = np.stack(tables)
            total = counts if total is None else total + counts
            if len(p.asked_ids):
                order = np.argsort(ids)
                found, keys = exact_neighbours(
                    p.asked_rows, rows[order], k, p.config.metric, own=p.asked_ids, ids=ids[order]
                )
                merged = merged.merge(ExactLists.ranked(found, keys, ids[order], data.cells[order], data.bins[order]))
    if total is not None:
        yield merged.to_batch(total)


def combine_surveys(batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan]) -> Iterator[pa.RecordBatch]:
    """Fold the surveys of several partitions into one. Runs on: executor."""
    total, truth = fold_surveys((record for batch in batches for record in batch.to_pylist()), plan.value)
    if total is not None:
        yield truth.to_batch(total)


def fold_surveys(records: Iterable[Any], plan: Plan) -> tuple[npt.NDArray[np.int64] | None, ExactLists]:
    """Return the counts (kinds, w, bins, cells), None if there are no rows, and the exact neighbours."""
    truth, total = ExactLists.empty(len(plan.asked_ids), plan.truth_width), None
    width = min(plan.config.overlap, len(plan.router.centroids))
    kinds = 2 if Space(plan.config.metric).asymmetric else 1
    for record in records:
        counts = np.frombuffer(record["counts"], np.int64).reshape(kinds, width, -1, plan.router.n_cells)
        total = counts if total is None else total + counts
        truth = truth.merge(ExactLists.from_record(record, len(plan.asked_ids), plan.truth_width))
    return total, truth


@dataclass(frozen=True)
class ExactLists:
    """Exact neighbours of the asked rows with the cells of each: (q, k) and (q, k, w)."""

    ids: Ints
    keys: Floats
    cells: npt.NDArray[np.int32]
    bins: npt.NDArray[np.uint8]

    @classmethod
    def empty(cls, asked: int, k: int) -> ExactLists:
        """Neighbours of `asked` rows before any row was seen."""
        none = np.full((asked, k), NO_ID, dtype=np.int64), np.full((asked, k), np.inf, dtype=np.float32)
        return cls(*none, np.zeros((asked, k, 0), np.int32), np.zeros((asked, k, 0), np.uint8))

    @classmethod
    def ranked(cls, found: Ints, keys: Floats, ids: Ints, cells: Any, bins: Any) -> ExactLists:
        """Neighbours found among rows `ids`, with the cells and bins of those."""
        places = np.minimum(np.searchsorted(ids, found), len(ids) - 1)
        return cls(found, keys, cells[places], bins[places])

    def merge(self, other: ExactLists) -> ExactLists:
        """Keep the nearest of both."""
        if self.cells.shape[2] == 0 or not len(self.ids):
            return other
        if other.cells.shape[2] == 0:
            return self
        rows = np.tile(np.arange(len(self.ids)), 2)
        both = np.concatenate([self.ids, other.ids]), np.concatenate([self.keys, other.keys])
        _, ids, keys = merge_top_k(rows, *both, self.ids.shape[1])
        known = np.concatenate([self.ids.reshape(-1), other.ids.reshape(-1)])
        order = np.argsort(known, kind="stable")
        places = order[np.searchsorted(known[order], ids)]
        width = self.cells.shape[2]
        cells = np.concatenate([self.cells.reshape(-1, width), other.cells.reshape(-1, width)])
        bins = np.concatenate([self.bins.reshape(-1, width), other.bins.reshape(-1, width)])
        return ExactLists(ids, keys, cells[places], bins[places])

    def to_batch(self, counts: npt.NDArray[np.int64]) -> pa.RecordBatch:
        """Pack into one record."""
        arrays: dict[str, npt.NDArray[Any]] = {"counts": counts, "ids": self.ids, "keys": self.keys}
        arrays |= {"cells": self.cells, "bins": self.bins}
        return pa.RecordBatch.from_pydict({name: pa.array([a.tobytes()], pa.binary()) for name, a in arrays.items()})

    @classmethod
    def from_record(cls, record: dict[str, bytes], asked: int, k: int) -> ExactLists:
        """Unpack what `to_batch` gave."""
        width = -1 if asked else 0
        return cls(
            np.frombuffer(record["ids"], np.int64).reshape(asked, k),
            np.frombuffer(record["keys"], np.float32).reshape(asked, k),
            np.frombuffer(record["cells"], np.int32).reshape(asked, k, width),
            np.frombuffer(record["bins"], np.uint8).reshape(asked, k, width),
        )


def heavy_rows(
    batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan], heavy: Broadcast[npt.NDArray[np.bool_]]
) -> Iterator[pa.RecordBatch]:
    """Keep the rows whose nearest cell is heavy. Runs on: executor."""
    p = plan.value
    with one_blas_thread():
        for batch in batches:
            ids, rows = read_rows(batch, p.dims)
            keep = heavy.value[p.router.rank(rows, ids, 1)[0][:, 0]]
            yield batch.filter(pa.array(keep))
