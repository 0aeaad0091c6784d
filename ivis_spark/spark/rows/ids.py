"""Numbers of rows whose table has no integer ids: by a string or any other key, or by their content.

Rows are numbered 0, 1, 2, ... in the order of a 64-bit hash of what identifies them, without sorting the table as one:

* The hash's first bits assign the rows to groups of a bounded size, in order. A group is sorted in one task, and a
row's
  number is its rank in the group plus the rows of all groups before. So numbers are unique despite collisions, for any
  number of rows, and depend on the content of the table alone: not on its files, partitions or order.
* Rows with one hash can be more than a group should hold (three quarters of some tables are copies). Those are equal,
  so it does not matter which of them gets which of their numbers: they come after all others, and are assigned to
  separate groups by where they stand in a file of the build, which no rerun of a task changes.
* Different rows of one hash (expected once in 2^64 / n^2 tables of n rows) are distinguished by their features and
label.

What the driver holds is two numbers a group, and groups are of 32 MiB at least on average.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

HASH, PLACE, GROUP = "hash", "place", "group"
KEY_BYTES = 32  # of a key that is counted, with its count, in Spark's rows
_GROUP_BYTES = 128 << 20
_SIGNED_HASH_BITS = 64


def content_hash(columns: list[Column]) -> Column:
    """Return 64 bits of the content of columns."""
    return F.xxhash64(*columns)


def hashable(kind: T.DataType) -> bool:
    """Return whether Spark hashes values of a type; it does not hash maps."""
    if isinstance(kind, T.StructType):
        return all(hashable(field.dataType) for field in kind.fields)
    if isinstance(kind, T.ArrayType):
        return hashable(kind.elementType)
    return not isinstance(kind, T.MapType)


@dataclass(frozen=True)
class Groups:
    """Which numbers the rows of each group get. Small: it is sent to every task.

    Attributes:
        first: int64, shape (g,): the first number of each group.
        rows: int64, shape (g,): how many rows each has.
    """

    first: NDArray[np.int64]
    rows: NDArray[np.int64]


def deal(table: DataFrame, n_rows: int, *, width: int, n_bytes: int) -> tuple[DataFrame, Groups]:
    """Assign the rows of a table to groups, each a range of numbers.

    Runs on: driver; two jobs that read `hash` and `place` alone.

    Args:
        table: `hash` long, `place` long, and any other columns.
        n_rows: Its rows.
        width: Features of a row; they alone decide of how many copies a group is made, as they are the same however
            the table was cut.
        n_bytes: Bytes of all rows, as far as known; with `n_rows` they decide how many groups there are by hash.

    Returns:
        The table with `group` int, and the groups.
    """
    most = max(1, _GROUP_BYTES // (4 * width))
    bits = math.ceil(math.log2(max(n_rows / most, n_bytes / _GROUP_BYTES, 1)))
    buckets = 1 << bits
    shift = _SIGNED_HASH_BITS - bits
    bucket = F.shiftrightunsigned(HASH, shift) if bits else F.lit(0)
    table = table.withColumn(GROUP, bucket.cast("int"))
    many = table.groupBy(HASH).count().where(F.col("count") > most).orderBy(HASH).collect()
    parts = np.array([-(-row["count"] // most) for row in many], np.int64)
    starts = buckets + np.concatenate([[0], np.cumsum(parts)]).astype(np.int64)
    if many:
        spread = [(row[HASH], int(start), int(part)) for row, start, part in zip(many, starts, parts, strict=False)]
        schema = f"{HASH} long, start long, parts long"
        heavy = F.broadcast(table.sparkSession.createDataFrame(spread, schema))
        own = F.col("start") + F.pmod(F.xxhash64(PLACE), F.col("parts"))
        group = F.coalesce(own, F.col(GROUP)).cast("int")
        table = table.join(heavy, HASH, "left").withColumn(GROUP, group).drop("start", "parts")
    rows = np.zeros(int(starts[-1]), np.int64)
    for row in table.groupBy(GROUP).count().collect():
        rows[row[GROUP]] = row["count"]
    return table, Groups(np.cumsum(rows) - rows, rows)


def in_order() -> Column:
    """Return what rows of a group are sorted by first: the hash as a number without sign."""
    return F.col(HASH).bitwiseXOR(F.lit(-(2**63)))


class Counter:
    """Numbers the rows of a task, which come sorted by group. Runs on: executor."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._group, self._seen = -1, 0

    def numbers(self, column: pa.Array) -> pa.Array:
        """Return the numbers of a batch, given its column `group`.

        Raises:
            RuntimeError: if a group has more rows than were counted, so that numbers would repeat.
        """
        group = column.to_numpy(zero_copy_only=False).astype(np.int64)
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1, [len(group)]]).astype(np.int64)
        numbers = np.empty(len(group), np.int64)
        for start, stop in itertools.pairwise(bounds.tolist()):
            if start == stop:
                continue
            if group[start] != self._group:
                self._group, self._seen = int(group[start]), 0
            if self._seen + stop - start > self._groups.rows[self._group]:
                raise RuntimeError(f"group {self._group} has more rows than were counted: its files changed meanwhile")
            numbers[start:stop] = self._groups.first[self._group] + self._seen + np.arange(stop - start)
            self._seen += stop - start
        return pa.array(numbers)


def key_text(values: Iterator[object] | list[object]) -> str:
    """Return how a message shows the id of a row: one value, or several in parentheses."""
    shown = [repr(value) if isinstance(value, str) else str(value) for value in values]
    return shown[0] if len(shown) == 1 else f"({', '.join(shown)})"
