"""Triplet blocks from Parquet into tf.data."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ivis_spark.config.checks import AUTO
from ivis_spark.core.triplets.blocks import unpack_false_negatives, unpack_vectors
from ivis_spark.core.triplets.sampling import draw_batch_negatives, either_way_round, false_negatives_in_block
from ivis_spark.errors import ArtifactError
from ivis_spark.train.dataset.batches import TripletGroup, batches_ahead, slice_batches, whole_batches
from ivis_spark.train.dataset.blocks import Position, TripletBlocks
from ivis_spark.train.dataset.sharding import deal
from ivis_spark.train.readers import BlockReader, make_reader

_ALIGNMENT = 64
# Of 19: a ninth of the weight of the threads that train, by Linux's scheduler.
_READING_PRIORITY = 10


def block_dataset(
    blocks: TripletBlocks,
    *,
    batch_size: int,
    random_state: int,
    labels: bool = False,
    negatives: int = 1,
    position: Position | None = None,
    reader: str = AUTO,
) -> tf.data.Dataset:
    """Return an endless dataset of batches, `blocks.steps_per_epoch(batch_size)` an epoch.

    Each epoch reads the positives of one draw only, opens the files and row groups in an order of its own, shuffles the
    rows of each block, and samples negatives again: among the anchors of the batch, so that they pass the encoder once,
    and of the same block, which knows what is near. Rows of a block are a random subset of the table to begin with.
    Without negatives and labels, which belong to the anchor, half the pairs are exchanged. What is left of an epoch
    after its last whole batch is not used. An epoch's batches depend on (random_state, epoch, rank, n_ranks) alone, so
    reading can begin anywhere.

    With several ranks the blocks are redistributed in every epoch: each rank reads its share, and yields as many
    batches as all others.

    Runs on: each rank. Memory: a few row groups, independent of the size of the table.

    Args:
        blocks: What to read.
        batch_size: Rows of a batch over all ranks.
        random_state: Seeds the orders.
        labels: Whether to read the labels too.
        negatives: Negatives of each anchor; 0 draws none.
        position: Where to begin; by default at the beginning, alone.
        reader: As `train.reader` names it. All give the same batches.

    Returns:
        Dictionaries of `stacked`: anchors, then positives, float32 (2b, d); `negative`: int32 (b, negatives), which of
        the anchors, -1 for a row that all others are near; `weight`: float32 (b,), 0 for padding; and `label`:
        float32 (b,) or (b, c) if asked for; b is this rank's part of the batch.

    Raises:
        DependencyError: if the reader is missing or does not fit the installed pyarrow.
        ArtifactError: while reading, if a block's bytes are not what they should be.
    """
    source = make_reader(reader)
    position = position or Position()
    optional = ("near",) * bool(negatives) + ("label",) * labels
    size, steps = min(batch_size, blocks.rows) // position.n_ranks, blocks.steps_per_epoch(batch_size)

    def generate() -> Iterator[dict[str, NDArray[Any]]]:
        if position.n_ranks > 1:
            _give_way()
        first, joined = position.step, Joined()
        for epoch in itertools.count(position.epoch):
            groups = whole_batches(
                _read_epoch(source, blocks, epoch, random_state, optional, position, size, negatives, joined), size
            )
            for group in slice_batches(groups, first, steps):
                yield dict(vars(group))
            first = 0

    signature = {
        "rows": tf.TensorSpec((None, blocks.dims), tf.float32),
        "index": tf.TensorSpec((None, 2 * size), tf.int32),
        "negative": tf.TensorSpec((None, size, negatives), tf.int32),
        "weight": tf.TensorSpec((None, size), tf.float32),
        "label": tf.TensorSpec((None, size, *_label_shape(blocks, labels)), tf.float32),
    }
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    kept = ("index", "weight", *("negative",) * bool(negatives), *("label",) * labels)
    dataset = dataset.flat_map(functools.partial(_gather_batches, kept=kept)).prefetch(batches_ahead(blocks.dims, size))
    # There is nothing to tune, yet tf.data's tuner takes its share of the cores and holds the end up, by 40 s at times.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _give_way() -> None:
    """Let this thread, which reads ahead, have what the others of the process leave of the cores.

    A rank that reads while its part of a message waits holds up all ranks, and each at another time: on one core a
    rank, a step takes a fifth longer. Whoever waits for a batch leaves the core free, so reading does not starve.
    """
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _READING_PRIORITY)


def _label_shape(blocks: TripletBlocks, labels: bool) -> tuple[int, ...]:
    """Return the shape of a row's label: (c,) for arrays, () for single numbers, and where none is read."""
    return (blocks.labelled,) if labels and blocks.labelled > 1 else ()


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def _gather_batches(group: dict[str, tf.Tensor], *, kept: tuple[str, ...]) -> tf.data.Dataset:
    """Make the batches of a row group: one gather each."""

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def gather(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"stacked": tf.gather(group["rows"], batch.pop("index")), **batch}

    return tf.data.Dataset.from_tensor_slices({name: group[name] for name in kept}).map(gather)


