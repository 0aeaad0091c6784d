"""Which row groups a rank reads: of a table of 1e9 rows there are half a million."""

from __future__ import annotations

import tracemalloc

import numpy as np

from ivis_spark.train.dataset.sharding import Part, row_groups_of


def test_whole_files_are_shuffled_as_pairs_would_be() -> None:
    counts = {"a": 5, "b": 1, "c": 8}
    pairs = [(name, group) for name in counts for group in range(-(-counts[name] // 2))]
    order = np.random.default_rng(3).permutation(len(pairs))
    found = list(row_groups_of(counts, 2, [Part(name, 0, count) for name, count in counts.items()], seed=3))
    assert [(name, group) for name, group, _ in found] == [pairs[i] for i in order]
    assert all(kept == slice(None) for *_, kept in found)
    assert list(row_groups_of(counts, 2, [], seed=3)) == []


def test_half_a_million_row_groups_are_numbers() -> None:
    counts = {f"bucket-{number:06d}": 200 for number in range(4_880)}
    parts = [Part(name, 0, 200) for name in counts]
    tracemalloc.start()
    try:
        next(row_groups_of(counts, 2, parts, seed=0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6
