"""Blocks dealt to ranks, and read back in batches."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from triplet_blocks import write_blocks  # noqa: E402

from ivis_spark.errors import InputError  # noqa: E402
from ivis_spark.train.dataset.block_dataset import Joined, block_dataset  # noqa: E402
from ivis_spark.train.dataset.blocks import Position, TripletBlocks  # noqa: E402
from ivis_spark.train.dataset.sharding import deal, shards_of  # noqa: E402


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 7), st.integers(0, 1000))
def test_ranks_are_dealt_equal_shares_of_all_blocks(counts: list[int], n_ranks: int, seed: int) -> None:
    files = {f"part-{i}": count for i, count in enumerate(counts)}
    total = sum(counts)
    seen: dict[tuple[str, int], int] = {}
    for rank in range(n_ranks):
        parts = deal(files, rank, n_ranks, np.random.default_rng(seed))
        blocks = [(part.name, i) for part in parts for i in range(part.first, part.stop)]
        assert len(set(blocks)) == len(blocks) and total / n_ranks <= len(blocks) < total / n_ranks + 2
        for block in blocks:
            seen[block] = seen.get(block, 0) + 1
    assert len(seen) == total
    if total % n_ranks == 0:
        assert set(seen.values()) == {1}


@given(st.integers(1, 70), st.integers(1, 9), st.lists(st.integers(0, 70), max_size=4))
def test_shards_of_the_stretches_of_a_file_hold_each_block_once(count: int, group: int, borders: list[int]) -> None:
    stops = sorted({min(border, count) for border in borders} | {count})
    row_groups = -(-count // group)
    seen: list[int] = []
    for first, stop in zip([0, *stops], stops, strict=False):
        shards = list(shards_of(count, group, first, stop))
        found = []
        for shard, of, kept in shards:
            assert of <= row_groups, "Petastorm refuses more shards than row groups"
            for number in range(shard, row_groups, of):
                found += list(range(number * group, min((number + 1) * group, count)))[kept]
        assert len(found) == stop - first
        assert len(shards) <= 2 * row_groups.bit_length()
        seen += found
    assert sorted(seen) == list(range(count))


def read(
    blocks: TripletBlocks, batches: int, *, batch_size: int = 64, seed: int = 3, **position: int
) -> list[np.ndarray]:
    """Return the anchors of some batches, by their number; -1 for padding."""
    return [anchors for anchors, _ in read_both(blocks, batches, batch_size=batch_size, seed=seed, **position)]


def read_both(
    blocks: TripletBlocks, batches: int, *, batch_size: int = 64, seed: int = 3, **position: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the anchors as `read`, and the places of their negatives."""
    settings = {"batch_size": batch_size, "random_state": seed, "negatives": 3}
    dataset = block_dataset(blocks, **settings, labels=True, position=Position(**position))
    found = []
    for batch in dataset.take(batches).as_numpy_iterator():
        anchors = batch["stacked"][: len(batch["weight"])]
        numbers = np.round(anchors[:, -1] * 1000).astype(int)
        np.testing.assert_array_equal(batch["label"], numbers % 3)
        found.append((np.where(batch["weight"] > 0, numbers, -1), batch["negative"]))
    return found


