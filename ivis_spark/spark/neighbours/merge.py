"""Task bodies that merge the lists of each row into the stage's table.

Lists travel packed, as rows do (see `spark.cells`): one record holds the lists of many rows of one bucket.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import Broadcast, TaskContext

from ivis_spark import storage
from ivis_spark.core.knn.merge import NO_ID, merge_top_k
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.quantiser import hash_ids
from ivis_spark.spark.neighbours.task_plan import (
    BLOCK_BYTES,
    RECORDS_PER_BATCH,
    Plan,
    binary_array,
    grouped,
    runs,
    task_folder,
)

BUCKET_SCHEMA = "task int, bucket int, block binary"
WRITTEN_SCHEMA = "name string, rows long, short long, asked binary, keys binary"
TABLE = pa.schema(
    [
        ("id", pa.int64()),
        ("neighbour_ids", pa.list_(pa.field("element", pa.int64()))),
        ("distances", pa.list_(pa.field("element", pa.float32()))),
    ]
)


def join(parts: list[tuple[Ints, Ints, Floats]]) -> tuple[Ints, Ints, Floats]:
    """Return several (row ids, ids, keys) as one."""
    rows, ids, keys = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(ids), np.concatenate(keys)


def bucket_blocks(p: Plan, ids: Ints, found: Ints, keys: Floats) -> Iterator[pa.RecordBatch]:
    """Pack lists of neighbours for the buckets that merge them."""
    buckets = (hash_ids(ids, 1) % np.uint64(len(p.bucket_tasks))).astype(np.int64)
    order = np.argsort(buckets, kind="stable")
    ids, buckets, keys = ids[order], buckets[order], keys[order]
    packed = _pack_ids(found[order], p.low_id)
    names: list[int] = []
    blocks: list[tuple[npt.NDArray[Any], ...]] = []
    for start, stop in runs(buckets, max(1, BLOCK_BYTES // (12 * p.config.k))):
        names.append(int(buckets[start]))
        blocks.append((ids[start:stop], packed[start:stop], keys[start:stop]))
    for at in range(0, len(names), RECORDS_PER_BATCH):
        part = slice(at, at + RECORDS_PER_BATCH)
        yield pa.RecordBatch.from_pydict(
            {
                "task": pa.array(p.bucket_tasks[names[part]], pa.int32()),
                "bucket": pa.array(names[part], pa.int32()),
                "block": binary_array(blocks[part]),
            }
        )


def write_table(batches: Iterable[pa.RecordBatch], *, plan: Broadcast[Plan], folder: str) -> Iterator[pa.RecordBatch]:
    """Merge the lists of each row and write them to a Parquet file of this attempt; yield a record of it.

    The record has the file's name, its rows, how many of them have fewer than k neighbours, and the ids int64 (m,) and
    keys float32 (m, k) of the rows on which the recall is measured.

    Runs on: executor. Batches are sorted by bucket. Memory: O(bucket). Python writes the file because handing lists
    of numbers back to the JVM costs several times the search. The driver takes only the files it is told of.
    """
    context = TaskContext.get()
    attempt = context.taskAttemptId() if context is not None else 0
    partition = context.partitionId() if context is not None else 0
    name = f"part-{partition:05d}-{attempt}.parquet"
    p, written, short = plan.value, 0, 0
    asked: list[tuple[Ints, Floats]] = []
    with task_folder("merge") as own:
        path = os.path.join(own, name)
        with pq.ParquetWriter(path, TABLE, compression="snappy", use_dictionary=False) as writer:
            for rows, ids, keys in _merged(batches, p):
                written += len(rows)
                short += int((ids == NO_ID).any(axis=1).sum())
                some = np.isin(rows, p.asked_ids)
                asked.append((rows[some], keys[some]))
                writer.write_table(_table(rows, ids, Space(p.config.metric).distances(keys)))
        if written:
            storage.put_file(path, storage.join(folder, name), parents=False, move=True)
            packed = [b"".join(part[place].tobytes() for part in asked) for place in (0, 1)]
            record = {"name": [name], "rows": [written], "short": [short], "asked": packed[:1], "keys": packed[1:]}
            yield pa.RecordBatch.from_pydict(record)


def _merged(batches: Iterable[pa.RecordBatch], p: Plan) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Yield the rows, ids and keys of each bucket."""
    k, id_bytes = p.config.k, 8 if p.low_id is None else 4
    for _, blocks in grouped(batches, "bucket"):
        parts = [_unpack_lists(block, k, id_bytes, p.low_id) for _, block in blocks]
        joined = join(parts)
        del parts
        yield merge_top_k(*joined, k)


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
