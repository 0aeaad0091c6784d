"""The triplets stage: neighbours and rows in, packed blocks of triplets out.

One row of the Parquet files is one block. The columns `positive_0 .. m-1` are m draws, so that epoch e reads
`positive_{e mod m}` alone; `near` is the false-negative mask, and is left out if the loss reads no negatives.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ivis_spark import storage
from ivis_spark.config import TripletsConfig
from ivis_spark.core.sizes import BROADCAST_BYTES
from ivis_spark.core.triplets.blocks import BlockDraws, BlockPlan, column_names, draw_blocks
from ivis_spark.errors import InputError
from ivis_spark.spark.anchors import row_hash
from ivis_spark.spark.causes import task_errors
from ivis_spark.spark.held_out import hide_labels
from ivis_spark.spark.neighbours.by_label import CLASS
from ivis_spark.spark.partitioning import cores, repartition_by_group
from ivis_spark.spark.session import arrow_batches, describe_job, shuffles_of
from ivis_spark.spark.tasks import map_arrow
from ivis_spark.spark.vectors import list_values, unpack

log = logging.getLogger(__name__)

_WRITTEN_SCHEMA = "path string, digest string, blocks long, rows long, bucket int, label_width int"
_REQUEST_SCHEMA = "bucket int, place long, other long, weight float, near binary"


def build_triplets(
    rows: DataFrame,
    neighbours: DataFrame,
    config: TripletsConfig,
    *,
    n_rows: int,
    n_anchors: int,
    k: int,
    random_state: int,
    folder: str,
    negatives: bool = True,
) -> dict[str, Any]:
    """Draw triplets, fetch their vectors in one join and write them as blocks.

    Runs on: driver; its memory grows with files only. A task holds the ids of one bucket, then one block of vectors.
    The same table for any partitioning of the inputs.

    Args:
        rows: `id` long, `features` binary and maybe `label`.
        neighbours: `id` long, `neighbour_ids` array<long>; with `class` long, rows of one class are all neighbours.
        config: Draws and sizes.
        n_rows: Rows of `rows`.
        n_anchors: Rows of `neighbours`.
        k: Ids in the longest of its lists.
        random_state: Seeds which rows share a block and every draw.
        folder: URI to write the Parquet files into.
        negatives: Whether the loss reads negatives.

    Returns:
        Facts for the manifest: anchors, blocks, block_rows, draws, padding, labelled (the numbers of a row's label, 0
        without), held_out_labels (the share that is hidden), whether negatives can be drawn, and the blocks of each
        file; and `digests` of the files.

    Raises:
        InputError: if a row has no possible negative, or a neighbour is not among the rows.
    """
    spark = rows.sparkSession
    rows = hide_labels(rows, config.held_out_labels, random_state)
    describe_job(spark, "triplets: draw and fetch vectors")
    vector = rows.select(F.length("features")).first()
    row_bytes = vector[0] if vector else 4
    plan = BlockPlan.of(
        n_anchors,
        block_rows=config.block_rows,
        file_blocks=config.file_blocks,
        row_bytes=(1 + config.positives_per_anchor) * row_bytes,
        list_bytes=8 * k,
    )
    key = row_hash(random_state)
    by_label = [CLASS] if CLASS in neighbours.columns else []
    lists = neighbours.select("id", "neighbour_ids", *by_label, key.alias("key")).withColumn(
        "bucket", F.pmod("key", F.lit(plan.buckets)).cast("int")
    )
    # The key's remainder picks the bucket, so its order within a bucket is still random.
    tasks = max(plan.buckets, 1)
    draw = functools.partial(
        request_vectors,
        block_rows=plan.block_rows,
        draws=config.positives_per_anchor,
        random_state=random_state,
        negatives=negatives,
    )
    lists = repartition_by_group(lists, "bucket", tasks).sortWithinPartitions("bucket", "key", "id")
    requests = map_arrow(lists, draw, _REQUEST_SCHEMA)
    table_bytes = n_rows * (row_bytes + 8)
    fetched = _fetch(requests, rows, table_bytes)
    write = functools.partial(
        write_blocks,
        folder=folder,
        block_rows=plan.block_rows,
        draws=config.positives_per_anchor,
        group_blocks=config.group_blocks,
    )
    placed = repartition_by_group(fetched, "bucket", tasks).sortWithinPartitions("bucket", "place")
    written_blocks = map_arrow(placed, write, _WRITTEN_SCHEMA)
    with task_errors(), arrow_batches(spark, row_bytes), shuffles_of(spark, table_bytes):
        records = written_blocks.collect()
    storage.keep_only(folder, [record.path for record in records])
    blocks = sum(record.blocks for record in records)
    written = sum(record.rows for record in records)
    if written != n_anchors:
        raise InputError(
            f"{written} of {n_anchors} rows became anchors: the neighbours list rows that are not in the table, or "
            f"are missing rows of it; rebuild them: ivis-spark neighbours --overwrite"
        )
    padding = blocks * plan.block_rows - n_anchors
    log.info(
        "%d triplets x %d draws in %d blocks of %d (%.1f %% padding), %d tasks, %d at once",
        n_anchors,
        config.positives_per_anchor,
        blocks,
        plan.block_rows,
        100 * padding / n_anchors,
        tasks,
        cores(spark),
    )
    return {
        "anchors": n_anchors,
        "blocks": blocks,
        "block_rows": plan.block_rows,
        "draws": config.positives_per_anchor,
        "negatives": negatives,
        "padding_rows": padding,
        "labelled": records[0].label_width if records else 0,
        "held_out_labels": config.held_out_labels,
        "file_blocks": {_name(record): record.blocks for record in records},
        "digests": {_name(record): json.loads(record.digest) for record in records},
    }


def _fetch(requests: DataFrame, rows: DataFrame, n_bytes: int) -> DataFrame:
    """Join vectors to what asks for them; every task gets a small table whole."""
    others = rows.withColumnRenamed("id", "other")
    if n_bytes <= BROADCAST_BYTES and not any(kind.startswith("array") for _, kind in rows.dtypes):  # of labels
        others = F.broadcast(others)
    return requests.join(others, "other").drop("other")


def _name(record: Any) -> str:
    return str(record.path.rsplit("/", 1)[-1])


def request_vectors(
    batches: Iterator[pa.RecordBatch], *, block_rows: int, draws: int, random_state: int, negatives: bool = True
) -> Iterator[pa.RecordBatch]:
    """Yield, for every bucket of a task, the rows whose vectors its blocks need, each with its place in the bucket.

    Block by block: first the anchors, with their weights and, in the first of them, the packed pairs of near rows; then
    the positives of each draw.

    Runs on: executor. Memory: one bucket's ids and neighbours.
    """
    for bucket, ids, neighbours, classes in _buckets(batches):
        seed = (random_state, bucket)
        drawn = draw_blocks(
            ids, neighbours, block_rows=block_rows, draws=draws, seed=seed, classes=classes, negatives=negatives
        )
        for number, block in enumerate(drawn):
            yield _requests_of(block, bucket, number * block_rows * (1 + draws))


def _requests_of(block: BlockDraws, bucket: int, first_place: int) -> pa.RecordBatch:
    others = np.concatenate([block.anchors, *block.positives.T])
    n_anchors, n_all = len(block.anchors), len(others)
    nothing = [None] * (n_all - n_anchors)
    mask = None if block.mask is None else block.mask.astype("<u4").tobytes()
    return pa.RecordBatch.from_arrays(
        [
            pa.array(np.full(n_all, bucket, np.int32)),
            pa.array(np.arange(first_place, first_place + n_all, dtype=np.int64)),
            pa.array(others),
            pa.array([*block.weights.tolist(), *nothing], pa.float32()),
            pa.array([mask, *[None] * (n_all - 1)], pa.binary()),
        ],
        ["bucket", "place", "other", "weight", "near"],
    )


_Bucket = tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]


def _buckets(batches: Iterator[pa.RecordBatch]) -> Iterator[_Bucket]:
    """Cut a stream sorted by bucket into (bucket, ids, neighbours, classes if there are)."""
    held: list[pa.RecordBatch] = []
    for bucket, part in _runs(batches):
        if held and held[0].column("bucket")[0].as_py() != bucket:
            yield _bucket_of(held)
            held = []
        held.append(part)
    if held:
        yield _bucket_of(held)


def _runs(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cut batches where the bucket changes."""
    for batch in batches:
        if not batch.num_rows:
            continue
        buckets = batch.column("bucket").to_numpy(zero_copy_only=False)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(buckets)) + 1, [len(buckets)]])
        for start, stop in itertools.pairwise(starts):
            yield int(buckets[start]), batch.slice(start, stop - start)


