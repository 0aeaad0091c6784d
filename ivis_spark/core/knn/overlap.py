"""How far cells must overlap: the recall of every choice is known before any cell is searched.

A true neighbour is found when it and the row share a cell. So the cells of a sample of rows and of their exact
neighbours give the recall of each (overlap, cut), and a count of the rows by rank and depth gives its cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ivis_spark.core.knn.metrics import Floats, Ints

CUTS: Floats = np.array(
    [0, 0.04, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 1, 2, np.inf], dtype=np.float32
)
# Seconds of a core, from profiles of MNIST (k=15) and cytometry (k=150):
_COLUMN_S = 1e-8  # a key made and ranked,
_VALUE_S = 3e-11  # a product in it,
_OWN_VALUE_S = 2e-11  # one where all rows of a cell ask, so that BLAS makes half of them,
_ENTRY_S = 1.7e-7  # an entry of a list picked, sorted, carried and merged,
_ENTRY_VALUE_S = 1.5e-9  # a difference in its exact key,
_BYTE_S = 6e-9  # a byte of a copy carried to its cell
# Standard errors: the cheapest of many choices owes some of its recall on the sample to chance, and the lower end of
# the interval that other rows measure must still reach the target.
_MARGIN = 4


def depth_bins(depths: Floats) -> npt.NDArray[np.uint8]:
    """Return for each depth the number of the smallest cut that takes it."""
    return np.searchsorted(CUTS, depths, side="left").astype(np.uint8)


def count_ranks(cells: npt.NDArray[np.int32], bins: npt.NDArray[np.uint8], n_cells: int) -> Ints:
    """Count rows by rank, bin and cell.

    Args:
        cells: Shape (n, w), as `Router.rank` returns them.
        bins: Shape (n, w), of their depths.
        n_cells: Cells of the router.

    Returns:
        int64, shape (w, len(CUTS), n_cells).
    """
    width = cells.shape[1]
    flat = (np.arange(width) * len(CUTS) + bins) * n_cells + cells
    counts = np.bincount(flat.reshape(-1), minlength=width * len(CUTS) * n_cells)
    return counts.reshape(width, len(CUTS), n_cells)


@dataclass(frozen=True)
class Ranked:
    """Cells and bins of some rows: int32 and uint8 of one shape (..., w)."""

    cells: npt.NDArray[np.int32]
    bins: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Truth:
    """Exact neighbours of sampled rows.

    Attributes:
        ranked: Cells and bins of the k nearest of each, shape (q, k, w).
        keys: float32, shape (q, k + 1): of one neighbour more than k. Where it ties with the last ones, which of them
            are among the k is chance, so only the nearer ones count.
    """

    ranked: Ranked
    keys: Floats

    def shares(self, found: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Return for each row the share of its neighbours, of those that count, that was found; 1 if none does."""
        counted = self.keys[:, :-1] < self.keys[:, -1:]
        numbers = counted.sum(axis=1)
        return np.where(numbers > 0, (found & counted).sum(axis=1) / np.maximum(numbers, 1), 1.0)


@dataclass(frozen=True)
class OverlapChoice:
    """An overlap and what it brings.

    Attributes:
        overlap: Most cells of a row.
        cut: Depth behind the border up to which a further cell is taken (see `Router.rank`).
        recall: Share of true neighbours that share a cell with their row, on the sample.
        error: Standard error of that share.
        copies: Mean cells of a row.
        cell_rows: int64, shape (n_cells,): rows of each cell, those that overlap into it included.
        lists: Mean cells that a row asks in: each gives a list of neighbours.
        ask_home: Whether a row asks in its nearest cell alone, and only others come to it; else it asks in all its
            cells. That takes more copies and makes one list a row: cheap for narrow rows and long lists.
    """

    overlap: int
    cut: float
    recall: float
    error: float
    copies: float
    cell_rows: Ints
    lists: float = 1.0
    ask_home: bool = False


