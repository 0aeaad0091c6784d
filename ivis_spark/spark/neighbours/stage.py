"""The neighbours stage: sample, learn regions, choose how far they overlap, then assign -> search -> write in one job.

A row's list is completed in its primary region, so that lists are never shuffled: rows are shuffled once, with a copy
to each other region whose boundary is close. What the driver holds grows with regions (at most some thousand) alone.
"""

from __future__ import annotations

import functools
import heapq
import json
import logging
import os
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ivis_spark import storage
from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.metrics import Ints
from ivis_spark.core.knn.recall import Recall, check_recall
from ivis_spark.core.knn.regions import (
    Regions,
    choose_margin,
    least_region_rows,
    region_rows,
    sample_size,
    shared_target,
)
from ivis_spark.core.knn.search import (
    ROUNDS,
    aimed_recall,
    leaves_nothing_out,
    pick_backend,
    raised_target,
    remedy,
)
from ivis_spark.core.knn.sizes import (
    CHOOSING_NEIGHBOURS,
    CHOOSING_ROWS,
    MOST_COPIES,
    MOST_REGION_BYTES,
    row_bytes,
    search_tasks,
    searching_bytes,
)
from ivis_spark.core.scaling import SCALER, Scaler
from ivis_spark.errors import IvisError, advice
from ivis_spark.serving.index import INDEX_FILE, INDEX_FORMAT
from ivis_spark.spark.neighbours import tasks
from ivis_spark.spark.neighbours.row_facts import RowFacts
from ivis_spark.spark.neighbours.task_plan import RECORDS_PER_BATCH, Plan
from ivis_spark.spark.neighbours.truth import Pairs, RowSample
from ivis_spark.spark.partitioning import cores, repartition_by_group
from ivis_spark.spark.session import arrow_batch_rows
from ivis_spark.spark.tasks import map_arrow

log = logging.getLogger(__name__)

_ROOM = 0.8  # of the bytes a region may have: what smaller regions aim at


def build_neighbours(
    rows: DataFrame,
    config: NeighboursConfig,
    *,
    random_state: int,
    folder: str,
    scaler: Scaler | None = None,
    anchors: int | None = None,
) -> dict[str, Any]:
    """Find the k nearest other rows of every anchor and keep the index that new rows are searched in.

    Runs on: driver. `rows` is read a few times: cache or publish it if it is costly to make.

    Args:
        rows: Columns `id` long, unique, and `features` binary: float32 little-endian, equally long, finite.
        config: Settings of the stage.
        random_state: Seed; with it the result is the same for any partitioning of `rows`.
        folder: URI to build in: `data/` gets the Parquet table (`id`, `neighbour_ids`, `distances`), `index/` the
            regions, the index of each and `index.json`.
        scaler: What `rows` went through, kept with the index so that new rows go through it too.
        anchors: Number of rows, drawn by hash, that get a list; None for all. The index holds all rows.

    Returns:
        Facts for the manifest: rows, anchors, dims, k, metric, backend, regions, replicas, recall; and
        `digests`, of the files that tasks wrote, by their path below the folder.

    Raises:
        InputError: if k is not less than the number of rows.
        ConfigError: if there is no such index library.
        IvisError: if the target recall is not reached.
    """
    return _Build(rows.select("id", "features"), config, random_state, folder, anchors).run(scaler)