def _bucket_of(parts: list[pa.RecordBatch]) -> _Bucket:
    table = pa.Table.from_batches(parts).combine_chunks()
    ids = table["id"].to_numpy()
    lists = table["neighbour_ids"].combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    lengths, values = list_values(lists)
    neighbours = _rectangular(ids, lengths, values.to_numpy(zero_copy_only=False))
    classes = table[CLASS].to_numpy() if CLASS in table.column_names else None
    return int(table["bucket"][0].as_py()), ids, neighbours, classes


def _rectangular(ids: NDArray[np.int64], lengths: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return neighbour lists as one array; a shorter list is repeated, which leaves its draws as they would be."""
    if len(lengths) and lengths.min() == 0:
        raise InputError(f"row {ids[int(lengths.argmin())]} has no neighbours; every row needs at least one")
    k = int(lengths.max())
    if lengths.min() == k:
        return values.reshape(len(ids), k)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return values[starts[:, None] + np.arange(k) % lengths[:, None]]


def write_blocks(
    batches: Iterator[pa.RecordBatch], *, folder: str, block_rows: int, draws: int, group_blocks: int
) -> Iterator[pa.RecordBatch]:
    """Pack the vectors of a task's buckets, one file a bucket, and yield a record of each file.

    Runs on: executor. Memory: one Parquet row group. Every attempt of a task writes files of its own; the driver keeps
    those whose records Spark took.
    """
    size = block_rows * (1 + draws)
    for bucket, blocks in _bucket_blocks(batches, size):
        path = storage.join(folder, f"bucket-{bucket:06d}-{uuid.uuid4().hex[:12]}.parquet")
        facts = _write_bucket(path, blocks, block_rows=block_rows, draws=draws, group_blocks=group_blocks)
        count, rows, label_width, digest = facts
        yield pa.RecordBatch.from_arrays(
            [
                pa.array([path]),
                pa.array([json.dumps(digest)]),
                pa.array([count]),
                pa.array([rows]),
                pa.array([bucket], pa.int32()),
                pa.array([label_width], pa.int32()),
            ],
            ["path", "digest", "blocks", "rows", "bucket", "label_width"],
        )


def _bucket_blocks(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[tuple[int, Iterator[pa.Table]]]:
    """Cut a stream sorted by bucket and place into buckets, each an iterator of tables of `size` rows."""
    runs = _runs(batches)
    ahead: list[tuple[int, pa.RecordBatch]] = []

    def blocks_of(bucket: int) -> Iterator[pa.Table]:
        held: list[pa.RecordBatch] = []
        rows = 0
        for number, part in itertools.chain(_taken(ahead), runs):
            if number != bucket:
                ahead.append((number, part))
                break
            while rows + part.num_rows >= size:
                taken = size - rows
                yield pa.Table.from_batches([*held, part.slice(0, taken)])
                held, rows, part = [], 0, part.slice(taken)
            if part.num_rows:
                held.append(part)
                rows += part.num_rows
        if rows:
            raise InputError(
                f"bucket {bucket} lacks {size - rows} vectors: the neighbours list rows that are not in the table; "
                f"rebuild them: ivis-spark neighbours --overwrite"
            )

    for first in runs:
        ahead.append(first)
        while ahead:
            bucket = ahead[0][0]
            yield bucket, blocks_of(bucket)


def _taken(ahead: list[tuple[int, pa.RecordBatch]]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield what was read ahead, taking it from the list."""
    while ahead:
        yield ahead.pop()


def _write_bucket(
    path: str, blocks: Iterator[pa.Table], *, block_rows: int, draws: int, group_blocks: int
) -> tuple[int, int, int, dict[str, Any]]:
    """Write a bucket; return how many blocks it has, their rows of weight 1, the numbers of a label, and the digest."""
    fs, plain = storage.filesystem(path)
    fs.makedirs(fs._parent(plain), exist_ok=True)
    count, rows, label_width = 0, 0, 0
    group: list[pa.Table] = []
    with fs.open(plain, "wb") as file:
        sink, writer = storage.DigestedWriter(file), None
        for block in blocks:
            packed = _pack_block(block, block_rows, draws)
            writer = writer or pq.ParquetWriter(
                sink,
                packed.schema,
                compression="lz4",  # read again every epoch: a third less time than zstd, a third more bytes
                use_dictionary=False,
                write_statistics=False,
            )
            group.append(packed)
            count += 1
            rows += int(np.frombuffer(packed["weight"][0].as_py(), "<f4").sum())
            if "label" in packed.column_names:
                label_width = len(packed["label"][0].as_py()) // (4 * block_rows)
            if len(group) == group_blocks:
                writer.write_table(pa.concat_tables(group))
                group = []
        if writer is not None:
            if group:
                writer.write_table(pa.concat_tables(group))
            writer.close()
    return count, rows, label_width, sink.record


def _pack_block(block: pa.Table, block_rows: int, draws: int) -> pa.Table:
    """Turn the B (1 + m) fetched rows of a block into its one row."""
    places = block["place"].to_numpy()
    if places[-1] - places[0] != len(places) - 1:
        raise InputError(
            "a block lacks vectors: the neighbours list rows that are not in the table; rebuild them: ivis-spark "
            "neighbours --overwrite"
        )
    vectors = np.concatenate([unpack(chunk) for chunk in block["features"].chunks])
    slots = vectors.reshape(1 + draws, -1)
    anchors = block.slice(0, block_rows)
    weights = anchors["weight"].to_numpy().astype("<f4")
    mask = anchors["near"][0].as_py()
    packed = [slots[0].tobytes(), weights.tobytes(), *([] if mask is None else [mask])]
    packed += [slot.tobytes() for slot in slots[1:]]
    names = column_names(draws, negatives=mask is not None)
    if "label" in block.column_names:
        packed.append(_label_numbers(anchors["label"]).tobytes())
        names.append("label")
    return pa.table({name: pa.array([value], pa.binary()) for name, value in zip(names, packed, strict=True)})


def _label_numbers(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return labels, or arrays of them one after the other, as float32; a missing one is NaN."""
    if pa.types.is_list(column.type):
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    return column.cast(pa.float64()).fill_null(float("nan")).to_numpy().astype("<f4")