def choose_overlap(
    data_counts: Ints,
    query_counts: Ints,
    queries: Ranked,
    truth: Truth,
    *,
    target: float,
    most: int,
    most_cut: float,
    dims: int,
    k: int,
) -> OverlapChoice:
    """Pick the cheapest overlap whose recall on the sample is above `target` by four standard errors.

    Rows ask in their nearest cell alone, or in all their cells, whichever is cheaper.

    Args:
        data_counts: Of all rows as data, from `count_ranks`.
        query_counts: Of all rows as queries; the same array unless the metric is asymmetric.
        queries: Of the sampled rows, shape (q, w).
        truth: Their exact neighbours.
        target: Recall wanted.
        most: Largest overlap allowed.
        most_cut: Largest cut allowed.
        dims: Features of a row.
        k: Neighbours of a row.

    Returns:
        The choice; the one with the highest recall if none reaches the target.
    """
    n_rows = int(query_counts[0].sum())
    best: tuple[float, OverlapChoice] | None = None
    fallback: OverlapChoice | None = None
    for overlap, ask_home in _ways_to_ask(min(most, queries.cells.shape[1])):
        least_bin = _least_bins(queries, truth, 1 if ask_home else overlap, overlap)
        for number, cut in enumerate(CUTS):
            if number > 0 and (cut > most_cut or overlap == 1):
                break
            recall, error = _mean(truth.shares(least_bin <= number))
            data = data_counts[:overlap, : number + 1].sum(axis=(0, 1))
            asked = (query_counts[:1] if ask_home else query_counts[:overlap, : number + 1]).sum(axis=(0, 1))
            copies, lists = float(data.sum() / n_rows), float(asked.sum() / n_rows)
            choice = OverlapChoice(overlap, float(cut), recall, error, copies, data, lists, ask_home)
            keys = float((data.astype(np.float64) * asked).sum() / n_rows)
            seconds = keys * (_COLUMN_S + (_VALUE_S if ask_home else _OWN_VALUE_S) * dims)
            seconds += copies * 4 * dims * _BYTE_S + lists * k * (_ENTRY_S + _ENTRY_VALUE_S * dims)
            if _reaches(recall, error, target) and (best is None or seconds < best[0]):
                best = (seconds, choice)
            if fallback is None or recall > fallback.recall:
                fallback = choice
    if best is not None:
        return best[1]
    if fallback is None:
        raise ValueError("no overlap to choose from")
    return fallback


@dataclass(frozen=True)
class ProbeChoice:
    """In how many cells a row that is not in the index is searched, and what that brings.

    Attributes:
        cells: Most cells; cut: depth up to which a further one is taken, None if any is.
        recall: Share of true neighbours whose own cell is among them, on the sample.
    """

    cells: int
    cut: float | None
    recall: float

    def measured(self, queries: Ranked, truth: Truth) -> ProbeChoice:
        """Return it with the recall that it has on other rows than it was chosen by."""
        place, bins = _home_places(queries, truth)
        cut = np.inf if self.cut is None else self.cut
        recall, _ = _mean(truth.shares((place < self.cells) & (bins <= depth_bins(np.array([cut], np.float32)))))
        return ProbeChoice(self.cells, self.cut, recall)


def choose_probes(queries: Ranked, truth: Truth, *, target: float) -> ProbeChoice:
    """Pick the fewest cells that hold, as their nearest, a share `target` of the neighbours; most of them if none do.

    Args:
        queries: Of the sampled rows, shape (q, w).
        truth: Their exact neighbours.
        target: Recall wanted.
    """
    place, bins = _home_places(queries, truth)
    best: tuple[bool, float, ProbeChoice] | None = None
    for probes in range(1, queries.cells.shape[1] + 1):
        for number, cut in enumerate(CUTS):
            recall, error = _mean(truth.shares((place < probes) & (bins <= number)))
            reached = _reaches(recall, error, target)
            searched = (queries.bins[:, :probes] <= number).sum(axis=1).mean()
            better = best is None or (reached, -searched if reached else recall) > best[:2]
            if better:
                chosen = ProbeChoice(probes, float(cut) if np.isfinite(cut) else None, recall)
                best = (reached, -searched if reached else recall, chosen)
    if best is None:
        raise ValueError("no cells to choose from")
    return best[2]


def _home_places(queries: Ranked, truth: Truth) -> tuple[Ints, npt.NDArray[np.uint8]]:
    """Return the rank, 255 if it has none, and bin that the nearest cell of each neighbour has for its row."""
    home = truth.ranked.cells[:, :, 0]
    match = queries.cells[:, :, None] == home[:, None, :]
    place = np.where(match.any(axis=1), match.argmax(axis=1), 255)
    return place, np.take_along_axis(queries.bins, np.minimum(place, queries.bins.shape[1] - 1), axis=1)


def _ways_to_ask(most: int) -> Iterator[tuple[int, bool]]:
    """Yield each (overlap, ask_home); in one cell alone a row has nowhere else to ask."""
    for overlap in range(1, most + 1):
        yield overlap, False
        if overlap > 1:
            yield overlap, True


def _mean(shares: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))


def _reaches(recall: float, error: float, target: float) -> bool:
    return recall - _MARGIN * error >= target


def _least_bins(queries: Ranked, truth: Truth, asked: int, overlap: int) -> npt.NDArray[np.uint8]:
    """Return for each (query, neighbour) the smallest bin at which they share a cell; 255 if at none.

    A query looks into its first `asked` cells, a neighbour lies in its first `overlap`.
    """
    cells, bins = truth.ranked.cells, truth.ranked.bins
    least = np.full(cells.shape[:2], 255, dtype=np.uint8)
    for mine in range(asked):
        for theirs in range(overlap):
            same = queries.cells[:, mine, None] == cells[:, :, theirs]
            needed = np.maximum(queries.bins[:, mine, None], bins[:, :, theirs])
            np.minimum(least, np.where(same, needed, 255), out=least)
    return least
