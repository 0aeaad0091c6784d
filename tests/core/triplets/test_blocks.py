"""Blocks hold every row once, repeat some as padding of weight 0, and draw triplets that are right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivis_spark.core.triplets.blocks import (
    FILE_BYTES,
    LIST_BYTES,
    BlockPlan,
    draw_blocks,
    unpack_false_negatives,
    unpack_vectors,
)
from ivis_spark.core.triplets.sampling import draw_batch_negatives, false_negatives_in_block
from ivis_spark.errors import ArtifactError, InputError


def ring(n: int, k: int) -> np.ndarray:
    return (np.arange(n)[:, None] + np.arange(1, k + 1)) % n


@given(n=st.integers(30, 300), block_rows=st.integers(20, 64), draws=st.integers(1, 5), seed=st.integers(0, 9))
def test_every_row_is_an_anchor_once(n: int, block_rows: int, draws: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(n)
    neighbours = ring(n, 3)[order]
    blocks = list(draw_blocks(order, neighbours, block_rows=block_rows, draws=draws, seed=(seed, 0)))
    assert len(blocks) == -(-n // block_rows)
    real = np.concatenate([block.anchors[block.weights == 1] for block in blocks])
    assert sorted(real) == list(range(n))
    sizes = [int(block.weights.sum()) for block in blocks]
    assert max(sizes) - min(sizes) <= 1
    for block in blocks:
        assert len(block.anchors) == block_rows
        for draw in range(draws):
            gap = (block.positives[:, draw] - block.anchors) % n
            assert ((gap >= 1) & (gap <= 3)).all()
            near, rng = false_negatives_in_block(block.mask, np.arange(block_rows)), np.random.default_rng([seed, draw])
            negatives = draw_batch_negatives(near, block_rows, batch_size=block_rows, rng=rng)[:, 0]
            gap = (block.anchors[negatives] - block.anchors) % n
            assert (gap > 3).all()


def test_draws_depend_on_the_seed_alone() -> None:
    first, again, other = (
        list(draw_blocks(np.arange(50), ring(50, 4), block_rows=25, draws=2, seed=seed))[1]
        for seed in ((1, 2), (1, 2), (1, 3))
    )
    assert np.array_equal(first.positives, again.positives) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.positives, other.positives)


def test_no_negative_is_an_error() -> None:
    with pytest.raises(InputError, match="lower k"):
        list(draw_blocks(np.arange(5), ring(5, 4), block_rows=5, draws=1, seed=(0,)))


@pytest.mark.parametrize(
    ("rows", "buckets", "block_rows"), [(10, 1, 10), (1797, 1, 899), (1024, 1, 1024), (70_000, 9, 1024)]
)
def test_plan_pads_little(rows: int, buckets: int, block_rows: int) -> None:
    plan = BlockPlan.of(rows, block_rows=1024, file_blocks=8, row_bytes=160, list_bytes=120)
    assert plan == BlockPlan(buckets, block_rows)


@pytest.mark.parametrize(
    ("rows", "dims", "k", "files"),
    [
        (100_000, 128, 15, 12),  # as many as file_blocks makes
        (5_000_000, 8, 15, 64),  # of 12 MiB: fewer would be too few to shuffle
        (5_000_000, 784, 15, 305),
        (10**9, 128, 15, 9574),
        (10**9, 1, 150, 9042),  # by the bytes of lists
        (10**8, 100_000, 15, 12_207),  # file_blocks of very wide rows
    ],
)
def test_files_are_sized_by_bytes(rows: int, dims: int, k: int, files: int) -> None:
    """Files, each a task, of 256 MiB at most unless `file_blocks` blocks are more, and 128 MiB of lists."""
    plan = BlockPlan.of(rows, block_rows=1024, file_blocks=8, row_bytes=5 * 4 * dims, list_bytes=8 * k)
    assert plan.buckets == pytest.approx(files, rel=0.03)
    held = rows / plan.buckets
    assert held * 20 * dims < 1.03 * FILE_BYTES or held < 1.01 * 8 * 1024
    assert held * 8 * k < 1.03 * LIST_BYTES


def test_padding_comes_from_outside_the_block() -> None:
    """Where there are rows enough: those of the block itself would be its own negatives."""
    for block in draw_blocks(np.arange(70), ring(70, 2), block_rows=24, draws=1, seed=(0,)):
        real = block.weights == 1
        assert not set(block.anchors[~real]) & set(block.anchors[real])
        assert len(set(block.anchors)) == 24


def test_unpack_checks_sizes_and_positions() -> None:
    vectors = np.arange(6, dtype="<f4")
    assert np.array_equal(unpack_vectors(vectors.tobytes(), 2, 3, "anchor"), vectors.reshape(2, 3))
    with pytest.raises(ArtifactError, match=r"'anchor' holds 24 bytes; 2 rows x 4 .* are 32"):
        unpack_vectors(vectors.tobytes(), 2, 4, "anchor")
    assert np.array_equal(unpack_false_negatives(np.array([1, 2], "<u4").tobytes(), 2), [1, 2])
    for wrong in (np.array([1, 4], "<u4").tobytes(), np.array([2, 1], "<u4").tobytes(), b"123"):
        with pytest.raises(ArtifactError, match=r"'near' holds .* not pairs of 2 rows"):
            unpack_false_negatives(wrong, 2)
