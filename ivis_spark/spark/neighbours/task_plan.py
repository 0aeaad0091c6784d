"""What every task of a build of the neighbours knows, and how a task reads its rows."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.metrics import Floats, Ints
from ivis_spark.core.knn.quantiser import Router

BLOCK_BYTES = 128 << 10
RECORDS_PER_BATCH = 256  # of Arrow, so that a batch of full blocks stays at 32 MB
_BUFFER_BYTES = 32 << 20

BOTH, DATA_ONLY, QUERY_ONLY = 0, 1, 2  # sorted: a cell's rows to search arrive before those that only ask


@dataclass(frozen=True, eq=False)
class Plan:
    """What every task of a build needs to know; broadcast once. Its size grows with cells, not with rows.

    Attributes:
        config: The section's configuration.
        router: Cells.
        dims: Features of a row.
        random_state: Seed.
        backend: Index of a cell.
        folder: URI of the index files.
        overlap: Most cells of a row; cut: depth behind the border up to which a further cell is taken.
        ask_home: Whether a row asks in its nearest cell alone.
        cell_tasks: int32, shape (n_cells,): number of the task that searches each cell.
        bucket_tasks: int32, shape (n_buckets,): the same for the merge.
        low_id: Smallest id, if all ids above it fit 32 bits; else None.
        home_rows: int64, shape (n_cells,): rows that call each cell their nearest.
        asked_ids, asked_rows: rows whose exact neighbours measure the recall: int64 (q,), float32 (q, d).
    """

    config: NeighboursConfig
    router: Router
    dims: int
    random_state: int
    backend: str = "exact"
    folder: str = ""
    overlap: int = 1
    cut: float = 0.0
    ask_home: bool = False
    cell_tasks: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(1, np.int32))
    bucket_tasks: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(1, np.int32))
    low_id: int | None = None
    home_rows: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    asked_ids: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    asked_rows: Floats = field(default_factory=lambda: np.zeros((0, 1), np.float32))

    @property
    def truth_width(self) -> int:
        """Exact neighbours kept of an asked row: one more than k tells whether the last ones tie."""
        return self.config.k + 1


def read_rows(batch: pa.RecordBatch, dims: int) -> tuple[Ints, Floats]:
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
    try:
        import threadpoolctl
    except ImportError:
        yield
        return
    with threadpoolctl.threadpool_limits(1):
        yield


def grouped(batches: Iterable[pa.RecordBatch], key: str) -> Iterator[tuple[int, Iterator[tuple[int, bytes]]]]:
    """Group sorted records by `key`, without holding more than a batch; yields (role, block) of each group."""

    def records() -> Iterator[tuple[int, int, bytes]]:
        for batch in batches:
            names = batch.column(key).to_pylist()
            roles = batch.column("role").to_pylist() if "role" in batch.schema.names else [BOTH] * len(names)
            for name, role, block in zip(names, roles, batch.column("block"), strict=True):
                yield name, role, block.as_buffer()

    for name, group in itertools.groupby(records(), key=lambda record: record[0]):
        yield name, ((role, block) for _, role, block in group)


def buffered(batches: Iterable[pa.RecordBatch], dims: int) -> Iterator[tuple[Ints, Floats]]:
    """Gather small batches into larger ones, so that blocks are full and products are large."""
    waiting: list[tuple[Ints, Floats]] = []
    size = 0
    for batch in batches:
        if batch.num_rows:
            waiting.append(read_rows(batch, dims))
            size += batch.num_rows * (4 * dims + 8)
        if size >= _BUFFER_BYTES:
            yield _joined(waiting)
            waiting, size = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple[Ints, Floats]]) -> tuple[Ints, Floats]:
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def runs(keys: npt.NDArray[Any], longest: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of equal keys, cut at `longest`."""
    bounds = np.flatnonzero(np.diff(keys, prepend=-1, append=-2))
    for start, stop in itertools.pairwise(bounds):
        for at in range(start, stop, longest):
            yield at, min(stop, at + longest)


def binary_array(values: list[tuple[npt.NDArray[Any], ...]]) -> pa.Array:
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
