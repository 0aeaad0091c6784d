"""Task bodies of the neighbours stage: generators over Arrow batches, each holding one cell or one bucket at a time.

Rows travel packed: one record carries up to about `BLOCK_BYTES` of rows for one cell (or of lists for one bucket) as
plain little-endian arrays in one binary, so that neither the JVM nor Arrow sees single numbers or rows.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import Broadcast, TaskContext

from ivis_spark import storage
from ivis_spark.config import NeighboursConfig
from ivis_spark.core.index import make_index
from ivis_spark.core.neighbours import (
    NO_ID,
    cell_seed,
    exact_neighbours,
    merge_top_k,
    rank_rows,
    search_cell,
    search_own,
)
from ivis_spark.core.overlap import count_ranks
from ivis_spark.core.router import Router, hash_ids
from ivis_spark.core.spaces import Floats, Ints, Space

BLOCK_BYTES = 128 << 10
RECORDS_PER_BATCH = 256  # of Arrow, so that a batch of full blocks stays at 32 MB
_BUFFER_BYTES = 32 << 20
_QUERY_ROWS = 4096

BOTH, DATA_ONLY, QUERY_ONLY = 0, 1, 2  # sorted: a cell's rows to search arrive before those that only ask

CELL_SCHEMA = "task int, cell int, role byte, block binary"
BUCKET_SCHEMA = "task int, bucket int, block binary"
WRITTEN_SCHEMA = "name string, rows long"
TABLE = pa.schema(
    [
        ("id", pa.int64()),
        ("neighbour_ids", pa.list_(pa.field("element", pa.int64()))),
        ("distances", pa.list_(pa.field("element", pa.float32()))),
    ]
)
SURVEY_SCHEMA = "counts binary, ids binary, keys binary, cells binary, bins binary"


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
        cell_tasks: int32, shape (n_cells,): number of the task that searches each cell.
        bucket_tasks: int32, shape (n_buckets,): the same for the merge.
        low_id: Smallest id, if all ids above it fit 32 bits; else None.
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
    cell_tasks: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(1, np.int32))
    bucket_tasks: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(1, np.int32))
    low_id: int | None = None
    asked_ids: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    asked_rows: Floats = field(default_factory=lambda: np.zeros((0, 1), np.float32))

    @property
    def truth_width(self) -> int:
        """Exact neighbours kept of an asked row: one more than k tells whether the last ones tie."""
        return self.config.k + 1


def read_rows(batch: pa.RecordBatch, dims: int) -> tuple[Ints, Floats]:
    """View the columns `id` and `features` of a batch as arrays: int64 (n,), float32 (n, dims)."""
    ids = batch.column("id").to_numpy(zero_copy_only=False)
    return ids.astype(np.int64, copy=False), _binary_values(batch.column("features"), np.float32).reshape(-1, dims)


def survey_rows(batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan]) -> Iterator[pa.RecordBatch]:
    """Count rows by cell, rank and depth, and find the exact neighbours of the asked rows in this partition.

    Runs on: executor. Memory: O(batch + asked x k).
    """
    p, k = plan.value, plan.value.truth_width
    space, merged = Space(p.config.metric), ExactLists.empty(len(p.asked_ids), k)
    counts = np.zeros((2 if space.asymmetric else 1, 0), dtype=np.int64)
    total: npt.NDArray[Any] | None = None
    with one_blas_thread():
        for ids, rows in _buffered(batches, p.dims):
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


def assign_rows(batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan]) -> Iterator[pa.RecordBatch]:
    """Pack each row into blocks for the cells it is searched in. Runs on: executor. Memory: O(buffer x overlap)."""
    p = plan.value
    asymmetric = Space(p.config.metric).asymmetric
    with one_blas_thread():
        for ids, rows in _buffered(batches, p.dims):
            yield from _cell_blocks(p, ids, rows, DATA_ONLY if asymmetric else BOTH)
            if asymmetric:
                yield from _cell_blocks(p, ids, rows, QUERY_ONLY)


def _cell_blocks(p: Plan, ids: Ints, rows: Floats, role: int) -> Iterator[pa.RecordBatch]:
    taken, cells, home = p.router.assign(rows, ids, overlap=p.overlap, cut=p.cut, as_queries=role == QUERY_ONLY)
    order = np.argsort(cells, kind="stable")
    taken, cells, home = taken[order], cells[order], home[order]
    names, blocks = [], []
    for start, stop in _runs(cells, max(1, BLOCK_BYTES // (4 * p.dims))):
        part = taken[start:stop]
        names.append(int(cells[start]))
        blocks.append(ids[part].tobytes() + rows[part].tobytes() + home[start:stop].tobytes())
        if len(names) == RECORDS_PER_BATCH:
            yield _cell_batch(p, names, role, blocks)
            names, blocks = [], []
    if names:
        yield _cell_batch(p, names, role, blocks)


def _cell_batch(p: Plan, cells: list[int], role: int, blocks: list[bytes]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "task": pa.array(p.cell_tasks[cells], pa.int32()),
            "cell": pa.array(cells, pa.int32()),
            "role": pa.array([role] * len(cells), pa.int8()),
            "block": pa.array(blocks, pa.binary()),
        }
    )


def search_cells(batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan]) -> Iterator[pa.RecordBatch]:
    """Build the index of each cell, keep it, and search the cell's rows in it.

    Runs on: executor. Batches are sorted by cell and role. Memory: O(cell). Index files are made in a folder of this
    task's own and then copied; a repeated or speculative attempt writes files of its own, and the driver keeps one.
    """
    p, context = plan.value, TaskContext.get()
    attempt = context.taskAttemptId() if context is not None else 0
    partition = context.partitionId() if context is not None else 0
    temporary = tempfile.mkdtemp(prefix="ivis-spark-index-")
    records: list[dict[str, Any]] = []
    try:
        with one_blas_thread():
            for cell, blocks in _grouped(batches, "cell"):
                yield from _search_one(p, cell, blocks, (temporary, attempt), records)
            if records:
                name = f"cells-{partition:06d}-{attempt}.json"
                path = os.path.join(temporary, name)
                with open(path, "w", encoding="utf-8") as file:
                    json.dump({"partition": partition, "cells": records}, file)
                storage.put_file(path, storage.join(p.folder, name))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _search_one(
    p: Plan,
    cell: int,
    blocks: Iterator[tuple[int, bytes]],
    where: tuple[str, int],
    records: list[dict[str, Any]],
) -> Iterator[pa.RecordBatch]:
    ids, home, rows, role, later = _collect_cell(blocks, p.dims)
    if not len(ids):
        return  # rows that only ask, routed to a cell without data
    config = p.config
    seed = cell_seed(p.random_state, cell)
    index = make_index(p.backend, rows, config.metric, n_trees=config.n_trees, search_k=config.search_k, seed=seed)
    records.append(_keep_index(p, cell, (ids, rows, home), index, where))
    if role == BOTH:
        for own, found, keys in _joined_lists(search_own(index, ids, config.k)):
            yield from _bucket_blocks(p, own, found, keys)
    for block in later:
        asking, _, queries = _unpack_rows(block, p.dims)
        found, keys = search_cell(index, ids, queries, asking, config.k)
        yield from _bucket_blocks(p, asking, found, keys)


def _joined_lists(parts: Iterator[tuple[Ints, Ints, Floats]]) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Gather lists to some thousand rows, so that the blocks for the buckets are full."""
    waiting: list[tuple[Ints, Ints, Floats]] = []
    for part in parts:
        waiting.append(part)
        if sum(len(ids) for ids, _, _ in waiting) >= _QUERY_ROWS:
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _join(parts: list[tuple[Ints, Ints, Floats]]) -> tuple[Ints, Ints, Floats]:
    rows, ids, keys = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(ids), np.concatenate(keys)


