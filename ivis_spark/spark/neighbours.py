"""The neighbours stage: sample, route, survey, choose the overlap, then assign -> search -> merge in one Spark job.

Before anything is searched, one pass counts the rows of every cell and finds the exact neighbours of a sample. That
tells which overlap reaches the wanted recall at the least cost; the recall reached is measured on the result.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark import Broadcast
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ivis_spark import storage
from ivis_spark.config import NeighboursConfig
from ivis_spark.core.index import choose_backend
from ivis_spark.core.neighbours import (
    ONE_BLOCK_ROWS,
    SAMPLE_BYTES,
    Recall,
    cell_limits,
    check_k,
    check_recall,
    recall_at_k,
)
from ivis_spark.core.overlap import OverlapChoice, Ranked, Truth, choose_overlap, depth_bins
from ivis_spark.core.router import Router, learn_router, refine, sample_size
from ivis_spark.core.spaces import Floats, Ints, Space
from ivis_spark.errors import IvisError
from ivis_spark.spark import cells
from ivis_spark.spark.partitioning import cores, repartition_by_group
from ivis_spark.spark.session import describe_job, task_errors

log = logging.getLogger(__name__)

_REFINE_ROUNDS = 4
_FOLDED_AT_ONCE = 16  # surveys that go straight to the driver; more are folded in tasks first
_BUCKET_BYTES = 32 << 20
_TASK_BYTES = 256 << 20
_ANNOY_ROUNDS = 3
_RECORDS = "spark.sql.execution.arrow.maxRecordsPerBatch"


def build_neighbours(rows: DataFrame, config: NeighboursConfig, *, random_state: int, folder: str) -> dict[str, Any]:
    """Find the k nearest other rows of every row and keep the index that new rows are searched in.

    Runs on: driver. `rows` is read a few times: cache or publish it if it is costly to make.

    Args:
        rows: Columns `id` long, unique, and `features` binary: float32 little-endian, equally long, finite.
        config: Settings of the stage.
        random_state: Seed; with it the result is the same for any partitioning of `rows`.
        folder: URI to build in: `data/` gets the Parquet table (`id`, `neighbour_ids`, `distances`), `index/` the
            router, one index a cell and `index.json`.

    Returns:
        Figures for the manifest: rows, dims, k, metric, backend, cells, overlap, recall, seconds of each step.

    Raises:
        InputError: if k is not less than the number of rows.
        IvisError: if the recall wanted is not reached.
    """
    job = _Build(rows.select("id", "features"), config, random_state, folder)
    with job.arrow_batches():
        job.count()
        if job.one_block:
            job.take_one_cell()
        else:
            job.learn()
            job.survey()
        return job.search()


class _Build:
    """One build: the steps, and what each leaves to the next. Lives on the driver only."""

    def __init__(self, rows: DataFrame, config: NeighboursConfig, random_state: int, folder: str) -> None:
        self.rows, self.config, self.random_state, self.folder = rows, config, random_state, folder
        self.spark: SparkSession = rows.sparkSession
        self.seconds: dict[str, float] = {}
        self.n_rows = self.dims = 0
        self.low_id: int | None = None
        self.asked = _Sample(np.zeros(0, np.int64), np.zeros((0, 1), np.float32))
        self.true_keys: Floats | None = None
        self.choice: OverlapChoice | None = None
        self.router: Router | None = None

    @contextmanager
    def arrow_batches(self) -> Iterator[None]:
        """Bound the bytes of an Arrow batch while the build runs: Spark bounds only its records."""
        before = self.spark.conf.get(_RECORDS)
        self.spark.conf.set(_RECORDS, str(cells.RECORDS_PER_BATCH))
        try:
            yield
        finally:
            self.spark.conf.set(_RECORDS, str(before))

    @contextmanager
    def _step(self, name: str, text: str) -> Iterator[None]:
        describe_job(self.spark, f"neighbours: {text}")
        started = time.perf_counter()
        with task_errors():
            yield
        taken = time.perf_counter() - started
        self.seconds[name] = round(self.seconds.get(name, 0.0) + taken, 3)
        rate = f", {self.n_rows / taken:,.0f} rows/s" if self.n_rows and taken >= 0.1 else ""
        log.info("neighbours: %s: %.1f s%s", text, taken, rate)

    def count(self) -> None:
        """Count the rows and look at the ids."""
        with self._step("count", "count rows"):
            low, high = F.min("id").alias("low"), F.max("id").alias("high")
            row = self.rows.agg(F.count("*").alias("n"), low, high, F.max(F.length("features")).alias("bytes")).first()
        if row is None:
            raise IvisError("Spark returned no count of the rows")
        self.n_rows, self.dims = int(row["n"]), int(row["bytes"] or 0) // 4
        check_k(self.config.k, self.n_rows)
        self.low_id = int(row["low"]) if row["high"] - row["low"] < 2**32 - 1 else None

    @property
    def one_block(self) -> bool:
        """Whether one exact block over all rows is cheaper than any routing."""
        most = max(ONE_BLOCK_ROWS, 2 * self.config.k)
        return self.n_rows <= most and self.n_rows * self.dims * 4 <= _TASK_BYTES

    def take_one_cell(self) -> None:
        """Put all rows in one cell."""
        width = self.dims + (1 if Space(self.config.metric).asymmetric else 0)
        centre = np.zeros((1, width), dtype=np.float32)
        self.router = Router.make(self.config.metric, centre, np.ones(1, np.int64), np.ones(1, np.float32), 0.0)
        rows = np.array([self.n_rows])
        self.choice = OverlapChoice(overlap=1, cut=0.0, recall=1.0, error=0.0, copies=1.0, cell_rows=rows)
        if self.config.backend == "annoy":
            self.asked = self._sample(self.config.recall_sample, self.config.recall_sample)[0]
            self._survey_pass()

    def learn(self) -> None:
        """Sample rows and learn the router."""
        limits = cell_limits(self.config)
        size = sample_size(self.n_rows, limits.most, 4 * self.dims, SAMPLE_BYTES)
        with self._step("sample", f"sample {size} rows"):
            self.asked, sample = self._sample(self.config.recall_sample, size)
        with self._step("router", "learn cells"):
            self.router = learn_router(
                sample.rows,
                self.n_rows,
                self.config.metric,
                max_cell_rows=limits.most,
                min_cell_rows=limits.least,
                random_state=self.random_state,
            )

    def _sample(self, asked: int, size: int) -> tuple[_Sample, _Sample]:
        """Draw rows by a hash of their ids, so that the draw does not depend on the partitioning."""
        wanted = max(asked, size)
        share = min(1.0, (wanted + 4 * wanted**0.5 + 10) / self.n_rows)
        draw = F.xxhash64("id", F.lit(self.random_state))
        low = -(2**63)
        chosen = self.rows.withColumn("draw", draw)
        if share < 1.0:
            chosen = chosen.where(F.col("draw") < F.lit(low + int(share * 2**64)))
        found = chosen.collect()
        found.sort(key=lambda row: (row["draw"], row["id"]))
        drawn = _Sample.of(found[:wanted], self.dims)
        return drawn.first(asked).by_id(), drawn.first(size)

    def survey(self) -> None:
        """Count the rows of every cell, mend the router until they are balanced, and choose the overlap."""
        limits = cell_limits(self.config)
        for attempt in range(1_000_000):
            router = self._router()
            with self._step("survey", f"survey {router.n_cells} cells"):
                counts, truth = self._survey_pass()
            home = counts[0, 0].sum(axis=0)
            mended = None
            if attempt <= _REFINE_ROUNDS or home.min() <= self.config.k:
                with self._step("refine", "balance cells"):
                    mended = refine(
                        router,
                        home,
                        self._heavy_sample(home > limits.most),
                        max_cell_rows=limits.most,
                        min_cell_rows=limits.least,
                        random_state=self.random_state + attempt,
                        last=attempt >= _REFINE_ROUNDS,
                    )
            if mended is None:
                break
            self.router = mended
        self._choose(counts, truth)

    def _survey_pass(self) -> tuple[npt.NDArray[np.int64], Any]:
        plan = self._plan()
        broadcast = self.spark.sparkContext.broadcast(plan)
        found = _mapped(self.rows, cells.survey_rows, cells.SURVEY_SCHEMA, plan=broadcast)
        parts = self.rows.rdd.getNumPartitions()
        if parts > _FOLDED_AT_ONCE:
            folded = found.repartition(int(np.ceil(parts**0.5)))
            found = _mapped(folded, cells.combine_surveys, cells.SURVEY_SCHEMA, plan=broadcast)
        counts, truth = cells.fold_surveys(found.collect(), plan)
        broadcast.unpersist()
        if counts is None:
            raise IvisError("the rows were counted but then none were read; does the input change while it is used?")
        self.true_keys = truth.keys[:, : self.config.k]
        return counts, truth

    def _heavy_sample(self, heavy: npt.NDArray[np.bool_]) -> Floats:
        """Draw rows from the cells that are too big."""
        if not heavy.any():
            return np.zeros((0, self.dims), np.float32)
        context = self.spark.sparkContext
        plan, flags = context.broadcast(self._plan()), context.broadcast(heavy)
        body = functools.partial(cells.heavy_rows, heavy=flags)
        size = sample_size(self.n_rows, cell_limits(self.config).most, 4 * self.dims, SAMPLE_BYTES)
        share = min(1.0, 2 * size / self.n_rows)
        draw = F.xxhash64("id", F.lit(self.random_state + 1))
        drawn = self.rows.where(draw < F.lit(min(2**63 - 1, -(2**63) + int(share * 2**64))))
        found = _mapped(drawn, body, "id long, features binary", plan=plan).collect()
        plan.unpersist()
        flags.unpersist()
        found.sort(key=lambda row: row["id"])
        return _Sample.of(found, self.dims).rows

    def _choose(self, counts: npt.NDArray[np.int64], truth: Any) -> None:
        router, config = self._router(), self.config
        asymmetric = Space(config.metric).asymmetric
        asking, depths = router.rank(self.asked.rows, self.asked.ids, config.overlap, as_queries=asymmetric)
        self.choice = choose_overlap(
            counts[0],
            counts[-1],
            Ranked(asking, depth_bins(depths)),
            Truth(Ranked(truth.cells[:, : config.k], truth.bins[:, : config.k]), truth.keys),
            target=config.target_recall,
            most=config.overlap,
            most_cut=config.overlap_cut,
            dims=self.dims,
            k=config.k,
        )
        log.info(
            "neighbours: overlap %d, cut %.2f: recall %.4f", self.choice.overlap, self.choice.cut, self.choice.recall
        )
        if self.choice.recall < config.target_recall:
            # Counted by id; among equal rows others at the same distance do as well, so only the search can tell.
            log.warning(
                "neighbours: %.4f of the true neighbours share a cell with their row, neighbours.target_recall=%s is "
                "wanted: it is reached only if others are as near",
                self.choice.recall,
                config.target_recall,
            )

    def search(self) -> dict[str, Any]:
        """Assign, search, merge and write; measure; with Annoy search more nodes if the recall is too low."""
        choice = self._choice()
        picked = choose_backend(
            self.config.metric,
            dims=self.dims,
            cell_rows=int(np.median(choice.cell_rows)),
            k=self.config.k,
            n_trees=self.config.n_trees,
            search_k=self.config.search_k,
            requested="exact" if self.one_block and self.config.backend == "auto" else self.config.backend,
        )
        log.info("neighbours: %s index, %s", picked.backend, picked.reason)
        config = self.config
        for attempt in range(_ANNOY_ROUNDS):
            self._search_job(config, picked.backend)
            with self._step("measure", "measure recall"):
                recall = self._recall()
            if recall.value >= config.target_recall or picked.backend == "exact" or attempt == _ANNOY_ROUNDS - 1:
                break
            nodes = config.search_k if config.search_k > 0 else config.n_trees * config.k
            log.info(
                "neighbours: recall %.4f with search_k=%d: searching again with %d", recall.value, nodes, 3 * nodes
            )
            config = dataclasses.replace(config, search_k=3 * nodes)
        check_recall(recall, config.target_recall, choice)
        with self._step("index", "write the index"):
            self._publish_index(picked.backend, config)
        return self._figures(dataclasses.asdict(picked), recall, config)

    def _search_job(self, config: NeighboursConfig, backend: str) -> None:
        choice, router = self._choice(), self._router()
        _remove(storage.join(self.folder, "index"))
        size = choice.copies * self.n_rows * (4 * self.dims + 9)
        tasks = _tasks(self.spark, router.n_cells, size)
        lists = choice.copies * self.n_rows * config.k * (8 if self.low_id is not None else 12)
        merges = _tasks(self.spark, max(1, self.n_rows // 256), lists)
        buckets = max(merges, int(np.ceil(lists / _BUCKET_BYTES)))
        plan = dataclasses.replace(
            self._plan(),
            config=config,
            backend=backend,
            folder=storage.join(self.folder, "index"),
            overlap=choice.overlap,
            cut=choice.cut,
            cell_tasks=_deal(choice.cell_rows.astype(np.float64) ** 2, tasks),
            bucket_tasks=np.arange(buckets, dtype=np.int32) % np.int32(merges),
        )
        broadcast = self.spark.sparkContext.broadcast(plan)
        with self._step("search", f"search {router.n_cells} cells"):
            assigned = _mapped(self.rows, cells.assign_rows, cells.CELL_SCHEMA, plan=broadcast)
            ordered = _by_task(assigned, tasks).sortWithinPartitions("cell", "role")
            found = _mapped(ordered, cells.search_cells, cells.BUCKET_SCHEMA, plan=broadcast)
            bucketed = _by_task(found, merges).sortWithinPartitions("bucket")
            attempts = storage.join(self.folder, "attempts")
            body = functools.partial(cells.write_table, folder=attempts)
            self._take(_mapped(bucketed, body, cells.WRITTEN_SCHEMA, plan=broadcast).collect(), attempts)
        broadcast.unpersist()

    def _take(self, written: list[Any], attempts: str) -> None:
        """Move the files of the attempts that counted to `data/`: a task that lost may still write to the other."""
        rows = sum(row["rows"] for row in written)
        if rows != self.n_rows:
            raise IvisError(
                f"{self.n_rows} rows were counted but {rows} were searched; are ids unique and rows stable?"
            )
        data = storage.join(self.folder, "data")
        _remove(data)
        fs, source = storage.filesystem(attempts)
        _, target = storage.filesystem(data)
        fs.makedirs(target, exist_ok=True)
        for row in written:
            fs.mv(f"{source}/{row['name']}", f"{target}/{row['name']}")
        _remove(attempts)

    def _recall(self) -> Recall:
        """Compare what was written for the sampled rows with their exact neighbours."""
        if self.true_keys is None:
            return Recall(1.0, 1.0, 1.0, self.n_rows)  # one exact block: nothing was left out
        table = self.spark.read.parquet(storage.join(self.folder, "data"))
        wanted = table.where(F.col("id").isin([int(number) for number in self.asked.ids])).collect()
        found = {row["id"]: row["distances"] for row in wanted}
        space = Space(self.config.metric)
        keys = np.full(self.true_keys.shape, np.inf, dtype=np.float32)
        for place, number in enumerate(self.asked.ids):
            near = np.array(found.get(int(number), []), dtype=np.float32)
            keys[place, : len(near)] = space.keys_of(near)
        return recall_at_k(keys, self.true_keys)

    def _publish_index(self, backend: str, config: NeighboursConfig) -> None:
        """Write the router and `index.json`, and remove what attempts left that did not count."""
        folder = storage.join(self.folder, "index")
        fs, path = storage.filesystem(folder)
        reports = sorted(name for name in fs.ls(path, detail=False) if os.path.basename(name).startswith("cells-"))
        kept: dict[int, dict[str, Any]] = {}
        for name in reports:
            report = json.loads(fs.cat_file(name))
            kept.setdefault(report["partition"], report)
        listed = sorted((cell for report in kept.values() for cell in report["cells"]), key=lambda cell: cell["cell"])
        used = {file["path"] for cell in listed for file in cell["files"].values()}
        for name in fs.ls(path, detail=False):
            if os.path.basename(name) not in used:
                fs.rm(name)
        head = {"format": 1, "backend": backend, "metric": config.metric, "dims": self.dims, "rows": self.n_rows}
        head |= {"k": config.k, "search_k": config.search_k, "overlap": self._choice().overlap, "cells": listed}
        with tempfile.TemporaryDirectory(prefix="ivis-spark-router-") as local:
            self._router().save(local)
            with open(os.path.join(local, "index.json"), "w", encoding="utf-8") as file:
                json.dump(head, file)
            storage.put_folder(local, folder)

    def _figures(self, picked: dict[str, Any], recall: Recall, config: NeighboursConfig) -> dict[str, Any]:
        choice = self._choice()
        return {
            "rows": self.n_rows,
            "dims": self.dims,
            "k": config.k,
            "metric": config.metric,
            "backend": picked["backend"],
            "backend_reason": picked["reason"],
            "search_k": config.search_k,
            "n_cells": self._router().n_cells,
            "largest_cell": int(choice.cell_rows.max()),
            "median_cell": float(np.median(choice.cell_rows)),
            "overlap": choice.overlap,
            "overlap_cut": round(choice.cut, 4),
            "replicas": round(choice.copies, 4),
            "recall": {
                "value": recall.value,
                "ci95": [recall.low, recall.high],
                "sample": recall.sample,
                "expected": choice.recall,
            },
            "seconds": dict(self.seconds),
        }

    def _plan(self) -> cells.Plan:
        return cells.Plan(
            config=self.config,
            router=self._router(),
            dims=self.dims,
            random_state=self.random_state,
            low_id=self.low_id,
            asked_ids=self.asked.ids,
            asked_rows=self.asked.rows,
        )

    def _router(self) -> Router:
        if self.router is None:
            raise RuntimeError("the router is learnt before it is used")
        return self.router

    def _choice(self) -> OverlapChoice:
        if self.choice is None:
            raise RuntimeError("the overlap is chosen before it is used")
        return self.choice


@dataclass(frozen=True)
class _Sample:
    """Some rows on the driver: ids int64 (n,), rows float32 (n, d)."""

    ids: Ints
    rows: Floats

    @classmethod
    def of(cls, records: list[Any], dims: int) -> _Sample:
        ids = np.array([record["id"] for record in records], dtype=np.int64)
        body = b"".join(record["features"] for record in records)
        return cls(ids, np.frombuffer(body, np.float32).reshape(len(records), dims))

    def first(self, count: int) -> _Sample:
        return _Sample(self.ids[:count], self.rows[:count])

    def by_id(self) -> _Sample:
        order = np.argsort(self.ids)
        return _Sample(self.ids[order], self.rows[order])


def _mapped(frame: DataFrame, body: Callable[..., Any], schema: str, *, plan: Broadcast[Any]) -> DataFrame:
    return frame.mapInArrow(functools.partial(body, plan=plan), schema)


def _by_task(frame: DataFrame, tasks: int) -> DataFrame:
    return repartition_by_group(frame, "task", tasks) if tasks > 1 else frame.repartition(1)


def _tasks(spark: SparkSession, pieces: int, size: float) -> int:
    """Return how many tasks to use: a few a core, more if one would hold too much, never more than pieces."""
    return max(1, min(pieces, max(2 * cores(spark), int(np.ceil(size / _TASK_BYTES)))))


def _deal(costs: npt.NDArray[np.float64], tasks: int) -> npt.NDArray[np.int32]:
    """Deal pieces to tasks, the costliest first, each to the task with the least so far."""
    loads = [(0.0, task) for task in range(tasks)]
    dealt = np.zeros(len(costs), dtype=np.int32)
    for piece in np.argsort(-costs, kind="stable"):
        load, task = heapq.heappop(loads)
        dealt[piece] = task
        heapq.heappush(loads, (load + float(costs[piece]), task))
    return dealt


def _remove(uri: str) -> None:
    fs, path = storage.filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)
