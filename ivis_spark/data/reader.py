"""Triplet blocks from Parquet into tf.data: the only room that knows Petastorm."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from ivis_spark import storage
from ivis_spark.core.blocks import unpack_positions, unpack_vectors
from ivis_spark.errors import ArtifactError, DependencyError

log = logging.getLogger(__name__)

# tf.data runs the reader in a thread of its own, this far ahead. Petastorm's own thread pool now and then ends an epoch
# without its last row group (0.13.1), and orders the others by chance.
_BATCHES_AHEAD = 64


@dataclass(frozen=True)
class TripletBlocks:
    """Where the blocks of a `triplets` stage lie and what they look like.

    Attributes:
        folder: URI of the Parquet files.
        file_blocks: Blocks of each file, by name.
        block_rows: B, rows of a block.
        dims: d, numbers of a row.
        draws: m, positives and negatives of each anchor.
        labelled: Whether there is a column of labels.
    """

    folder: str
    file_blocks: dict[str, int]
    block_rows: int
    dims: int
    draws: int
    labelled: bool

    @property
    def rows(self) -> int:
        """Rows of an epoch, those that pad blocks included."""
        return self.block_rows * sum(self.file_blocks.values())

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches of an epoch; a table smaller than a batch is one batch."""
        return max(1, self.rows // batch_size)


def block_dataset(
    blocks: TripletBlocks, *, batch_size: int, random_state: int, labels: bool = False, first_epoch: int = 0
) -> tf.data.Dataset:
    """Return an endless dataset of batches, `blocks.steps_per_epoch(batch_size)` an epoch.

    Each epoch reads the columns of one draw only, opens the files and row groups in an order of its own, and shuffles
    rows inside a row group. Rows of a block are a random subset of the table to begin with.

    Runs on: each rank. Memory: a few row groups, whatever the size of the table.

    Args:
        blocks: What to read.
        batch_size: Rows of a batch.
        random_state: Seeds the orders.
        labels: Whether to read the labels too.
        first_epoch: Epoch to begin with, for a run that goes on.

    Returns:
        Dictionaries of `anchor`, `positive`, `negative`: float32 (b, d); `weight`: float32 (b,), 0 for padding; and
        `label`: float32 (b,) if asked for.

    Raises:
        DependencyError: if Petastorm is missing or does not fit the installed pyarrow.
        ArtifactError: while reading, if a block's bytes are not what they should be.
    """
    _petastorm()

    def generate() -> Iterator[dict[str, Any]]:
        epoch = first_epoch
        while True:
            yield from _read_epoch(blocks, epoch, random_state, labels)
            epoch += 1

    matrix, vector = (None, blocks.dims), (None,)
    signature = {
        "anchor": tf.TensorSpec(matrix, tf.float32),
        "positive": tf.TensorSpec(matrix, tf.float32),
        "negative": tf.TensorSpec(vector, tf.int32),
        "weight": tf.TensorSpec(vector, tf.float32),
        "order": tf.TensorSpec(vector, tf.int32),
    }
    if labels:
        signature["label"] = tf.TensorSpec(vector, tf.float32)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    dataset = dataset.map(_look_up_negatives, num_parallel_calls=1, deterministic=True)
    return dataset.rebatch(min(batch_size, blocks.rows), drop_remainder=True).prefetch(_BATCHES_AHEAD)


def _look_up_negatives(block: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Turn negatives from positions into rows, and put all rows in the order drawn."""
    order = block.pop("order")
    negative = tf.gather(block["anchor"], tf.gather(block.pop("negative"), order))
    return {"negative": negative, **{name: tf.gather(value, order) for name, value in block.items()}}


def _read_epoch(blocks: TripletBlocks, epoch: int, random_state: int, labels: bool) -> Iterator[dict[str, Any]]:
    """Yield the row groups of one epoch, each as arrays of its blocks' rows."""
    rng = np.random.default_rng([random_state, epoch])
    draw = epoch % blocks.draws
    names = {"anchor": "anchor", "positive": f"positive_{draw}", "negative": f"negative_{draw}", "weight": "weight"}
    if labels:
        names["label"] = "label"
    files = [storage.join(blocks.folder, name) for name in sorted(blocks.file_blocks)]
    urls = [files[i] for i in rng.permutation(len(files))]
    with _open_reader(urls, list(names.values()), seed=int(rng.integers(1, 2**31 - 1))) as reader:
        read = 0
        for group in reader:
            read += len(group.anchor)
            packed = {kind: list(getattr(group, name)) for kind, name in names.items()}
            yield _join_blocks(packed, names, blocks, rng)
        if read != sum(blocks.file_blocks.values()):
            raise ArtifactError(
                f"{read} of {sum(blocks.file_blocks.values())} triplet blocks were read from {blocks.folder}; rebuild "
                "the stage: ivis-spark triplets --overwrite"
            )


def _join_blocks(
    packed: dict[str, list[bytes]], names: dict[str, str], blocks: TripletBlocks, rng: np.random.Generator
) -> dict[str, Any]:
    rows = blocks.block_rows
    width = {"anchor": blocks.dims, "positive": blocks.dims, "weight": 1, "label": 1}
    joined: dict[str, Any] = {}
    for kind, parts in packed.items():
        if kind == "negative":
            arrays: list[Any] = [unpack_positions(p, rows, names[kind]) + i * rows for i, p in enumerate(parts)]
        else:
            arrays = [unpack_vectors(part, rows, width[kind], names[kind]) for part in parts]
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        joined[kind] = whole.reshape(-1) if kind in ("weight", "label") else whole
    joined["order"] = rng.permutation(rows * len(packed["anchor"])).astype(np.int32)
    return joined


@contextlib.contextmanager
def _open_reader(urls: list[str], columns: list[str], *, seed: int) -> Iterator[Any]:
    """Open a Petastorm reader for one pass. Petastorm takes seed 0 for no seed, so the seed is at least 1."""
    make_batch_reader = _petastorm()
    reader = make_batch_reader(
        urls,
        schema_fields=[f"^{name}$" for name in columns],
        reader_pool_type="dummy",  # reads in the calling thread, see _BATCHES_AHEAD
        shuffle_row_groups=True,
        seed=seed,
        num_epochs=1,
        hdfs_driver="libhdfs",
    )
    try:
        yield reader
    finally:
        reader.stop()
        reader.join()


def _petastorm() -> Any:
    # Petastorm warns of its own use of pyarrow, and that these files are not its own: nothing a user can act on. Its
    # threads warn too, so the filter has to stay.
    warnings.filterwarnings("ignore", module=r"petastorm\b")
    logging.getLogger("petastorm").setLevel(logging.ERROR)
    try:
        from petastorm import make_batch_reader
    except (ImportError, AttributeError) as err:
        raise DependencyError(
            f"Petastorm cannot be used ({err}). Install it with a pyarrow and setuptools it knows: pip install "
            "'ivis_spark[spark]' (petastorm 0.12-0.13, pyarrow 14, setuptools below 70)"
        ) from err
    return make_batch_reader
