"""The rows of a build: their number and width, samples of them, and the recall by exact neighbours of some."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.metrics import Floats, Ints
from ivis_spark.core.knn.recall import Recall, recall_at_k
from ivis_spark.core.knn.search import check_k, sample_rows
from ivis_spark.errors import IvisError
from ivis_spark.spark.anchors import Anchors, row_hash
from ivis_spark.spark.causes import task_errors
from ivis_spark.spark.draws import DRAW, draw_rows
from ivis_spark.spark.neighbours.truth import ExactLists, RowSample, exact_lists
from ivis_spark.spark.session import job_step

log = logging.getLogger(__name__)


class RowFacts:
    """Rows of a build: their number and width, and the exact neighbours of a sample of them. Lives on the driver.

    Args:
        rows: Columns `id` and `features`.
        config: Settings of the stage.
        random_state: Seed.
        n_anchors: Rows that get a list; None for all.
    """

    def __init__(
        self, rows: DataFrame, config: NeighboursConfig, random_state: int, n_anchors: int | None = None
    ) -> None:
        self.rows, self.config, self.random_state = rows, config, random_state
        self._n_anchors, self.anchors = n_anchors, Anchors(0, None, random_state)
        self.spark: SparkSession = rows.sparkSession
        self.n_rows = self.dims = 0
        self.held_out = RowSample(np.zeros(0, np.int64), np.zeros((0, 1), np.float32))
        self.true_keys: Floats | None = None

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Name Spark's jobs, time them, and raise what a task raised on purpose."""
        with job_step(self.spark, name, f"neighbours: {text}"), task_errors():
            yield

    def count(self) -> None:
        """Count the rows and look at their width."""
        with self.step("count", "count rows"):
            self.n_rows = self.rows.count()
            first = self.rows.select(F.length("features").alias("bytes")).first()  # not of all: those are large
        self.dims = 0 if first is None else int(first["bytes"]) // 4
        check_k(self.config.k, self.n_rows)
        with self.step("anchors", f"draw {self._n_anchors or 'all'} anchors"):
            self.anchors = Anchors.draw(self.rows, self._n_anchors, n_rows=self.n_rows, random_state=self.random_state)
        log.info("neighbours: searching for the neighbours of %d rows among %d", self.anchors.count, self.n_rows)

    @property
    def measured_rows(self) -> int:
        """How many anchors measure the recall."""
        return min(sample_rows(self.config, self.n_rows), self.anchors.count)

    def draw(self, measure: int, choose: int = 0, learn: int = 0) -> tuple[RowSample, RowSample]:
        """Draw disjoint samples: anchors held out to measure the recall, and rows to choose by and learn from.

        They are parts of one draw, which is in the order of the hashes: any part of it is a draw too.
        """
        with self.step("sample", f"sample {measure + choose + learn} rows"):
            size = measure + choose + learn
            hashed = self.rows.withColumn(DRAW, row_hash(self.random_state))
            drawn = RowSample.of(draw_rows(hashed, size, n_rows=self.n_rows), self.dims)
        self.held_out = drawn.part(0, measure)
        return drawn.part(measure, measure + choose), drawn.part(measure + choose)

    def find_truth(self, others: RowSample) -> ExactLists:
        """Find the exact neighbours of the rows held out, and return those of others, one more than k of each."""
        queries = self.held_out.joined(others)
        with self.step("truth", f"exact neighbours of {len(queries.ids)} rows"):
            lists = exact_lists(self.rows, queries, self.config.k + 1, self.config.metric)
        held_out = len(self.held_out.ids)
        self.true_keys = lists.keys[:held_out, : self.config.k]
        return ExactLists(lists.ids[held_out:], lists.keys[held_out:])

    def recall_of(self, ids: Ints, keys: Floats) -> Recall:
        """Return the recall of lists found for the rows held out, given in any order; exact if none were."""
        if self.true_keys is None:
            return Recall.exact(self.anchors.count)
        expected_order, order = np.argsort(self.held_out.ids), np.argsort(ids)
        if not np.array_equal(self.held_out.ids[expected_order], ids[order]):
            raise IvisError("sampled rows were not searched; are ids unique and rows deterministic?")
        return recall_at_k(keys[order], self.true_keys[expected_order], n_rows=self.anchors.count)
