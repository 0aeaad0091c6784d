"""Some rows on the driver, drawn by a hash of their ids: the draw is the same for any partitioning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ivis_spark.core.knn.metrics import Floats, Ints

_LOW = -(2**63)  # of xxhash64


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

    def part(self, start: int, stop: int) -> RowSample:
        """Return some of the rows, in order."""
        return RowSample(self.ids[start:stop], self.rows[start:stop])

    def by_id(self) -> RowSample:
        """Return the rows sorted by id."""
        order = np.argsort(self.ids)
        return RowSample(self.ids[order], self.rows[order])


def draw_rows(rows: DataFrame, size: int, *, n_rows: int, dims: int, seed: int) -> RowSample:
    """Draw rows, in the order of their hashes: any part of the draw is a draw too.

    Runs on: driver. Memory: O(size).

    Args:
        rows: Columns `id`, `features`.
        size: Rows wanted.
        n_rows: Rows there are.
        dims: Features of a row.
        seed: Seed.
    """
    share = min(1.0, (size + 4 * size**0.5 + 10) / n_rows)
    found = rows.withColumn("draw", _draw(seed)).where(below_share("draw", share)).collect()
    found.sort(key=lambda row: (row["draw"], row["id"]))
    return RowSample.of(found[:size], dims)


def drawn_rows(rows: DataFrame, share: float, *, seed: int) -> DataFrame:
    """Return about a share of the rows."""
    return rows.where(below_share(_draw(seed), share))


def below_share(draw: str | Column, share: float) -> Column:
    """Tell whether a hash is in the lowest `share` of all."""
    column = F.col(draw) if isinstance(draw, str) else draw
    return F.lit(True) if share >= 1 else column < F.lit(_LOW + int(share * 2**64))


def _draw(seed: int) -> Column:
    return F.xxhash64("id", F.lit(seed))
