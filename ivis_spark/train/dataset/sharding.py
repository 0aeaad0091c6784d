"""Which blocks each rank reads, and the shards of files that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ivis_spark.errors import ArtifactError


@dataclass(frozen=True)
class Part:
    """Blocks `first` to before `stop` of a file, in the order in which `shards_of` counts them."""

    name: str
    first: int
    stop: int


# File, shard, number of shards, and which blocks of each of the shard's row groups.
Shard = tuple[str, int, int, slice]


def deal(file_blocks: dict[str, int], rank: int, n_ranks: int, rng: np.random.Generator) -> list[Part]:
    """Return the parts of files that a rank reads: its stretch of all blocks, with the files in a new random order.

    All ranks must call it with generators of the same seed. Each gets the same number of blocks but for one; where
    blocks cannot be shared out evenly, the block at a border is read by both neighbours.
    """
    names = sorted(file_blocks)
    total = sum(file_blocks.values())
    first, stop = total * rank // n_ranks, -(-total * (rank + 1) // n_ranks)
    parts, start = [], 0
    for i in rng.permutation(len(names)):
        count = file_blocks[names[i]]
        part = Part(names[i], max(first - start, 0), min(stop - start, count))
        if part.first < part.stop:
            parts.append(part)
        start += count
    return parts


def shards_of(
    count: int, group_blocks: int, first: int, stop: int, shard: int = 0, shards: int = 1
) -> Iterator[tuple[int, int, slice]]:
    """Yield the shards of a file that hold its blocks `first` to before `stop`, and which blocks of each those are.

    A Petastorm reader takes every n-th row group, not a stretch of them, and opening one costs as much as reading
    some blocks. So blocks are counted in another order: those of the even row groups come before those of the odd
    ones, and so again in each half. Any stretch is a few shards then, all whole but for a row group at either end.

    Args:
        count: Blocks of the file.
        group_blocks: Blocks of a row group; the last may hold fewer.
        first: First block of the row groups `shard`, `shard + shards`, ...
        stop: First block after those that is not.
        shard: First of the row groups that this is about.
        shards: Distance of the others.

    Yields:
        `cur_shard` and `shard_count` for Petastorm, and a slice of each of their row groups.
    """
    row_groups = -(-count // group_blocks)

    def held_by(groups: range) -> int:
        return sum(min(group_blocks, count - group * group_blocks) for group in groups)

    groups = range(shard, row_groups, shards)
    held = held_by(groups)
    first, stop = max(first, 0), min(stop, held)
    if first >= stop:
        return
    if stop - first == held or len(groups) == 1:
        yield (shard, row_groups if len(groups) == 1 else shards, slice(first, stop))
        return
    even = held_by(groups[::2])
    yield from shards_of(count, group_blocks, first, stop, shard, 2 * shards)
    yield from shards_of(count, group_blocks, first - even, stop - even, shard + shards, 2 * shards)


def whole_and_cut(file_blocks: dict[str, int], group_blocks: int, parts: list[Part]) -> tuple[list[str], list[Shard]]:
    """Return the files that are read whole, and the shards of those that a border of ranks cuts."""
    whole, cut = [], []
    for part in parts:
        count = file_blocks[part.name]
        if part.stop - part.first == count:
            whole.append(part.name)
        else:
            cut += [(part.name, *shard) for shard in shards_of(count, group_blocks, part.first, part.stop)]
    return whole, cut


def row_groups_of(
    file_blocks: dict[str, int], group_blocks: int, parts: list[Part], *, seed: int
) -> Iterator[tuple[str, int, slice]]:
    """Yield file, row group and which of its blocks are read, in the order in which every reader reads them.

    First come the shards of files that are cut, then the row groups of whole files, shuffled as Petastorm does.
    """

    def groups(name: str) -> int:
        return -(-file_blocks[name] // group_blocks)

    whole, cut = whole_and_cut(file_blocks, group_blocks, parts)
    for name, shard, shards, kept in cut:
        for group in range(shard, groups(name), shards):
            yield name, group, kept
    ends = np.cumsum([groups(name) for name in whole], dtype=np.int64)
    for place in np.random.default_rng(seed).permutation(int(ends[-1]) if whole else 0):  # numbers: there may be many
        file = int(np.searchsorted(ends, place, side="right"))
        yield whole[file], int(place - ends[file] + groups(whole[file])), slice(None)


def too_few_row_groups(folder: str, name: str) -> ArtifactError:
    """Return the error of a file that was modified."""
    return ArtifactError(
        f"{folder}/{name} has fewer row groups than its blocks need; rebuild the stage: ivis-spark triplets --overwrite"
    )
