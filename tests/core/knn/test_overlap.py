"""The choice of overlap and probes, by hand: cells and depths of a few rows and of their neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from ivis_spark.core.knn.overlap import (
    CUTS,
    OverlapChoice,
    ProbeChoice,
    Ranked,
    Truth,
    choose_overlap,
    choose_probes,
    count_ranks,
    depth_bins,
)

FAR = len(CUTS) - 1  # only an infinite cut takes it


def ranked(cells: list, bins: list) -> Ranked:
    return Ranked(np.array(cells, np.int32), np.array(bins, np.uint8))


# Two rows ask. Row 0 (cells 0, 1) has neighbours in 0, and in 1 with 0 behind. Row 1 (cell 1, then 2) has both in 2.
ASKING = ranked([[0, 1], [1, 2]], [[0, 2], [0, 3]])
NEAR = ranked([[[0, 1], [1, 0]], [[2, 1], [2, 0]]], [[[0, FAR], [0, 4]], [[0, 1], [0, FAR]]])
KEYS = np.array([[1, 2, 3], [1, 2, 3]], np.float32)


def choose(target: float, *, keys: np.ndarray = KEYS, most: int = 2, most_cut: float = np.inf) -> OverlapChoice:
    counts = count_ranks(ASKING.cells, ASKING.bins, 3)
    truth = Truth(NEAR, keys)
    return choose_overlap(counts, counts, ASKING, truth, target=target, most=most, most_cut=most_cut, dims=4, k=2)


def test_the_cheapest_overlap_that_reaches_the_target() -> None:
    """Alone, row 0 meets 1 of 2 and row 1 none: 1/4. With bin 1 row 1 meets its first; bin 2: row 0 both; 3: all."""
    assert (choose(-0.5).overlap, choose(-0.5).recall) == (1, 0.25)  # 1/4 less four standard errors
    three = choose(0.99)
    assert (three.overlap, three.cut, three.recall, three.copies) == (2, CUTS[3], 1.0, 2.0)
    assert three.cell_rows.tolist() == [1, 2, 1]


def test_rows_ask_at_home_where_lists_are_long_and_everywhere_where_rows_are_wide() -> None:
    """Neighbours lie 5 bins from the rows' cell, the rows 1 bin from theirs. Few rows are in bin 1, many in bin 5."""
    queries = ranked([[0, 1]] * 4, [[0, 1]] * 4)
    truth = Truth(ranked([[[1, 0], [1, 0]]] * 4, [[[0, 5], [0, 5]]] * 4), np.array([[1, 2, 3]] * 4, np.float32))
    counts = count_ranks(np.array([[0, 1]] * 10, np.int32), np.array([[0, 1]] + [[0, 5]] * 9, np.uint8), 2)
    for dims, k, ask_home, number, copies in ((4, 500, True, 5, 2.0), (100_000, 1, False, 1, 1.1)):
        choice = choose_overlap(counts, counts, queries, truth, target=0.9, most=2, most_cut=1.0, dims=dims, k=k)
        assert (choice.ask_home, choice.overlap, choice.cut) == (ask_home, 2, CUTS[number])
        assert (choice.recall, choice.copies) == (1.0, copies)


def test_limits_are_kept_and_the_best_is_taken_when_none_reaches() -> None:
    assert choose(0.99, most=1).recall == 0.25
    assert choose(0.99, most_cut=float(CUTS[2])).recall == pytest.approx(0.75)


def test_ties_with_the_last_neighbour_do_not_count() -> None:
    """Of row 0 the second ties with the third, which was left out: only the first counts. Of row 1 none does."""
    keys = np.array([[1, 2, 2], [5, 5, 5]], np.float32)
    truth = Truth(NEAR, keys)
    found = np.array([[True, False], [False, False]])
    assert truth.shares(found).tolist() == [1.0, 1.0]
    assert truth.shares(~found).tolist() == [0.0, 1.0]
    assert choose(0.99, keys=keys).overlap == 1


def test_probes_are_the_fewest_that_hold_the_neighbours() -> None:
    """Neighbours at home in 0 and 1, and in 2 and 2: one cell each brings 1/4, all cells of both rows everything."""
    truth = Truth(NEAR, KEYS)
    assert choose_probes(ASKING, truth, target=-0.5) == ProbeChoice(1, 0.0, 0.25)
    assert choose_probes(ASKING, truth, target=0.6) == ProbeChoice(2, pytest.approx(float(CUTS[3])), 1.0)
    lost = ranked([[0, 1], [1, 0]], [[0, 2], [0, 3]])
    assert choose_probes(lost, truth, target=0.9).recall == 0.5


def test_counts_by_hand() -> None:
    counts = count_ranks(ASKING.cells, ASKING.bins, 3)
    assert counts.shape == (2, len(CUTS), 3) and counts.sum() == 4
    assert counts[0, 0].tolist() == [1, 1, 0] and counts[1, 2, 1] == counts[1, 3, 2] == 1


def test_bins_are_the_smallest_cut_that_takes_a_depth() -> None:
    depths = np.array([0, 0.01, 0.04, 0.041, 2.5, np.inf], np.float32)
    assert depth_bins(depths).tolist() == [0, 1, 1, 2, FAR, FAR]
