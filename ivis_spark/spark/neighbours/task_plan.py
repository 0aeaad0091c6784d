"""What every task of a build of the neighbours knows, and how rows travel: packed, some in one binary."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.metrics import Floats, Ints
from ivis_spark.core.knn.regions import Regions
from ivis_spark.core.knn.sizes import row_bytes
from ivis_spark.core.threads import blas_threads

BLOCK_BYTES = 128 << 10
RECORDS_PER_BATCH = 256  # of Arrow, so that a batch of full blocks stays at 32 MB
_BUFFER_BYTES = 32 << 20
PRIMARY, QUERY = np.uint8(1), np.uint8(2)  # what a row is in a block: at home in its region; one whose list is wanted
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Plan:
    """What every task of a build needs to know; broadcast once. Its size grows with regions, not with rows.

    Attributes:
        config: The section's configuration.
        regions: Regions.
        dims: Features of a row.
        random_state: Seed.
        backend: Index library.
        folder: URI of the stage.
        margin: Boundary margin up to which a row is copied to another region.
        target: Recall to reach within a region.
        region_tasks: int32, shape (n_regions,): number of the task that searches each region.
        held_out: int64 (m,): ids of the rows that measure the recall.
    """

    config: NeighboursConfig
    regions: Regions
    dims: int
    random_state: int
    backend: str
    folder: str
    margin: float
    target: float
    region_tasks: npt.NDArray[np.int32]
    held_out: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


def query_flags(batch: pa.RecordBatch) -> Flags:
    """Return which rows of a batch are query rows, bool (n,): by the column `query`, or all without it."""
    if "query" not in batch.schema.names:
        return np.ones(batch.num_rows, bool)
    return np.asarray(batch.column("query").to_numpy(zero_copy_only=False), bool)


def packed_rows(batch: pa.RecordBatch, dims: int) -> tuple[Ints, Floats]:
    """View the columns `id` and `features` of a batch as arrays: int64 (n,), float32 (n, dims)."""
    ids = batch.column("id").to_numpy(zero_copy_only=False)
    return ids.astype(np.int64, copy=False), binary_values(batch.column("features"), np.float32).reshape(-1, dims)


@contextlib.contextmanager
def task_folder(purpose: str) -> Iterator[str]:
    """Yield a folder of this task's own, removed after it.

    It stands in one of Spark's local folders, which Spark removes if the worker is killed before it can.
    """
    roots = [root for root in os.environ.get("SPARK_LOCAL_DIRS", "").split(",") if os.path.isdir(root)]
    with tempfile.TemporaryDirectory(prefix=f"ivis-spark-{purpose}-", dir=roots[0] if roots else None) as folder:
        yield folder


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread: Spark already runs one Python process a core."""
    with blas_threads(1):
        yield


def pack_rows(
    regions: Ints, ids: Ints, rows: Floats, roles: npt.NDArray[np.uint8], tasks: npt.NDArray[Any]
) -> Iterator[pa.RecordBatch]:
    """Pack rows into blocks of one region each, of some rows: ids, then rows, then roles: `PRIMARY` plus `QUERY`.

    `row_bytes` says how much that is.
    """
    order = np.argsort(regions, kind="stable")
    regions, ids, rows, roles = regions[order], ids[order], rows[order], roles[order]
    blocks = list(_runs(regions, max(1, BLOCK_BYTES // (4 * rows.shape[1]))))
    for at in range(0, len(blocks), RECORDS_PER_BATCH):
        some = blocks[at : at + RECORDS_PER_BATCH]
        names = regions[[start for start, _ in some]]
        parts = [(ids[start:stop], rows[start:stop], roles[start:stop]) for start, stop in some]
        yield pa.RecordBatch.from_pydict(
            {
                "task": pa.array(tasks[names], pa.int32()),
                "region": pa.array(names, pa.int32()),
                "block": _binary_array(parts),
            }
        )


def unpack_rows(blocks: Iterable[Any], dims: int) -> tuple[Ints, Floats, npt.NDArray[np.uint8]]:
    """Return the ids, rows and roles of some blocks, sorted by id."""
    parts = []
    for block in blocks:
        view = memoryview(block)
        count = len(view) // row_bytes(dims)
        middle = 8 * count + 4 * count * dims
        rows = np.frombuffer(view[8 * count : middle], np.float32).reshape(count, dims)
        parts.append((np.frombuffer(view[: 8 * count], np.int64), rows, np.frombuffer(view[middle:], np.uint8)))
    ids, roles = (np.concatenate([part[place] for part in parts]) for place in (0, 2))
    order = np.argsort(ids)
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    sorted_rows, at = np.empty((len(ids), dims), np.float32), 0
    for own, some, _ in parts:  # straight to their places: a region is copied once
        sorted_rows[rank[at : at + len(own)]] = some
        at += len(own)
    return ids[order], sorted_rows, roles[order]


def by_region(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, Iterator[Any]]]:
    """Group records that are sorted by region, without holding more than a batch; yields the blocks of each."""

    def records() -> Iterator[tuple[int, Any]]:
        for batch in batches:
            for region, block in zip(batch.column("region").to_pylist(), batch.column("block"), strict=True):
                yield region, block.as_buffer()

    for region, group in itertools.groupby(records(), key=lambda record: record[0]):
        yield region, (block for _, block in group)


def buffered(batches: Iterable[pa.RecordBatch], dims: int) -> Iterator[tuple[Ints, Floats, Flags]]:
    """Gather small batches into larger ones, so that blocks are full and products are large: ids, rows, query flags."""
    waiting: list[tuple[Ints, Floats, Flags]] = []
    size = 0
    for batch in batches:
        if batch.num_rows:
            waiting.append((*packed_rows(batch, dims), query_flags(batch)))
            size += batch.num_rows * (4 * dims + 8)
        if size >= _BUFFER_BYTES:
            yield _joined(waiting)
            waiting, size = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple[Ints, Floats, Flags]]) -> tuple[Ints, Floats, Flags]:
    ids, rows, query = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(rows), np.concatenate(query)


def _runs(keys: npt.NDArray[Any], longest: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of equal keys, cut at `longest`."""
    bounds = np.flatnonzero(np.diff(keys, prepend=-1, append=-2))
    for start, stop in itertools.pairwise(bounds):
        for at in range(start, stop, longest):
            yield at, min(stop, at + longest)


def _binary_array(values: Sequence[tuple[npt.NDArray[Any], ...]]) -> pa.Array:
    """Make a binary column, each value the bytes of some arrays in turn. They are copied once."""
    sizes = [sum(part.nbytes for part in value) for value in values]
    offsets = np.cumsum([0, *sizes]).astype(np.int32)
    body = b"".join(part.data for value in values for part in value)
    return pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(body)])


def binary_values(column: pa.Array, dtype: type) -> npt.NDArray[Any]:
    """View the bytes of a binary column as one flat array; values must be whole numbers of `dtype`."""
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    body = column.buffers()[2]
    if body is None or not len(column):
        return np.zeros(0, dtype)
    return np.frombuffer(body, np.uint8)[offsets[0] : offsets[-1]].view(dtype)