def _read_epoch(
    source: BlockReader,
    blocks: TripletBlocks,
    epoch: int,
    random_state: int,
    optional: tuple[str, ...],
    position: Position,
    size: int,
    negatives: int,
    joined: Joined,
) -> Iterator[TripletGroup]:
    """Yield the row groups of a rank's share of one epoch, the triplets of each block in an order of their own.

    Of the columns `near` and `label` it reads those in `optional`. Negatives are drawn for batches of `size`.
    """
    parts = deal(blocks.file_blocks, position.rank, position.n_ranks, np.random.default_rng([random_state, epoch]))
    rng = np.random.default_rng([random_state, epoch, position.rank])
    positive = f"positive_{epoch % blocks.draws}"
    columns = {"positive": positive, **{name: name for name in ("anchor", "weight", *optional)}}
    read = 0
    for group in source.read(blocks, parts, list(columns.values()), seed=int(rng.integers(1, 2**31 - 1))):
        packed = {kind: group[column] for kind, column in columns.items()}
        read += len(packed["anchor"])
        start = (read - len(packed["anchor"])) * blocks.block_rows % size
        yield _join_blocks(packed, columns, blocks, rng, start, size, negatives, joined)
    n_blocks = sum(part.stop - part.first for part in parts)
    if read != n_blocks:
        raise ArtifactError(
            f"{read} of {n_blocks} triplet blocks were read from {blocks.folder}; rebuild the stage: ivis-spark "
            "triplets --overwrite"
        )


def _join_blocks(
    packed: dict[str, list[bytes]],
    columns: dict[str, str],
    blocks: TripletBlocks,
    rng: np.random.Generator,
    start: int,
    batch_size: int,
    negatives: int,
    joined: Joined,
) -> TripletGroup:
    """Join the blocks of a row group; `start` triplets stand before them in the batch that they begin in."""
    size, count = blocks.block_rows, len(packed["anchor"])

    def vectors(kind: str, width: int) -> list[NDArray[np.float32]]:
        return [unpack_vectors(part, size, width, columns[kind]) for part in packed.get(kind, ())]

    rows = joined.join([*vectors("anchor", blocks.dims), *vectors("positive", blocks.dims)])
    orders = [rng.permutation(size) for _ in range(count)]
    order = np.concatenate([each + i * size for i, each in enumerate(orders)])
    pairs = np.stack([order, order + size * count]).astype(np.int32)
    if not negatives and "label" not in columns:
        pairs = either_way_round(pairs, rng=rng)
    index = np.ascontiguousarray(pairs.T)
    weight = np.concatenate(vectors("weight", 1)).reshape(-1)[order]
    negative = np.empty((size * count, negatives), dtype=np.int32)
    for i, mask in enumerate(packed.get("near", ())):
        negative[i * size : (i + 1) * size] = draw_batch_negatives(
            false_negatives_in_block(unpack_false_negatives(mask, size), orders[i]),
            size,
            batch_size=batch_size,
            start=(start + i * size) % batch_size,
            draws=negatives,
            rng=rng,
        )
    label = np.zeros_like(weight)
    if "label" in columns:
        shape = _label_shape(blocks, labels=True)
        label = np.concatenate(vectors("label", blocks.labelled)).reshape(-1, *shape)[order]
    return TripletGroup(rows, index, negative, weight, label)


class Joined:
    """Joins the rows of row groups in memory that is used again once nothing looks at it.

    The kernel clears fresh memory, page by page: of 784 columns with TensorFlow 2.21 that takes three times as long as
    copying the rows.
    """

    def __init__(self) -> None:
        self._buffers: list[NDArray[np.uint8]] = []

    def join(self, parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return all rows, at an address that TensorFlow takes as it is: others it copies once more."""
        shape = sum(len(part) for part in parts), parts[0].shape[1]
        size = 4 * shape[0] * shape[1]
        buffer = self._unused(size + _ALIGNMENT)
        start = -buffer.ctypes.data % _ALIGNMENT
        return np.concatenate(parts, out=buffer[start : start + size].view(np.float32).reshape(shape))

    def _unused(self, size: int) -> NDArray[np.uint8]:
        """Return a buffer that no array or tensor is a view of."""
        for i in range(len(self._buffers)):
            if _references(self._buffers, i) == _NO_VIEWS:
                if len(self._buffers[i]) < size:
                    self._buffers[i] = np.empty(size, np.uint8)
                return self._buffers[i]
        self._buffers.append(np.empty(size, np.uint8))
        return self._buffers[-1]


def _references(values: list[Any], i: int) -> int:
    return sys.getrefcount(values[i])


# What _references says of a value that only the list holds; it depends on the version of Python.
_NO_VIEWS = _references([np.empty(0)], 0)