class _Build:
    """One build, from rows to files. Lives on the driver."""

    def __init__(
        self, rows: DataFrame, config: NeighboursConfig, random_state: int, folder: str, anchors: int | None
    ) -> None:
        self.facts, self.config, self.folder = RowFacts(rows, config, random_state, anchors), config, folder
        self.rows, self.spark, self.random_state = rows, self.facts.spark, random_state
        self.regions = Regions.one(config.metric, 1)
        self.learnt = RowSample(np.zeros(0, np.int64), np.zeros((0, 1), np.float32))
        self.pairs: Pairs | None = None
        self.size, self.larger = 0, list[int]()  # rows of a region: those learnt, and larger ones still to try
        self.margin, self.shared = 0.0, 1.0
        self.written: list[Any] = []

    def run(self, scaler: Scaler | None) -> dict[str, Any]:
        """Learn, search, measure; where the recall is too low, search again with more effort; publish the index."""
        facts, config = self.facts, self.config
        with arrow_batch_rows(self.spark, RECORDS_PER_BATCH):
            facts.count()
            self.size, *self.larger = region_rows(config, facts.n_rows, facts.dims)
            backend = pick_backend(config, min(self.size, facts.n_rows), facts.dims)
            self._learn(backend)
            target = config.target_recall
            for attempt in range(ROUNDS):
                aim = aimed_recall(target, len(facts.held_out.ids))
                self._search(backend, aim)
                recall = self._recall()
                if recall.low >= config.target_recall or attempt == ROUNDS - 1:
                    break
                log.info("neighbours: recall %.4f is too low; searching again with more effort", recall.value)
                target = raised_target(target, recall.low, config.target_recall)
        check_recall(recall, config.target_recall, remedy(backend))
        with facts.step("index", "write the index"):
            self._publish_index(backend, recall, scaler)
        return self._facts(backend, recall)

    def _learn(self, backend: str) -> None:
        """Draw the samples, and learn regions of the smallest size if there is more than one."""
        facts, config = self.facts, self.config
        self.regions = Regions.one(config.metric, facts.dims)
        size, measure = sample_size(facts.n_rows, facts.dims, self.size), facts.measured_rows
        if not size:
            if not leaves_nothing_out(config, backend, facts.n_rows):
                facts.find_truth(facts.draw(measure)[0])
            return
        choosing, self.learnt = facts.draw(measure, min(CHOOSING_ROWS, facts.n_rows // 8), size)
        exact = facts.find_truth(choosing)
        places = np.unique(np.linspace(0, config.k - 1, min(config.k, CHOOSING_NEIGHBOURS)).astype(int))
        # Which rows as far as the last are among the k is chance, and may depend on partitions: they do not count.
        counts = exact.keys[:, places] < exact.keys[:, config.k :]
        ids = exact.ids[:, places]
        with facts.step("choose", "locate neighbours"):
            self.pairs = Pairs(choosing, self._rows(ids), ids, counts)
        self._learn_regions(self.size)

    def _learn_regions(self, size: int) -> None:
        """Learn regions of so many rows."""
        self.size = size
        with self.facts.step("regions", f"learn regions of {size} rows"):
            self.regions = Regions.learn(
                self.learnt.rows,
                self.facts.n_rows,
                self.config.metric,
                region_rows=size,
                least_rows=2 * (self.config.k + 1),
                seed=self.random_state,
            )

    def _overlap(self, aim: float) -> None:
        """Choose how far regions overlap; learn others while these are too large or hold too many copies."""
        wanted = shared_target(aim)
        if self.pairs is None:  # one region, or so few rows that all are compared
            self._next_size(float(self.facts.n_rows), enough=True)
        while self.pairs is not None:
            depths = self.pairs.depths(self.regions, self.config.max_regions)
            self.margin, self.shared = choose_margin(depths, wanted)
            expected = self._expected_rows()
            copies = expected.sum() / self.facts.n_rows
            log.info(
                "neighbours: %d regions: margin %.3f reaches %.4f of the neighbours, a row is in %.2f of them",
                *(len(self.regions), self.margin, self.shared, copies),
            )
            enough = self.shared >= wanted and copies <= MOST_COPIES
            size = self._next_size(float(expected.max()), enough=enough)
            if size is None:
                break
            self._learn_regions(size)

    def _next_size(self, largest: float, *, enough: bool) -> int | None:
        """Return how many rows regions should have instead, or None if these will do.

        Args:
            largest: Rows expected in the largest region.
            enough: Whether regions hold enough neighbours and few enough copies.
        """
        size = largest * row_bytes(self.facts.dims)
        room = MOST_REGION_BYTES / size
        if room < 1:
            self.larger.clear()
            smaller = round(_ROOM * room * self.size)
            if smaller >= least_region_rows(self.config, self.facts.n_rows, len(self.learnt.ids)):
                return smaller
            or_rows = "" if self.config.region_rows is None else "neighbours.region_rows, "
            log.warning(
                advice(
                    "the largest region is expected to hold %d rows, and the task that searches it needs %.1f GB: give "
                    f"each Python worker as much memory, or lower {or_rows}neighbours.max_regions or "
                    "neighbours.target_recall"
                ),
                largest,
                searching_bytes(size) / 1e9,
            )
        elif not enough and self.larger and self.larger[0] <= room * self.size:
            return self.larger.pop(0)
        return None

    def _rows(self, ids: Ints) -> RowSample:
        """Return the rows of some ids."""
        wanted = self.spark.createDataFrame([(int(number),) for number in np.unique(ids)], "id long")
        records = self.rows.join(F.broadcast(wanted), "id", "left_semi").collect()
        records.sort(key=lambda row: row["id"])
        return RowSample.of(records, self.facts.dims)

    def _search(self, backend: str, aim: float) -> None:
        """Search all regions and write lists and indexes, in one job."""
        facts, config = self.facts, self.config
        self._overlap(aim)
        expected = self._expected_rows()
        size = float(expected.sum()) * row_bytes(facts.dims)
        n_tasks = search_tasks(size, len(self.regions), cores(self.spark))
        plan = Plan(
            config=config,
            regions=self.regions,
            dims=facts.dims,
            random_state=self.random_state,
            backend=backend,
            folder=self.folder,
            margin=self.margin,
            target=1.0 if facts.true_keys is None else min(aim / max(self.shared, 1e-6), 1 - (1 - aim) / 4),
            region_tasks=_deal(expected, n_tasks),
            held_out=np.sort(facts.held_out.ids),
        )
        attempts = storage.join(self.folder, "attempts")
        for folder in (storage.join(self.folder, "index"), attempts):
            storage.remove_folder(folder)
            fs, path = storage.filesystem(folder)
            fs.makedirs(path)
        broadcast = self.spark.sparkContext.broadcast(plan)
        with facts.step("search", f"search {len(self.regions)} regions"):
            body = functools.partial(tasks.assign_rows, plan=broadcast)
            rows = self.rows.withColumn("query", facts.anchors.condition)
            assigned = map_arrow(rows, body, tasks.REGION_SCHEMA)
            parts = repartition_by_group(assigned, "task", n_tasks) if n_tasks > 1 else assigned.repartition(1)
            body = functools.partial(tasks.search_regions, plan=broadcast)
            searched = map_arrow(parts.sortWithinPartitions("region"), body, tasks.WRITTEN_SCHEMA)
            self._take(searched.collect(), attempts)
        broadcast.unpersist()

    def _expected_rows(self) -> npt.NDArray[np.float64]:
        """Return about how many rows lie in each region, by the sample it was learnt from."""
        if not len(self.learnt.ids):
            return np.full(len(self.regions), float(self.facts.n_rows))
        sample = self.learnt
        _, regions, _ = self.regions.assign(sample.rows, sample.ids, width=self.config.max_regions, margin=self.margin)
        return np.bincount(regions, minlength=len(self.regions)) * (self.facts.n_rows / len(sample.ids))

    def _take(self, written: list[Any], attempts: str) -> None:
        """Move the files of the attempts that counted to `data/`: a task that lost may still write to the other."""
        self.written = written
        rows = sum(row["rows"] for row in written)
        if rows != self.facts.anchors.count:
            raise IvisError(
                f"{self.facts.anchors.count} rows were counted but {rows} were searched; are ids unique and rows "
                f"deterministic?"
            )
        data = storage.join(self.folder, "data")
        storage.remove_folder(data)
        fs, source = storage.filesystem(attempts)
        _, target = storage.filesystem(data)
        fs.makedirs(target, exist_ok=True)
        storage.in_parallel(lambda row: fs.mv(f"{source}/{row['name']}", f"{target}/{row['name']}"), written)
        storage.remove_folder(attempts)

    def _recall(self) -> Recall:
        """Compare what was written for the rows held out with their exact neighbours."""
        ids = np.concatenate([np.frombuffer(row["held_out"], np.int64) for row in self.written])
        keys = np.concatenate([np.frombuffer(row["keys"], np.float32) for row in self.written])
        return self.facts.recall_of(ids, keys.reshape(len(ids), self.config.k))

    def _records(self) -> list[dict[str, Any]]:
        regions = (record for row in self.written for record in json.loads(row["regions"]))
        return sorted(regions, key=lambda record: int(record["region"]))

    def _publish_index(self, backend: str, recall: Recall, scaler: Scaler | None) -> None:
        """Write the regions and `index.json`, and remove what attempts left that did not count."""
        folder, records = storage.join(self.folder, "index"), self._records()
        storage.keep_only(folder, [file["path"] for record in records for file in record["files"].values()])
        head = {"format": INDEX_FORMAT, "backend": backend, "metric": self.config.metric, "dims": self.facts.dims}
        head |= {"rows": self.facts.n_rows, "k": self.config.k, "recall": recall.value}
        head["regions"] = records
        with tempfile.TemporaryDirectory(prefix="ivis-spark-regions-") as local:
            names = sorted(self.regions.save(local))
            head["quantiser"] = [_described(local, name) for name in names]
            if scaler is not None:
                storage.write_bytes(os.path.join(local, SCALER), scaler.to_bytes())
            head["scaler"] = None if scaler is None else _described(local, SCALER)
            with open(os.path.join(local, INDEX_FILE), "w", encoding="utf-8") as file:
                json.dump(head, file)
            storage.put_folder(local, folder)

    def _facts(self, backend: str, recall: Recall) -> dict[str, Any]:
        records = self._records()
        rows = np.array([record["rows"] for record in records])
        short = sum(row["short"] for row in self.written)
        if short:
            log.warning(
                advice(
                    "%d rows have fewer than k=%d neighbours, because their regions hold fewer rows: lower "
                    "neighbours.k, or raise neighbours.region_rows"
                ),
                short,
                self.config.k,
            )
        return {
            "rows": self.facts.n_rows,
            "anchors": self.facts.anchors.count,
            "dims": self.facts.dims,
            "k": self.config.k,
            "metric": self.config.metric,
            "backend": backend,
            "n_regions": len(self.regions),
            "largest_region": int(rows.max()),
            "median_region": float(np.median(rows)),
            "margin": round(self.margin, 4),
            "replicas": round(float(rows.sum()) / self.facts.n_rows, 4),
            "short_rows": short,
            "recall": recall.to_mapping(),
            "digests": {f"data/{row['name']}": _digest_of(json.loads(row["digest"])) for row in self.written}
            | {f"index/{file['path']}": _digest_of(file) for record in records for file in record["files"].values()},
        }


def _described(folder: str, name: str) -> dict[str, Any]:
    return {**storage.digest_file(os.path.join(folder, name)), "path": name}


def _digest_of(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("bytes", "sha256")}


def _deal(costs: npt.NDArray[np.float64], tasks: int) -> npt.NDArray[np.int32]:
    """Assign regions to tasks, the costliest first, each to the task with the lowest cost so far."""
    loads = [(0.0, task) for task in range(tasks)]
    task_of = np.zeros(len(costs), dtype=np.int32)
    for piece in np.argsort(-costs, kind="stable"):
        load, task = heapq.heappop(loads)
        task_of[piece] = task
        heapq.heappush(loads, (load + float(costs[piece]) + 1, task))
    return task_of
