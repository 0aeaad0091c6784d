"""Task bodies of the search: rows to their regions, and each region searched and written, one at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import Broadcast, TaskContext

from ivis_spark import storage
from ivis_spark.core.knn.merge import NO_ID
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.search import CALIBRATION_ROWS, Searched, region_seed, search_region
from ivis_spark.spark.neighbours.task_plan import (
    PRIMARY,
    QUERY,
    Plan,
    buffered,
    by_region,
    one_blas_thread,
    pack_rows,
    task_folder,
    unpack_rows,
)

REGION_SCHEMA = "task int, region int, block binary"
WRITTEN_SCHEMA = "name string, digest string, rows long, short long, held_out binary, keys binary, regions string"
TABLE = pa.schema(
    [
        ("id", pa.int64()),
        ("neighbour_ids", pa.list_(pa.field("element", pa.int64()))),
        ("distances", pa.list_(pa.field("element", pa.float32()))),
    ]
)
_LEAST_CALIBRATION_ROWS = 64
_WRITTEN_VALUES = 4 << 20  # of a row group


def assign_rows(batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan]) -> Iterator[pa.RecordBatch]:
    """Pack each row into blocks for the regions it lies in. Runs on: executor. Memory: O(buffer x regions of a row)."""
    p = plan.value
    with one_blas_thread():
        for ids, rows, query in buffered(batches, p.dims):
            taken, regions, primary = p.regions.assign(rows, ids, width=p.config.max_regions, margin=p.margin)
            roles = primary * PRIMARY + query[taken] * QUERY
            yield from pack_rows(regions, ids[taken], rows[taken], roles, p.region_tasks)


def search_regions(batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan]) -> Iterator[pa.RecordBatch]:
    """Search the query rows of each region, write their lists and the index; yield a record of it.

    The record has the name and digest of the Parquet file of this attempt, its rows, how many of them have fewer than k
    neighbours, the ids int64 (m,) and keys float32 (m, k) of the rows that measure the recall, and as JSON the files of
    the indexes.

    Runs on: executor. Batches are sorted by region. Memory: O(region). Python writes the files because handing lists of
    numbers back to the JVM costs several times the search. A repeated or speculative attempt writes files of its own,
    and the driver uses only those that are reported to it.
    """
    p, context = plan.value, TaskContext.get()
    attempt = 0 if context is None else context.taskAttemptId()
    name = f"part-{0 if context is None else context.partitionId():05d}-{attempt}.parquet"
    regions: list[dict[str, Any]] = []
    measured: list[tuple[Ints, Floats]] = []
    rows = short = 0
    with task_folder("neighbours") as folder, one_blas_thread():
        path = os.path.join(folder, name)
        with pq.ParquetWriter(path, TABLE, compression="snappy", use_dictionary=False) as writer:
            for region, blocks in by_region(batches):
                searched, record = _search_one(
                    p, region, blocks, os.path.join(folder, f"region-{region:06d}-{attempt}")
                )
                regions.append(record)
                rows += len(searched.ids)
                short += int((searched.neighbour_ids == NO_ID).any(axis=1).sum())
                some = np.isin(searched.ids, p.held_out)
                measured.append((searched.ids[some], searched.keys[some]))
                for table in _tables(searched, Space(p.config.metric)):
                    writer.write_table(table)
        if not regions:
            return
        digest = storage.put_file(path, storage.join(p.folder, "attempts", name), parents=False, move=True)
    ids, keys = (b"".join(part[place].tobytes() for part in measured) for place in (0, 1))
    row = {"name": name, "digest": json.dumps(digest), "rows": rows, "short": short}
    row |= {"held_out": ids, "keys": keys, "regions": json.dumps(regions)}
    yield pa.RecordBatch.from_pylist([row])


def _search_one(p: Plan, region: int, blocks: Iterator[Any], path: str) -> tuple[Searched, dict[str, Any]]:
    ids, rows, roles = unpack_rows(blocks, p.dims)
    primary = (roles & PRIMARY) > 0
    searched = search_region(
        rows,
        ids,
        primary,
        p.config,
        backend=p.backend,
        target=p.target,
        held_out=p.held_out,
        seed=region_seed(p.random_state, region),
        calibration_rows=max(_LEAST_CALIBRATION_ROWS, CALIBRATION_ROWS // len(p.regions)),
        query=(roles & QUERY) > 0,
    )
    files = {}
    for suffix in searched.index.save(path):
        stored = os.path.basename(path) + suffix
        target = storage.join(p.folder, "index", stored)
        files[suffix] = {**storage.put_file(path + suffix, target, parents=False, move=True), "path": stored}
    effort = searched.effort if np.isfinite(searched.effort) else None
    return searched, {"region": region, "rows": len(ids), "home": int(primary.sum()), "effort": effort, "files": files}


def _tables(searched: Searched, space: Space) -> Iterator[pa.Table]:
    """Yield the lists as pieces of the stage's table; a row that has fewer than k neighbours gets a shorter list."""
    step = max(1, _WRITTEN_VALUES // searched.keys.shape[1])
    for at in range(0, len(searched.ids), step):
        part = slice(at, at + step)
        real = searched.neighbour_ids[part] != NO_ID
        offsets = np.concatenate([[0], np.cumsum(real.sum(axis=1))]).astype(np.int32)
        flat = searched.neighbour_ids[part][real], space.distances(searched.keys[part][real])
        lists = [
            pa.ListArray.from_arrays(offsets, pa.array(values)).cast(field.type)
            for values, field in zip(flat, list(TABLE)[1:], strict=True)
        ]
        yield pa.Table.from_arrays([pa.array(searched.ids[part], pa.int64()), *lists], schema=TABLE)
