"""Triplets/s of reading alone: Parquet through every reader into batches of 128, next to the disk's own rate.

    python tests/bench/bench_reader.py [--rows 400000] [--dims 100]

The blocks are written as the triplets stage writes them. The baseline is one pass of pyarrow over the same columns
(decompressed, not unpacked): what Parquet itself allows one thread.
"""

from __future__ import annotations

import os
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import Floats, parser, say

from ivis_spark.config import TrainConfig
from ivis_spark.train.dataset.block_dataset import block_dataset
from ivis_spark.train.dataset.blocks import TripletBlocks
from ivis_spark.train.readers import installed_readers

BLOCK_ROWS, BLOCKS_A_FILE, BATCH, EPOCHS = 1024, 64, 128, 3


def main() -> None:
    """Write blocks, read them and print the rates."""
    made = parser(__doc__, data=False)
    made.add_argument("--rows", type=int, default=400_000)
    made.add_argument("--dims", type=int, default=100)
    options = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        blocks = write_blocks(folder, options.rows, options.dims)
        usable, limit = installed_readers()[0], []
        ours: dict[str, list[float]] = {name: [] for name in usable}
        for _ in range(3):
            limit.append(blocks.rows / seconds_of_pyarrow(folder))
            for name in usable:
                ours[name].append(rate_of_dataset(blocks, name))
    for name, rates in ours.items():
        bandwidth, share = max(rates) * 8 * options.dims / 1e9, max(rates) / max(limit)
        say(f"{name}, d={options.dims}: {max(rates):,.0f} triplets/s ({bandwidth:.2f} GB/s), ratio {share:.2f}")
    say(f"Parquet's own rate, by one thread: {max(limit):,.0f} triplets/s")


def write_blocks(folder: str, rows: int, dims: int, X: Floats | None = None) -> TripletBlocks:
    """Write files of blocks with one draw: rows drawn from X, or random ones."""
    rng = np.random.default_rng(0)
    count, files = -(-rows // BLOCK_ROWS), {}
    group = max(1, (8 << 20) // (8 * BLOCK_ROWS * dims))
    for first in range(0, count, BLOCKS_A_FILE):
        number = min(BLOCKS_A_FILE, count - first)
        rows_of = [
            rng.standard_normal((BLOCK_ROWS, dims), dtype=np.float32)
            if X is None
            else X[rng.integers(len(X), size=BLOCK_ROWS)]
            for _ in range(2 * number)
        ]
        weight = np.ones(BLOCK_ROWS, np.float32).tobytes()
        columns = {
            "anchor": [block.tobytes() for block in rows_of[:number]],
            "positive_0": [block.tobytes() for block in rows_of[number:]],
            "near": [near_pairs(rng, rows) for _ in range(number)],
            "weight": [weight] * number,
        }
        table = pa.table({name: pa.array(values, pa.binary()) for name, values in columns.items()})
        name = f"part-{first}.parquet"
        pq.write_table(table, os.path.join(folder, name), compression="lz4", use_dictionary=False, row_group_size=group)
        files[name] = number
    return TripletBlocks(f"file://{folder}", files, BLOCK_ROWS, dims, 1, labelled=0, group_blocks=group)


def near_pairs(rng: np.random.Generator, rows: int) -> bytes:
    """Return as many pairs of neighbours as a random block of a table of `rows` rows holds at k=15."""
    pairs = rng.integers(BLOCK_ROWS**2, size=round(15 * BLOCK_ROWS**2 / rows))
    return np.unique(pairs[pairs // BLOCK_ROWS != pairs % BLOCK_ROWS]).astype("<u4").tobytes()


def rate_of_dataset(blocks: TripletBlocks, reader: str) -> float:
    """Take the batches of some epochs in a compiled loop, as training does."""
    import tensorflow as tf

    steps = blocks.steps_per_epoch(BATCH)

    @tf.function
    def drain(batches: object, count: object) -> object:
        total = tf.constant(0.0)
        for _ in tf.range(count):
            total += next(batches)["stacked"][0, 0]
        return total

    settings = {"batch_size": BATCH, "random_state": 0, "negatives": TrainConfig.negatives, "reader": reader}
    batches = iter(block_dataset(blocks, **settings))
    drain(batches, tf.constant(steps // 4))
    started = time.perf_counter()
    drain(batches, tf.constant(EPOCHS * steps))
    return EPOCHS * steps * BATCH / (time.perf_counter() - started)


def seconds_of_pyarrow(folder: str) -> float:
    """Read all row groups with one thread."""
    started = time.perf_counter()
    for name in sorted(os.listdir(folder)):
        file = pq.ParquetFile(os.path.join(folder, name))
        for group in range(file.num_row_groups):
            file.read_row_group(group, use_threads=False)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