@pytest.mark.slow
def test_ranks_read_all_blocks_in_equal_steps_and_deal_them_anew(tmp_path: Path) -> None:
    """12 blocks of 32 rows over 3 ranks, in files that the borders of ranks cut through row groups."""
    blocks = write_blocks(tmp_path, [3, 5, 4])
    steps = blocks.steps_per_epoch(96)
    assert steps == 4
    wanted = set(range(12 * 32)) - {95, 255, 383}  # the padding
    shares = []
    for epoch in (0, 1):
        ranks = [
            np.concatenate(read(blocks, steps, batch_size=96, rank=rank, n_ranks=3, epoch=epoch)) for rank in range(3)
        ]
        assert [len(rank) for rank in ranks] == [128] * 3
        together = np.concatenate(ranks)
        assert sorted(together[together >= 0]) == sorted(wanted)
        shares.append([frozenset(rank.tolist()) for rank in ranks])
    assert all(a != b for a, b in zip(*shares, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("labels", [False, True])
def test_pairs_need_no_list_of_near_rows_and_are_exchanged_unless_labelled(tmp_path: Path, labels: bool) -> None:
    """Batches of 48 are cut across blocks of 32, whose columns `near` are not there to be read."""
    blocks = write_blocks(tmp_path, [3, 3], negatives=False)
    dataset = block_dataset(blocks, batch_size=48, random_state=3, negatives=0, labels=labels)
    numbers, first = np.arange(192) / np.float32(1000), []
    for batch in dataset.take(2 * blocks.steps_per_epoch(48)).as_numpy_iterator():
        pairs = batch["stacked"].reshape(2, 48, blocks.dims)
        of_anchor = np.isclose(pairs[:, :, -1:], numbers, atol=1e-7, rtol=0).any(axis=2)  # of positives it is noise
        assert of_anchor.any(axis=0).all()
        first.append(of_anchor[0].mean())
        anchors, positives = (np.where(of_anchor[one][:, None], *pairs) for one in (0, 1))
        clusters = np.round(anchors[:, -1] * 1000).astype(int) % 3
        centres = np.eye(3, blocks.dims)[clusters] * 4
        assert np.abs((positives - centres)[:, :3]).max() < 3
    assert np.mean(first) == 1 if labels else 0.35 < np.mean(first) < 0.65


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [64, 48, 20])
def test_negatives_are_anchors_of_the_batch_and_not_near(tmp_path: Path, batch_size: int) -> None:
    """Batches of 48 and of 20 are cut across blocks of 32; rows 2i and 2i + 1 are near one another."""
    blocks = write_blocks(tmp_path, [3, 3])
    dataset = block_dataset(blocks, batch_size=batch_size, random_state=3, negatives=4)
    drawn = set()
    for batch in dataset.take(2 * blocks.steps_per_epoch(batch_size)).as_numpy_iterator():
        anchors, _ = batch["stacked"].reshape(2, batch_size, blocks.dims)
        numbers = np.round(anchors[:, -1] * 1000).astype(int)
        assert batch["negative"].shape == (batch_size, 4)
        for row in np.flatnonzero(batch["negative"][:, 0] >= 0):
            found = numbers[batch["negative"][row]]
            assert numbers[row] // 2 not in found // 2
            drawn.update(found.tolist())
    assert len(drawn) > 150  # of 192 rows


@pytest.mark.slow
def test_reading_begins_anywhere(tmp_path: Path) -> None:
    blocks = write_blocks(tmp_path, [3, 5])
    for position in ({}, {"rank": 1, "n_ranks": 2}):
        whole = read_both(blocks, 12, **position)  # 4 batches an epoch
        for epoch, step in ((0, 1), (1, 0), (1, 3), (2, 2)):
            rest = read_both(blocks, 12 - 4 * epoch - step, **position, epoch=epoch, step=step)
            assert len(rest) == 12 - 4 * epoch - step
            for mine, wanted in zip(rest, whole[4 * epoch + step :], strict=True):
                np.testing.assert_array_equal(mine[0], wanted[0])
                np.testing.assert_array_equal(mine[1], wanted[1])
        epochs = [np.concatenate([anchors for anchors, _ in whole[i : i + 4]]).tolist() for i in (0, 4, 8)]
        assert all(a != b for a, b in itertools.combinations(epochs, 2))


def test_too_little_for_all_ranks_is_refused_before_they_start(tmp_path: Path) -> None:
    blocks = write_blocks(tmp_path, [3, 5])
    assert blocks.row_groups == 2 + 3
    blocks.check_ranks(5, 250)
    with pytest.raises(InputError, match=r"has 5 Parquet row groups; train.num_ranks=6 .*triplets.group_blocks=1"):
        blocks.check_ranks(6, 60)
    with pytest.raises(InputError, match=r"batch_size=3 over train.num_ranks=2 .* pass at least 4"):
        blocks.check_ranks(2, 3)
    blocks.check_ranks(2, 2, negatives=False)
    with pytest.raises(InputError, match=r"256 triplets per epoch; train.batch_size=300 .*multiple of 2"):
        blocks.check_ranks(2, 300)


@pytest.mark.slow
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_shard_shorter_than_the_manifest_says_is_an_error_not_a_wait(tmp_path: Path, n_ranks: int) -> None:
    """Rank 1 of 2 is dealt the end of a file that lost its end."""
    blocks = write_blocks(tmp_path, [3])
    claimed = dataclasses.replace(blocks, file_blocks={"part-0.parquet": 5})
    with pytest.raises(
        tf.errors.OpError, match=r"ArtifactError: .*(\d of \d triplet blocks were read|fewer row groups)"
    ):
        read(claimed, claimed.steps_per_epoch(32), batch_size=32, n_ranks=n_ranks, rank=n_ranks - 1)


def test_memory_of_rows_is_used_again_only_when_nothing_looks_at_it() -> None:
    joined, parts = Joined(), [np.full((3, 2), 7, np.float32)]
    first = joined.join(parts)
    position, part = first.ctypes.data, first[1:]
    assert position % 64 == 0 and joined.join(parts).ctypes.data != position
    del first
    assert joined.join(parts).ctypes.data != position
    np.testing.assert_array_equal(part, 7)
    del part
    places = {joined.join(parts).ctypes.data for _ in range(3)}
    assert position in places and len(places) == 1
    large = joined.join([np.zeros((100, 2), np.float32)])
    assert large.shape == (100, 2) and large.ctypes.data % 64 == 0


@pytest.mark.slow
def test_memory_is_flat_over_epochs(tmp_path: Path) -> None:
    """20 MB an epoch: one that was kept would show."""
    import psutil

    blocks = write_blocks(tmp_path, [8] * 8, rows=512, dims=80)
    steps = blocks.steps_per_epoch(512)
    batches = iter(block_dataset(blocks, batch_size=512, random_state=0))
    process, sizes = psutil.Process(), []
    for _ in range(24):
        for _ in range(steps):
            next(batches)
        sizes.append(process.memory_info().rss / 1e6)
    assert max(sizes[12:]) - max(sizes[4:12]) < 60