def _collect_cell(
    blocks: Iterator[tuple[int, bytes]], dims: int
) -> tuple[Ints, npt.NDArray[np.bool_], Floats, int, Iterator[bytes]]:
    """Return a cell's data rows sorted by id, their role, and the blocks that follow and only ask."""
    parts, role = [], BOTH
    later: Iterator[bytes] = iter(())
    for role_here, block in blocks:
        if role_here == QUERY_ONLY:
            rest = (body for _, body in blocks)
            later = _chain(block, rest)
            role = DATA_ONLY
            break
        role = role_here
        parts.append(_unpack_rows(block, dims))
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, bool), np.zeros((0, dims), np.float32), role, later
    ids = np.concatenate([part[0] for part in parts])
    order = np.argsort(ids)
    home = np.concatenate([part[1] for part in parts])[order]
    return ids[order], home, np.concatenate([part[2] for part in parts])[order], role, later


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _keep_index(
    p: Plan, cell: int, data: tuple[Ints, Floats, npt.NDArray[np.bool_]], index: Any, where: tuple[str, int]
) -> dict[str, Any]:
    """Copy a cell's index to the run folder; for exact only the rows at home, which a query meets once."""
    ids, rows, home = data
    folder, attempt = where
    if p.backend == "exact":
        ids = ids[home]
        index = make_index("exact", rows[home], p.config.metric, n_trees=1, search_k=-1, seed=0)
    files = {}
    stem = f"cell-{cell:08d}-{attempt}"
    path = os.path.join(folder, stem)
    with open(path + ".ids.npy", "wb") as file:
        np.save(file, ids)
    index.save(path + index.suffix)
    for kind, suffix in (("ids", ".ids.npy"), ("vectors", index.suffix)):
        kept = storage.put_file(path + suffix, storage.join(p.folder, stem + suffix))
        files[kind] = {"path": stem + suffix, "bytes": kept["bytes"], "sha256": kept["sha256"]}
        os.remove(path + suffix)
    return {"cell": cell, "rows": len(ids), "searched_rows": len(home), "files": files}


