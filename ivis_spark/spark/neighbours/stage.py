"""The neighbours stage: sample, route, survey, choose the overlap, then assign -> search -> merge in one Spark job.

Before anything is searched, one pass counts the rows of every cell and finds the exact neighbours of a sample. That
tells which overlap reaches the wanted recall at the least cost; the recall reached is measured on the result.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark.sql import DataFrame, SparkSession

from ivis_spark import storage
from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.index import BackendChoice, choose_backend
from ivis_spark.core.knn.recall import Recall, check_recall, recall_at_k
from ivis_spark.core.knn.search import remedy
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import IvisError
from ivis_spark.spark.neighbours import merge
from ivis_spark.spark.neighbours import tasks as cells
from ivis_spark.spark.neighbours.index_files import publish_index
from ivis_spark.spark.neighbours.layout import TASK_BYTES, Layout, mapped
from ivis_spark.spark.neighbours.task_plan import RECORDS_PER_BATCH
from ivis_spark.spark.partitioning import cores, repartition_by_group
from ivis_spark.spark.session import arrow_batch_rows

log = logging.getLogger(__name__)

_BUCKET_BYTES = 32 << 20
_ROUNDS = 3  # of the search, each with more effort, where the recall is too low


def build_neighbours(
    rows: DataFrame, config: NeighboursConfig, *, random_state: int, folder: str, scaler: Scaler | None = None
) -> dict[str, Any]:
    """Find the k nearest other rows of every row and keep the index that new rows are searched in.

    Runs on: driver. `rows` is read a few times: cache or publish it if it is costly to make.

    Args:
        rows: Columns `id` long, unique, and `features` binary: float32 little-endian, equally long, finite.
        config: Settings of the stage.
        random_state: Seed; with it the result is the same for any partitioning of `rows`.
        folder: URI to build in: `data/` gets the Parquet table (`id`, `neighbour_ids`, `distances`), `index/` the
            router, one index a cell and `index.json`.
        scaler: What `rows` went through, kept with the index so that new rows go through it too.

    Returns:
        Figures for the manifest: rows, dims, k, metric, backend, cells, overlap, recall, step_seconds.

    Raises:
        InputError: if k is not less than the number of rows.
        IvisError: if the recall wanted is not reached.
    """
    layout = Layout(rows.select("id", "features"), config, random_state)
    with arrow_batch_rows(layout.spark, RECORDS_PER_BATCH):
        layout.count()
        if layout.one_block:
            layout.take_one_cell()
        else:
            layout.learn()
            layout.survey()
        return _Search(layout, folder, scaler).run()


class _Search:
    """The search of a layout, and what it leaves. Lives on the driver only."""

    def __init__(self, layout: Layout, folder: str, scaler: Scaler | None) -> None:
        self.layout, self.folder, self.scaler = layout, folder, scaler
        self.short_rows = 0
        self.written: list[Any] = []

    def run(self) -> dict[str, Any]:
        """Assign, search, merge and write; measure; where the recall is too low, search again with more effort."""
        config, choice = self.layout.config, self.layout.known_choice()
        picked = self._pick_backend(config, int(np.median(choice.cell_rows)))
        log.info("neighbours: %s index, %s", picked.backend, picked.reason)
        for attempt in range(_ROUNDS):
            self._search_job(config, picked.backend)
            recall = self._recall()
            if recall.low >= config.target_recall or attempt == _ROUNDS - 1:
                break
            raised = self._raise_effort(config, picked.backend, recall)
            if raised is None:
                break
            config = raised
        choice = self.layout.known_choice()
        check_recall(recall, config.target_recall, remedy(choice))
        with self.layout.step("index", "write the index"):
            self._publish_index(picked.backend, config)
        return self._figures(dataclasses.asdict(picked), recall, config)

    def _pick_backend(self, config: NeighboursConfig, cell_rows: int) -> BackendChoice:
        if self.layout.one_block and config.backend == "auto":
            return BackendChoice("exact", f"all {self.layout.n_rows} rows are one cell, so that nothing is missed")
        return choose_backend(
            config.metric,
            dims=self.layout.dims,
            cell_rows=cell_rows,
            k=config.k,
            n_trees=config.n_trees,
            search_k=config.search_k,
            requested=config.backend,
        )

    def _raise_effort(self, config: NeighboursConfig, backend: str, recall: Recall) -> NeighboursConfig | None:
        """Search more of each cell, or more cells, next time; None if there is nothing to raise."""
        nodes = config.search_k if config.search_k > 0 else config.n_trees * config.k
        if backend == "annoy" and nodes < self.layout.known_choice().cell_rows.max():
            log.info("neighbours: recall %.4f with search_k=%d: again with %d", recall.value, nodes, 3 * nodes)
            return dataclasses.replace(config, search_k=3 * nodes)
        before = self.layout.known_choice()
        wanted = min(1.0, before.recall + 2 * (config.target_recall - recall.low))
        choice = self.layout.choice = self.layout.choose(wanted)
        if (choice.overlap, choice.cut, choice.ask_home) == (before.overlap, before.cut, before.ask_home):
            return None
        log.info("neighbours: recall %.4f with overlap %d: again with %d", recall.value, before.overlap, choice.overlap)
        return config

    def _search_job(self, config: NeighboursConfig, backend: str) -> None:
        choice, router = self.layout.known_choice(), self.layout.known_router()
        attempts = storage.join(self.folder, "attempts")
        for folder in (storage.join(self.folder, "index"), attempts):
            storage.remove_folder(folder)
            fs, path = storage.filesystem(folder)
            fs.makedirs(path)
        size = choice.copies * self.layout.n_rows * (4 * self.layout.dims + 9)
        tasks = _tasks(self.layout.spark, router.n_cells, size)
        lists = choice.lists * self.layout.n_rows * config.k * (8 if self.layout.low_id is not None else 12)
        merges = _tasks(self.layout.spark, max(1, self.layout.n_rows // 256), lists)
        buckets = max(merges, int(np.ceil(lists / _BUCKET_BYTES)))
        plan = dataclasses.replace(
            self.layout.plan(),
            config=config,
            backend=backend,
            folder=storage.join(self.folder, "index"),
            overlap=choice.overlap,
            cut=choice.cut,
            ask_home=choice.ask_home,
            cell_tasks=_deal(choice.cell_rows.astype(np.float64) ** 2, tasks),
            bucket_tasks=np.arange(buckets, dtype=np.int32) % np.int32(merges),
        )
        broadcast = self.layout.spark.sparkContext.broadcast(plan)
        with self.layout.step("search", f"search {router.n_cells} cells"):
            assigned = mapped(self.layout.rows, cells.assign_rows, cells.CELL_SCHEMA, plan=broadcast)
            ordered = _by_task(assigned, tasks).sortWithinPartitions("cell", "role")
            found = mapped(ordered, cells.search_cells, merge.BUCKET_SCHEMA, plan=broadcast)
            bucketed = _by_task(found, merges).sortWithinPartitions("bucket")
            body = functools.partial(merge.write_table, folder=attempts)
            self._take(mapped(bucketed, body, merge.WRITTEN_SCHEMA, plan=broadcast).collect(), attempts)
        broadcast.unpersist()

    def _take(self, written: list[Any], attempts: str) -> None:
        """Move the files of the attempts that counted to `data/`: a task that lost may still write to the other."""
        self.written = written
        rows, self.short_rows = sum(row["rows"] for row in written), sum(row["short"] for row in written)
        if rows != self.layout.n_rows:
            raise IvisError(
                f"{self.layout.n_rows} rows were counted but {rows} were searched; are ids unique and rows stable?"
            )
        data = storage.join(self.folder, "data")
        storage.remove_folder(data)
        fs, source = storage.filesystem(attempts)
        _, target = storage.filesystem(data)
        fs.makedirs(target, exist_ok=True)
        for row in written:
            fs.mv(f"{source}/{row['name']}", f"{target}/{row['name']}")
        storage.remove_folder(attempts)

    def _recall(self) -> Recall:
        """Compare what was written for the sampled rows with their exact neighbours."""
        true_keys = self.layout.true_keys
        if true_keys is None:
            return Recall.exact(self.layout.n_rows)
        ids = np.concatenate([np.frombuffer(row["asked"], np.int64) for row in self.written])
        keys = np.concatenate([np.frombuffer(row["keys"], np.float32) for row in self.written])
        found = keys.reshape(len(ids), self.layout.config.k)[np.argsort(ids)]
        measured = np.isin(np.sort(ids), self.layout.measured_ids)
        return recall_at_k(found[measured], true_keys, n_rows=self.layout.n_rows)

    def _publish_index(self, backend: str, config: NeighboursConfig) -> None:
        probes = self.layout.probes()
        head = {"backend": backend, "metric": config.metric, "dims": self.layout.dims, "rows": self.layout.n_rows}
        head |= {"k": config.k, "search_k": config.search_k, "probes": dataclasses.asdict(probes)}
        head |= {"scaler": None if self.scaler is None else self.scaler.to_mapping()}
        publish_index(storage.join(self.folder, "index"), self.layout.known_router(), head)

    def _figures(self, picked: dict[str, Any], recall: Recall, config: NeighboursConfig) -> dict[str, Any]:
        choice = self.layout.known_choice()
        return {
            "rows": self.layout.n_rows,
            "dims": self.layout.dims,
            "k": config.k,
            "metric": config.metric,
            "backend": picked["backend"],
            "backend_reason": picked["reason"],
            "search_k": config.search_k,
            "n_cells": self.layout.known_router().n_cells,
            "short_rows": self.short_rows,
            "largest_cell": int(choice.cell_rows.max()),
            "median_cell": float(np.median(choice.cell_rows)),
            "overlap": choice.overlap,
            "overlap_cut": round(choice.cut, 4),
            "ask_home": choice.ask_home,
            "replicas": round(choice.copies, 4),
            "recall": {**recall.to_mapping(), "expected": choice.recall},
            "step_seconds": dict(self.layout.seconds),
        }


def _by_task(frame: DataFrame, tasks: int) -> DataFrame:
    return repartition_by_group(frame, "task", tasks) if tasks > 1 else frame.repartition(1)


def _tasks(spark: SparkSession, pieces: int, size: float) -> int:
    """Return how many tasks to use: a few a core, more if one would hold too much, never more than pieces."""
    return max(1, min(pieces, max(2 * cores(spark), int(np.ceil(size / TASK_BYTES)))))


def _deal(costs: npt.NDArray[np.float64], tasks: int) -> npt.NDArray[np.int32]:
    """Deal pieces to tasks, the costliest first, each to the task with the least so far."""
    loads = [(0.0, task) for task in range(tasks)]
    dealt = np.zeros(len(costs), dtype=np.int32)
    for piece in np.argsort(-costs, kind="stable"):
        load, task = heapq.heappop(loads)
        dealt[piece] = task
        heapq.heappush(loads, (load + float(costs[piece]), task))
    return dealt
