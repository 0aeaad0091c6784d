"""Triplet blocks: which rows share a block, and how a block is packed.

A block holds B anchors that are a random subset of the table, their positives as vectors, and which of the anchors are
near one another. A random row of a random subset is a random row of the table, so negatives are drawn among the block's
own anchors, those of a batch, again in every epoch: they need no vectors and no fixed list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.core.triplets.sampling import draw_positives, false_negative_pairs, same_class_codes
from ivis_spark.errors import ArtifactError

Ids = NDArray[np.int64]
FILE_BYTES = 256 << 20  # of blocks in a file of a large table, which a task writes
LIST_BYTES = 128 << 20  # of lists of neighbours that a task holds to draw from
_FILES = 64  # that a table has before its files grow: ranks read files in an order of their own, in every epoch


@dataclass(frozen=True)
class BlockPlan:
    """Buckets and blocks that a table is hash-sharded into. A bucket is a file and a task; a block has `block_rows`."""

    buckets: int
    block_rows: int

    @property
    def padding(self) -> float:
        """Approximate number of padding rows: half a block per bucket, because the size of a bucket is random."""
        return self.buckets * self.block_rows / 2 if self.buckets > 1 else 0.0

    @classmethod
    def of(cls, rows: int, *, block_rows: int, file_blocks: int, row_bytes: int, list_bytes: int) -> BlockPlan:
        """Plan blocks of at most `block_rows` rows so that little is padded.

        A file holds `file_blocks` blocks, or more where the table is large: up to `FILE_BYTES`, of no more rows than
        have `LIST_BYTES` of lists. A bucket's size is random (its rows are picked by a hash), so a table of several
        buckets keeps full blocks and spreads each bucket's rows evenly over as many as it needs; a table of one bucket
        shrinks its blocks to fit.

        Args:
            rows: Anchors.
            block_rows: Anchors of a block, at most.
            file_blocks: Fewest blocks of a file.
            row_bytes: Bytes of an anchor and its positives.
            list_bytes: Bytes of a row's list of neighbours.
        """
        largest = min(FILE_BYTES // row_bytes, LIST_BYTES // list_bytes) // block_rows
        file_blocks = max(file_blocks, min(largest, rows // (block_rows * _FILES)))
        buckets = max(1, round(rows / (block_rows * file_blocks)))
        if buckets == 1:
            block_rows = -(-rows // -(-rows // block_rows))
        return cls(buckets, block_rows)


@dataclass(frozen=True)
class BlockDraws:
    """The triplets of a block: ids of its anchors and positives, and its false-negative mask as pairs of positions.

    Shapes: anchors (B,), positives (B, m), mask (p,) as `false_negative_pairs` gives it, or None where no negatives
    will be drawn, weights (B,). Rows that pad the block to its size repeat others of the bucket and have weight 0.
    """

    anchors: Ids
    positives: Ids
    mask: NDArray[np.uint32] | None
    weights: NDArray[np.float32]


def draw_blocks(
    ids: Ids,
    neighbours: Ids,
    *,
    block_rows: int,
    draws: int,
    seed: tuple[int, ...],
    classes: Ids | None = None,
    negatives: bool = True,
) -> Iterator[BlockDraws]:
    """Split the rows of a bucket into blocks and sample their triplets.

    Runs on: executor. Pure; the same for the same rows in the same order. Memory: O(n * k), and one block.

    Args:
        ids: Rows of the bucket in random order, shape (n,).
        neighbours: Their neighbours, shape (n, k).
        block_rows: B, the size of every block.
        draws: m, positives of each anchor.
        seed: Seeds the draws.
        classes: Of the rows, shape (n,), when those of one class are all neighbours and not only those listed.
        negatives: Whether negatives will be drawn.

    Yields:
        The fewest blocks that hold the rows; each gets as many as the others, give or take one.

    Raises:
        InputError: if an anchor has no row in its block that is not its neighbour.
    """
    for number, members in enumerate(np.array_split(np.arange(len(ids)), -(-len(ids) // block_rows))):
        rng = np.random.default_rng([*seed, number])
        # Padding comes from the whole bucket, so that even a block of few rows offers negatives: from the rows before
        # and after the members, which follow one another.
        others, size = len(ids) - len(members) or len(ids), block_rows - len(members)
        padding = rng.choice(others, size=size, replace=size > others)
        padding += len(members) * ((padding >= members[0]) & (others < len(ids)))
        picked = np.concatenate([members, padding])
        anchors, neighbours_of_picked = ids[picked], neighbours[picked]
        positives = draw_positives(neighbours_of_picked, draws=draws, rng=rng)
        weights = (np.arange(block_rows) < len(members)).astype(np.float32)
        codes = None
        if negatives:
            codes = (
                false_negative_pairs(anchors, neighbours_of_picked)
                if classes is None
                else same_class_codes(classes[picked])
            )
        yield BlockDraws(anchors, positives, codes, weights)


def column_names(draws: int, negatives: bool = True) -> list[str]:
    """Return the names of a block's packed columns."""
    return ["anchor", "weight", *["near"] * negatives, *[f"positive_{i}" for i in range(draws)]]


def unpack_vectors(packed: bytes, block_rows: int, width: int, column: str) -> NDArray[np.float32]:
    """Return a packed column of a block as float32, shape (block_rows, width); a view.

    Raises:
        ArtifactError: if the bytes are not of that size.
    """
    return _unpack(packed, "<f4", block_rows, width, column).reshape(block_rows, width)


def unpack_false_negatives(packed: bytes, block_rows: int) -> NDArray[np.uint32]:
    """Return the packed column `near` of a block, shape (p,); a view.

    Raises:
        ArtifactError: if the codes are not sorted codes of pairs of the block's rows.
    """
    codes = np.frombuffer(packed[: len(packed) // 4 * 4], "<u4")
    sound = len(packed) % 4 == 0 and (codes[1:] > codes[:-1]).all()
    if not sound or (len(codes) and int(codes[-1]) >= block_rows**2):
        raise ArtifactError(
            f"triplet block column 'near' holds {len(packed)} bytes that are not pairs of {block_rows} rows; rebuild "
            "the stage: ivis-spark triplets --overwrite"
        )
    return codes


def _unpack(packed: bytes, dtype: str, block_rows: int, width: int, column: str) -> NDArray[Any]:
    if len(packed) != 4 * block_rows * width:
        raise ArtifactError(
            f"triplet block column {column!r} holds {len(packed)} bytes; {block_rows} rows x {width} of {dtype} are "
            f"{4 * block_rows * width}; rebuild the stage: ivis-spark triplets --overwrite"
        )
    return np.frombuffer(packed, dtype=dtype)