def _bucket_blocks(p: Plan, ids: Ints, found: Ints, keys: Floats) -> Iterator[pa.RecordBatch]:
    """Pack lists of neighbours for the buckets that merge them."""
    buckets = (hash_ids(ids, 1) % np.uint64(len(p.bucket_tasks))).astype(np.int64)
    order = np.argsort(buckets, kind="stable")
    ids, buckets, keys = ids[order], buckets[order], keys[order]
    packed = _pack_ids(found[order], p.low_id)
    names, blocks = [], []
    for start, stop in _runs(buckets, max(1, BLOCK_BYTES // (12 * p.config.k))):
        names.append(int(buckets[start]))
        blocks.append(ids[start:stop].tobytes() + packed[start:stop].tobytes() + keys[start:stop].tobytes())
    for at in range(0, len(names), RECORDS_PER_BATCH):
        part = slice(at, at + RECORDS_PER_BATCH)
        yield pa.RecordBatch.from_pydict(
            {
                "task": pa.array(p.bucket_tasks[names[part]], pa.int32()),
                "bucket": pa.array(names[part], pa.int32()),
                "block": pa.array(blocks[part], pa.binary()),
            }
        )


def write_table(batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan], folder: str) -> Iterator[pa.RecordBatch]:
    """Merge the lists of each row and write them to a Parquet file of this attempt; yield its name and rows.

    Runs on: executor. Batches are sorted by bucket. Memory: O(bucket). Python writes the file because handing lists
    of numbers back to the JVM costs several times the search. The driver takes only the files it is told of.
    """
    context = TaskContext.get()
    attempt = context.taskAttemptId() if context is not None else 0
    partition = context.partitionId() if context is not None else 0
    name = f"part-{partition:05d}-{attempt}.parquet"
    temporary = tempfile.mkdtemp(prefix="ivis-spark-merge-")
    path, written = os.path.join(temporary, name), 0
    try:
        with pq.ParquetWriter(path, TABLE, compression="snappy", use_dictionary=False) as writer:
            for table in _merged_tables(batches, plan.value):
                written += table.num_rows
                writer.write_table(table)
        if written:
            storage.put_file(path, storage.join(folder, name))
            yield pa.RecordBatch.from_pydict({"name": pa.array([name]), "rows": pa.array([written], pa.int64())})
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _merged_tables(batches: Iterable[pa.RecordBatch], p: Plan) -> Iterator[pa.Table]:
    k, space = p.config.k, Space(p.config.metric)
    id_bytes = 8 if p.low_id is None else 4
    for _, blocks in _grouped(batches, "bucket"):
        parts = [_unpack_lists(block, k, id_bytes, p.low_id) for _, block in blocks]
        joined = _join(parts)
        del parts
        rows, ids, keys = merge_top_k(*joined, k)
        yield _table(rows, ids, space.distances(keys))


def _table(rows: Ints, ids: Ints, distances: Floats) -> pa.Table:
    """Make a piece of the stage's table; a row that has fewer than k neighbours gets a shorter list."""
    real = ids != NO_ID
    offsets = np.concatenate([[0], np.cumsum(real.sum(axis=1))]).astype(np.int32)
    flat = (ids.reshape(-1), distances.reshape(-1)) if real.all() else (ids[real], distances[real])
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(values)).cast(field.type)
        for values, field in zip(flat, list(TABLE)[1:], strict=True)
    ]
    return pa.Table.from_arrays([pa.array(rows, pa.int64()), *lists], schema=TABLE)


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


