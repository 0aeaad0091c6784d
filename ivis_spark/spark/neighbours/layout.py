"""The cells of a build: rows sampled, cells learnt and balanced on counts of all rows, the overlap chosen.

Before anything is searched, one pass counts the rows of every cell and finds the exact neighbours of a sample. That
tells which overlap reaches the wanted recall at the least cost.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark import Broadcast
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.overlap import (
    OverlapChoice,
    ProbeChoice,
    Ranked,
    Truth,
    choose_overlap,
    choose_probes,
    depth_bins,
)
from ivis_spark.core.knn.quantiser import Router, learn_router, refine, sample_size
from ivis_spark.core.knn.search import ONE_BLOCK_ROWS, SAMPLE_BYTES, cell_limits, check_k, sample_rows
from ivis_spark.errors import IvisError
from ivis_spark.spark.causes import task_errors
from ivis_spark.spark.neighbours.calibration import (
    SURVEY_SCHEMA,
    ExactLists,
    combine_surveys,
    fold_surveys,
    heavy_rows,
    survey_rows,
)
from ivis_spark.spark.neighbours.row_sample import RowSample, draw_rows, drawn_rows
from ivis_spark.spark.neighbours.task_plan import Plan
from ivis_spark.spark.session import describe_job
from ivis_spark.spark.tasks import map_arrow

log = logging.getLogger(__name__)

TASK_BYTES = 256 << 20  # of rows or lists in a task
_REFINE_ROUNDS = 4
_FOLDED_AT_ONCE = 16  # surveys that go straight to the driver; more are folded in tasks first
_MOST_PROBES = 24  # cells a new row is searched in


class Layout:
    """Where the rows of a table are searched. Lives on the driver; its memory grows with cells and the sample.

    Args:
        rows: Columns `id` and `features`.
        config: Settings of the stage.
        random_state: Seed.
    """

    def __init__(self, rows: DataFrame, config: NeighboursConfig, random_state: int) -> None:
        self.rows, self.config, self.random_state = rows, config, random_state
        self.spark: SparkSession = rows.sparkSession
        self.seconds: dict[str, float] = {}
        self.n_rows = self.dims = 0
        self.low_id: int | None = None
        self.asked = RowSample(np.zeros(0, np.int64), np.zeros((0, 1), np.float32))
        self._measured = np.zeros(0, bool)
        self._truth_keys: Floats | None = None
        self.choice: OverlapChoice | None = None
        self._home_rows = np.zeros(1, np.int64)
        self._surveyed: tuple[npt.NDArray[np.int64], ExactLists] | None = None
        self._router: Router | None = None

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Name Spark's jobs, time them, and raise what a task raised on purpose."""
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
        with self.step("count", "count rows"):
            low, high = F.min("id").alias("low"), F.max("id").alias("high")
            row = self.rows.agg(F.count("*").alias("n"), low, high).first()
            first = self.rows.select(F.length("features").alias("bytes")).first()  # not of all: those are large
        if row is None:
            raise IvisError("Spark returned no count of the rows")
        self.n_rows, self.dims = int(row["n"]), 0 if first is None else int(first["bytes"]) // 4
        check_k(self.config.k, self.n_rows)
        self.low_id = int(row["low"]) if row["high"] - row["low"] < 2**32 - 1 else None

    @property
    def one_block(self) -> bool:
        """Whether one exact block over all rows is cheaper than any routing."""
        most = max(ONE_BLOCK_ROWS, 2 * self.config.k)
        return self.n_rows <= most and self.n_rows * self.dims * 4 <= TASK_BYTES

    def take_one_cell(self) -> None:
        """Put all rows in one cell."""
        width = self.dims + (1 if Space(self.config.metric).asymmetric else 0)
        centre = np.zeros((1, width), dtype=np.float32)
        self._router = Router.make(self.config.metric, centre, np.ones(1, np.int64), np.ones(1, np.float32), 0.0)
        self._home_rows = rows = np.array([self.n_rows])
        self.choice = OverlapChoice(overlap=1, cut=0.0, recall=1.0, error=0.0, copies=1.0, cell_rows=rows)
        if self.config.backend == "annoy":
            self._draw(min(self.config.recall_sample, self.n_rows), 0, 0)
            self.survey_pass()

    def measure_only(self) -> None:
        """Find the exact neighbours of a sample, for a table that needs no search."""
        self.take_one_cell()
        if self._truth_keys is None:
            self._draw(min(self.config.recall_sample, self.n_rows), 0, 0)
            self.survey_pass()

    @property
    def measured_ids(self) -> Ints:
        """int64 (q,), ascending: the rows that measure the recall, from which nothing is learnt or chosen."""
        return np.asarray(self.asked.ids[self._measured])

    @property
    def true_keys(self) -> Floats | None:
        """float32 (q, k): keys of their exact neighbours; None if the search leaves nothing out."""
        return None if self._truth_keys is None else self._truth_keys[self._measured]

    def learn(self) -> None:
        """Sample rows and learn the router."""
        limits = cell_limits(self.config)
        size = sample_size(self.n_rows, limits.most, 4 * self.dims, SAMPLE_BYTES)
        with self.step("sample", f"sample {size} rows"):
            asked = sample_rows(self.config, self.n_rows)
            sample = self._draw(asked, asked, size)
        with self.step("router", "learn cells"):
            self._router = learn_router(
                sample.rows,
                self.n_rows,
                self.config.metric,
                max_cell_rows=limits.most,
                min_cell_rows=limits.least,
                random_state=self.random_state,
            )

    def _draw(self, measure: int, choose: int, learn: int) -> RowSample:
        """Draw disjoint samples: to measure the recall, to choose the overlap, to learn cells. Return the last."""
        size = measure + choose + learn
        drawn = draw_rows(self.rows, size, n_rows=self.n_rows, dims=self.dims, seed=self.random_state)
        self.asked = drawn.part(0, measure + choose).by_id()
        self._measured = np.isin(self.asked.ids, drawn.ids[:measure])
        return drawn.part(measure + choose, size)

    def survey(self) -> None:
        """Count the rows of every cell, mend the router until they are balanced, and choose the overlap."""
        limits = cell_limits(self.config)
        for attempt in range(1_000_000):
            router = self.known_router()
            with self.step("survey", f"survey {router.n_cells} cells"):
                counts = self.survey_pass()
            home = self._home_rows = counts[0, 0].sum(axis=0)
            mended = None
            if attempt <= _REFINE_ROUNDS or home.min() <= self.config.k:
                with self.step("refine", "balance cells"):
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
            self._router = mended
        self.choice = self.choose(self.config.target_recall)
        if self.choice.recall < self.config.target_recall:
            log.warning(
                "neighbours: %.4f of the true neighbours share a cell with their row, neighbours.target_recall=%s is "
                "wanted: it is reached only if others are as near",
                self.choice.recall,
                self.config.target_recall,
            )

    def survey_pass(self) -> npt.NDArray[np.int64]:
        """Count all rows by cell, rank and depth, and find the exact neighbours of the asked ones."""
        plan = self.plan()
        broadcast = self.spark.sparkContext.broadcast(plan)
        found = mapped(self.rows, survey_rows, SURVEY_SCHEMA, plan=broadcast)
        parts = self.rows.rdd.getNumPartitions()
        if parts > _FOLDED_AT_ONCE:
            folded = found.repartition(int(np.ceil(parts**0.5)))
            found = mapped(folded, combine_surveys, SURVEY_SCHEMA, plan=broadcast)
        counts, truth = fold_surveys(found.collect(), plan)
        broadcast.unpersist()
        if counts is None:
            raise IvisError("the rows were counted but then none were read; does the input change while it is used?")
        self._truth_keys = truth.keys[:, : self.config.k]
        self._surveyed = counts, truth
        return counts

    def _heavy_sample(self, heavy: npt.NDArray[np.bool_]) -> Floats:
        """Draw rows from the cells that are too big."""
        if not heavy.any():
            return np.zeros((0, self.dims), np.float32)
        context = self.spark.sparkContext
        plan, flags = context.broadcast(self.plan()), context.broadcast(heavy)
        body = functools.partial(heavy_rows, heavy=flags)
        size = sample_size(self.n_rows, cell_limits(self.config).most, 4 * self.dims, SAMPLE_BYTES)
        drawn = drawn_rows(self.rows, min(1.0, 2 * size / self.n_rows), seed=self.random_state + 1)
        found = mapped(drawn, body, "id long, features binary", plan=plan).collect()
        plan.unpersist()
        flags.unpersist()
        asked = set(self.asked.ids.tolist())
        found = sorted((row for row in found if row["id"] not in asked), key=lambda row: row["id"])
        return RowSample.of(found, self.dims).rows

    def choose(self, target: float) -> OverlapChoice:
        """Pick the overlap that the survey expects to reach a recall."""
        if self._surveyed is None:
            return self.known_choice()
        (counts, truth), router, config = self._surveyed, self.known_router(), self.config
        asymmetric = Space(config.metric).asymmetric
        choosing = ~self._measured
        asked = self.asked.ids[choosing]
        if not len(asked):
            return self.known_choice()
        asking, depths = router.rank(self.asked.rows[choosing], asked, config.overlap, as_queries=asymmetric)
        choice = choose_overlap(
            counts[0],
            counts[-1],
            Ranked(asking, depth_bins(depths)),
            self._truth(truth, choosing),
            target=target,
            most=config.overlap,
            most_cut=config.overlap_cut,
            dims=self.dims,
            k=config.k,
        )
        log.info("neighbours: overlap %d, cut %.2f: recall %.4f expected", choice.overlap, choice.cut, choice.recall)
        return choice

    def _truth(self, lists: ExactLists, some: npt.NDArray[np.bool_]) -> Truth:
        k = self.config.k
        return Truth(Ranked(lists.cells[some, :k], lists.bins[some, :k]), lists.keys[some])

    def probes(self) -> ProbeChoice:
        """Choose how many cells a new row is searched in: those are kept without overlap."""
        choosing = ~self._measured
        if self._surveyed is None or not choosing.any():
            return ProbeChoice(cells=1, cut=None, recall=1.0)
        asymmetric = Space(self.config.metric).asymmetric
        router, asked, lists = self.known_router(), self.asked, self._surveyed[1]
        width = max(self.config.overlap, _MOST_PROBES)
        cells, depths = router.rank(asked.rows, asked.ids, width, as_queries=asymmetric)
        chosen_by, measured_by = (
            (Ranked(cells[some], depth_bins(depths[some])), self._truth(lists, some))
            for some in (choosing, self._measured)
        )
        return choose_probes(*chosen_by, target=self.config.target_recall).measured(*measured_by)

    def plan(self) -> Plan:
        """Return what tasks need to know, without what the search adds."""
        return Plan(
            config=self.config,
            router=self.known_router(),
            dims=self.dims,
            random_state=self.random_state,
            low_id=self.low_id,
            home_rows=self._home_rows,
            asked_ids=self.asked.ids,
            asked_rows=self.asked.rows,
        )

    def known_router(self) -> Router:
        """Return the router."""
        if self._router is None:
            raise RuntimeError("the router is learnt before it is used")
        return self._router

    def known_choice(self) -> OverlapChoice:
        """Return the overlap chosen."""
        if self.choice is None:
            raise RuntimeError("the overlap is chosen before it is used")
        return self.choice


def mapped(frame: DataFrame, body: Callable[..., Any], schema: str, *, plan: Broadcast[Any]) -> DataFrame:
    """Run a task body over the Arrow batches of a table."""
    return map_arrow(frame, functools.partial(body, plan=plan), schema)
