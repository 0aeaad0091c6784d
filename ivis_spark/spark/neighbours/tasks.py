"""Task bodies that pack rows into cells and search each cell: generators over Arrow batches, one cell at a time.

Rows travel packed: one record carries up to about `BLOCK_BYTES` of rows for one cell as plain little-endian arrays in
one binary, so that neither the JVM nor Arrow sees single numbers or rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark import Broadcast, TaskContext

from ivis_spark import storage
from ivis_spark.core.knn.index import INDEXES, make_index
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.search import cell_seed, search_cell, search_own
from ivis_spark.spark.neighbours.merge import bucket_blocks, join
from ivis_spark.spark.neighbours.task_plan import (
    BLOCK_BYTES,
    BOTH,
    DATA_ONLY,
    QUERY_ONLY,
    RECORDS_PER_BATCH,
    Plan,
    binary_array,
    buffered,
    grouped,
    one_blas_thread,
    runs,
    task_folder,
)

CELL_SCHEMA = "task int, cell int, role byte, block binary"
_QUERY_ROWS = 4096


def assign_rows(batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan]) -> Iterator[pa.RecordBatch]:
    """Pack each row into blocks for the cells it is searched in. Runs on: executor. Memory: O(buffer x overlap)."""
    p = plan.value
    asymmetric = Space(p.config.metric).asymmetric
    with one_blas_thread():
        for ids, rows in buffered(batches, p.dims):
            yield from _cell_blocks(p, ids, rows, DATA_ONLY if asymmetric else BOTH)
            if asymmetric:
                yield from _cell_blocks(p, ids, rows, QUERY_ONLY)


def _cell_blocks(p: Plan, ids: Ints, rows: Floats, role: int) -> Iterator[pa.RecordBatch]:
    asking = role == QUERY_ONLY
    taken, cells, home = p.router.assign(
        rows,
        ids,
        overlap=1 if asking and p.ask_home else p.overlap,
        cut=p.cut,
        as_queries=asking,
        cell_rows=p.home_rows if asking else None,  # what holds a row as data holds more than k, by the router's limits
        least=p.config.k + 1,
    )
    order = np.argsort(cells, kind="stable")
    taken, cells, home = taken[order], cells[order], home[order]
    names: list[int] = []
    blocks: list[tuple[npt.NDArray[Any], ...]] = []
    for start, stop in runs(cells, max(1, BLOCK_BYTES // (4 * p.dims))):
        part = taken[start:stop]
        names.append(int(cells[start]))
        blocks.append((ids[part], rows[part], home[start:stop]))
        if len(names) == RECORDS_PER_BATCH:
            yield _cell_batch(p, names, role, blocks)
            names, blocks = [], []
    if names:
        yield _cell_batch(p, names, role, blocks)


def _cell_batch(p: Plan, cells: list[int], role: int, blocks: list[tuple[npt.NDArray[Any], ...]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "task": pa.array(p.cell_tasks[cells], pa.int32()),
            "cell": pa.array(cells, pa.int32()),
            "role": pa.array([role] * len(cells), pa.int8()),
            "block": binary_array(blocks),
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
    records: list[dict[str, Any]] = []
    with task_folder("index") as folder, one_blas_thread():
        for cell, blocks in grouped(batches, "cell"):
            yield from _search_one(p, cell, blocks, (folder, attempt), records)
        if records:
            name = f"cells-{partition:06d}-{attempt}.json"
            path = os.path.join(folder, name)
            with open(path, "w", encoding="utf-8") as file:
                json.dump({"partition": partition, "cells": records}, file)
            storage.put_file(path, storage.join(p.folder, name), parents=False)


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
        asks = home if p.ask_home else np.ones_like(home)
        for own, found, keys in _joined_lists(search_own(index, ids, rows, asks, config.k)):
            yield from bucket_blocks(p, own, found, keys)
    for block in later:
        asking, _, queries = _unpack_rows(block, p.dims)
        found, keys = search_cell(index, ids, queries, asking, config.k)
        yield from bucket_blocks(p, asking, found, keys)


def _joined_lists(parts: Iterator[tuple[Ints, Ints, Floats]]) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Gather lists to some thousand rows, so that the blocks for the buckets are full."""
    waiting: list[tuple[Ints, Ints, Floats]] = []
    for part in parts:
        waiting.append(part)
        if sum(len(ids) for ids, _, _ in waiting) >= _QUERY_ROWS:
            yield join(waiting)
            waiting = []
    if waiting:
        yield join(waiting)


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
    """Copy a cell's index to the run folder; if it is cheap, one of the rows at home alone: a query meets them once."""
    ids, rows, home = data
    folder, attempt = where
    if INDEXES[p.backend].keeps_home:
        ids = ids[home]
        index = make_index(p.backend, rows[home], p.config.metric, n_trees=1, search_k=-1, seed=0)
    files = {}
    stem = f"cell-{cell:08d}-{attempt}"
    path = os.path.join(folder, stem)
    with open(path + ".ids.npy", "wb") as file:
        np.save(file, ids)
    index.save(path + index.suffix)
    for kind, suffix in (("ids", ".ids.npy"), ("vectors", index.suffix)):
        kept = storage.put_file(path + suffix, storage.join(p.folder, stem + suffix), parents=False, move=True)
        files[kind] = {"path": stem + suffix, "bytes": kept["bytes"], "sha256": kept["sha256"]}
    return {"cell": cell, "rows": len(ids), "home_rows": int(home.sum()), "searched_rows": len(home), "files": files}


def _unpack_rows(block: Any, dims: int) -> tuple[Ints, npt.NDArray[np.bool_], Floats]:
    view = memoryview(block)
    count = len(view) // (9 + 4 * dims)
    ids = np.frombuffer(view[: 8 * count], np.int64)
    middle = 8 * count + 4 * count * dims
    rows = np.frombuffer(view[8 * count : middle], np.float32).reshape(count, dims)
    return ids, np.frombuffer(view[middle:], np.bool_), rows