def _grouped(batches: Iterable[pa.RecordBatch], key: str) -> Iterator[tuple[int, Iterator[tuple[int, bytes]]]]:
    """Group sorted records by `key`, without holding more than a batch; yields (role, block) of each group."""

    def records() -> Iterator[tuple[int, int, bytes]]:
        for batch in batches:
            names = batch.column(key).to_pylist()
            roles = batch.column("role").to_pylist() if "role" in batch.schema.names else [BOTH] * len(names)
            for name, role, block in zip(names, roles, batch.column("block"), strict=True):
                yield name, role, block.as_buffer()

    for name, group in itertools.groupby(records(), key=lambda record: record[0]):
        yield name, ((role, block) for _, role, block in group)


def _buffered(batches: Iterable[pa.RecordBatch], dims: int) -> Iterator[tuple[Ints, Floats]]:
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


def _runs(keys: npt.NDArray[Any], longest: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of equal keys, cut at `longest`."""
    bounds = np.flatnonzero(np.diff(keys, prepend=-1, append=-2))
    for start, stop in itertools.pairwise(bounds):
        for at in range(start, stop, longest):
            yield at, min(stop, at + longest)


def _binary_values(column: pa.Array, dtype: type) -> npt.NDArray[Any]:
    """View the bytes of a binary column as one flat array; values must be whole numbers of `dtype`."""
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    body = column.buffers()[2]
    if body is None or not len(column):
        return np.zeros(0, dtype)
    return np.frombuffer(body, np.uint8)[offsets[0] : offsets[-1]].view(dtype)


def _unpack_rows(block: Any, dims: int) -> tuple[Ints, npt.NDArray[np.bool_], Floats]:
    view = memoryview(block)
    count = len(view) // (9 + 4 * dims)
    ids = np.frombuffer(view[: 8 * count], np.int64)
    middle = 8 * count + 4 * count * dims
    rows = np.frombuffer(view[8 * count : middle], np.float32).reshape(count, dims)
    return ids, np.frombuffer(view[middle:], np.bool_), rows


def _unpack_lists(block: Any, k: int, id_bytes: int, low: int | None) -> tuple[Ints, Ints, Floats]:
    view = memoryview(block)
    count = len(view) // (8 + (id_bytes + 4) * k)
    middle = 8 * count + id_bytes * k * count
    packed = np.frombuffer(view[8 * count : middle], np.int64 if low is None else np.uint32).reshape(count, k)
    keys = np.frombuffer(view[middle:], np.float32).reshape(count, k)
    return np.frombuffer(view[: 8 * count], np.int64), _unpack_ids(packed, low), keys


def _pack_ids(ids: Ints, low: int | None) -> npt.NDArray[Any]:
    """Return ids as uint32 above `low` where they fit: half the bytes of the largest shuffle."""
    if low is None:
        return ids
    return np.where(ids == NO_ID, 2**32 - 1, ids - low).astype(np.uint32)


def _unpack_ids(packed: npt.NDArray[Any], low: int | None) -> Ints:
    if low is None:
        return packed
    ids = packed.astype(np.int64) + low
    ids[packed == 2**32 - 1] = NO_ID
    return ids
