"""Nearest neighbours of all rows: the pieces that Spark's tasks and one process share, and the latter's driver.

Lists of neighbours are (ids, keys) of shape (rows, k), nearest first; missing ones have id `NO_ID`
and key infinity.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.index import CellIndex, ExactIndex, choose_backend, make_index
from ivis_spark.core.knn.merge import NO_ID, merge_top_k, without_self
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.overlap import OverlapChoice, Ranked, Truth, choose_overlap, count_ranks, depth_bins
from ivis_spark.core.knn.quantiser import Router, hash_ids, learn_router, refine, sample_size
from ivis_spark.core.knn.recall import check_recall, recall_at_k
from ivis_spark.errors import InputError, IvisError

log = logging.getLogger(__name__)

SAMPLE_BYTES = 64 << 20
ONE_BLOCK_ROWS = 4096  # up to here one exact block is faster than any routing
_REFINE_ROUNDS = 4
_EXACT_ROWS = 8192
_ASKED_ROWS = 4096


def check_k(k: int, n_rows: int) -> None:
    """Check that every row can have k neighbours.

    Raises:
        InputError: if not; names k and the number of rows.
    """
    if k >= n_rows:
        raise InputError(
            f"neighbours.k={k} must be less than the number of rows, {n_rows}: lower neighbours.k"
            + (f" to at most {n_rows - 1}" if n_rows > 1 else "")
            + " or pass more rows"
        )


def all_neighbours(X: Floats, config: NeighboursConfig, *, random_state: int) -> tuple[Ints, Floats]:
    """Find the k nearest other rows of every row, in this process.

    Args:
        X: float32, shape (n, d), finite.
        config: k, metric, index, recall wanted.
        random_state: Seed; the same seed gives the same result.

    Returns:
        ids int64 (n, k) and distances float32 (n, k), nearest first, the row itself excluded, ties by id. Distances
        are those of Annoy (see `core.spaces`), computed exactly.

    Raises:
        InputError: if k is not less than n.
        IvisError: if the recall wanted is not reached.
    """
    X = np.ascontiguousarray(X, dtype=np.float32)
    check_k(config.k, len(X))
    space, ids = Space(config.metric), np.arange(len(X))
    if len(X) <= max(ONE_BLOCK_ROWS, 2 * config.k):
        index = make_index(
            "annoy" if config.backend == "annoy" else "exact",
            X,
            config.metric,
            n_trees=config.n_trees,
            search_k=config.search_k,
            seed=random_state,
        )
        parts = list(search_own(index, ids, X, np.ones(len(X), bool), config.k))
        keys = np.concatenate([part[2] for part in parts])
        return np.concatenate([part[1] for part in parts]), space.distances(keys)
    found, keys = _search_by_cells(X, ids, config, random_state)
    return found, space.distances(keys)


def _search_by_cells(X: Floats, ids: Ints, config: NeighboursConfig, random_state: int) -> tuple[Ints, Floats]:
    limits = cell_limits(config)
    draw = np.argsort(hash_ids(ids, random_state), kind="stable")
    count = sample_rows(config, len(X))
    measured, chosen_by, rest = np.sort(draw[:count]), np.sort(draw[count : 2 * count]), draw[2 * count :]
    size = sample_size(len(X), limits.most, 4 * X.shape[1], SAMPLE_BYTES)
    router = learn_router(
        X[rest[:size]],
        len(X),
        config.metric,
        max_cell_rows=limits.most,
        min_cell_rows=limits.least,
        random_state=random_state,
    )
    router, data = _settle(router, X, ids, rest, config, random_state)
    as_queries = data
    if Space(config.metric).asymmetric:
        as_queries = rank_rows(router, X, ids, config, as_queries=True)
    true_ids, true_keys = exact_neighbours(X[chosen_by], X, config.k + 1, config.metric, own=chosen_by)
    near = np.maximum(true_ids[:, : config.k], 0)
    choice = choose_overlap(
        count_ranks(data.cells, data.bins, router.n_cells),
        count_ranks(as_queries.cells, as_queries.bins, router.n_cells),
        Ranked(as_queries.cells[chosen_by], as_queries.bins[chosen_by]),
        Truth(Ranked(data.cells[near], data.bins[near]), true_keys),
        target=config.target_recall,
        most=config.overlap,
        most_cut=config.overlap_cut,
        dims=X.shape[1],
        k=config.k,
    )
    picked = choose_backend(
        config.metric,
        dims=X.shape[1],
        cell_rows=int(np.median(choice.cell_rows)),
        k=config.k,
        n_trees=config.n_trees,
        search_k=config.search_k,
        requested=config.backend,
    )
    log.info("%d cells, %s index: %s", router.n_cells, picked.backend, picked.reason)
    found, keys = _search_all(X, ids, (data, as_queries), choice, picked.backend, config, random_state)
    _, true_keys = exact_neighbours(X[measured], X, config.k, config.metric, own=measured)
    check_recall(recall_at_k(keys[measured], true_keys, n_rows=len(X)), config.target_recall, remedy(choice))
    return found, keys


def sample_rows(config: NeighboursConfig, n_rows: int) -> int:
    """Return the rows that choose the overlap, and as many others that measure it; half are left to learn from."""
    return min(config.recall_sample, n_rows // 4)


def remedy(choice: OverlapChoice) -> str:
    """Return what to change where the recall is too low."""
    return (
        f"A row is searched in up to {choice.overlap} cells: raise neighbours.overlap, neighbours.overlap_cut or "
        "neighbours.max_cell_rows (for annoy also neighbours.n_trees or neighbours.search_k)"
    )


def _settle(
    router: Router, X: Floats, ids: Ints, draw: Ints, config: NeighboursConfig, random_state: int
) -> tuple[Router, Ranked]:
    """Mend the router until every cell holds its share of the rows; return it and the cells of every row."""
    limits = cell_limits(config)
    for attempt in range(1_000_000):
        data = rank_rows(router, X, ids, config)
        counts = np.bincount(data.cells[:, 0], minlength=router.n_cells)
        heavy = counts[data.cells[draw, 0]] > limits.most
        size = sample_size(int(heavy.sum()), limits.most, 4 * X.shape[1], SAMPLE_BYTES) if heavy.any() else 0
        mended = refine(
            router,
            counts,
            X[draw[heavy][:size]],
            max_cell_rows=limits.most,
            min_cell_rows=limits.least,
            random_state=random_state + attempt,
            last=attempt >= _REFINE_ROUNDS,
        )
        if mended is None or (attempt > _REFINE_ROUNDS and counts.min() > config.k):
            break
        router = mended
    return router, data


def _search_all(
    X: Floats,
    ids: Ints,
    ranked: tuple[Ranked, Ranked],
    choice: OverlapChoice,
    backend: str,
    config: NeighboursConfig,
    random_state: int,
) -> tuple[Ints, Floats]:
    """Search every cell, some at a time, and merge."""
    data_rows, data_starts = _rows_by_cell(ranked[0], choice)
    asks = dataclasses.replace(choice, overlap=1) if choice.ask_home else choice
    query_rows, query_starts = _rows_by_cell(ranked[1], asks)

    symmetric = ranked[0] is ranked[1]

    def search(cell: int) -> tuple[Ints, Ints, Floats]:
        inside = data_rows[data_starts[cell] : data_starts[cell + 1]]
        asking = query_rows[query_starts[cell] : query_starts[cell + 1]]
        index = make_index(
            backend,
            X[inside],
            config.metric,
            n_trees=config.n_trees,
            search_k=config.search_k,
            seed=cell_seed(random_state, cell),
        )
        if not symmetric:
            return asking, *search_cell(index, inside, X[asking], asking, config.k)
        parts = list(search_own(index, inside, X[inside], np.isin(inside, asking), config.k))
        return asking, np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])

    with _blas_threads(1) as workers, ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(search, range(len(data_starts) - 1)))
    rows = np.concatenate([part[0] for part in parts])
    all_ids, all_keys = np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])
    del parts
    merged, found, keys = merge_top_k(rows, all_ids, all_keys, config.k)
    if len(merged) != len(X) or (found == NO_ID).any():
        raise IvisError(f"a row has fewer than neighbours.k={config.k} candidates; raise neighbours.max_cell_rows")
    return found, keys


def _rows_by_cell(ranked: Ranked, choice: OverlapChoice) -> tuple[Ints, Ints]:
    """Return row numbers sorted by cell then row, and where each cell starts."""
    taken = ranked.bins[:, : choice.overlap] <= depth_bins(np.array([choice.cut], np.float32))
    rows, place = np.nonzero(taken)
    cells = ranked.cells[rows, place]
    order = np.argsort(cells, kind="stable")
    return rows[order], np.searchsorted(cells[order], np.arange(len(choice.cell_rows) + 1))


@dataclass(frozen=True)
class CellLimits:
    """Rows that may call a cell their nearest: at most, and at least."""

    most: int
    least: int


def cell_limits(config: NeighboursConfig) -> CellLimits:
    """Return the limits of a configuration: a cell must hold more than k rows, whatever the settings."""
    most = max(config.max_cell_rows, 4 * (config.k + 1))
    return CellLimits(most, max(config.k + 1, most // 16))


def cell_seed(random_state: int, cell: int) -> int:
    """Return the seed of a cell's index."""
    return int(hash_ids(np.array([cell]), random_state)[0] >> np.uint64(33))


def rank_rows(router: Router, X: Floats, ids: Ints, config: NeighboursConfig, *, as_queries: bool = False) -> Ranked:
    """Return the cells that each row could be searched in, with the bins of their depths."""
    cells, depths = router.rank(X, ids, config.overlap, as_queries=as_queries)
    return Ranked(cells, depth_bins(depths))


def search_cell(index: CellIndex, cell_ids: Ints, Q: Floats, query_ids: Ints, k: int) -> tuple[Ints, Floats]:
    """Return the neighbours of rows inside one cell, themselves left out.

    Args:
        index: Index of the cell's rows.
        cell_ids: int64, shape (n,), ascending: their ids.
        Q: Rows that ask, shape (q, d).
        query_ids: int64, shape (q,): their ids.
        k: Neighbours wanted; a cell with fewer rows gives what it has.

    Returns:
        ids int64 (q, k) and keys float32 (q, k).
    """
    width = min(k + 1, len(cell_ids))
    numbers, keys = index.query(Q, width)
    return without_self(cell_ids[numbers], keys, query_ids, k)


def search_own(
    index: CellIndex, cell_ids: Ints, rows: Floats, asking: npt.NDArray[np.bool_], k: int
) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Yield (row ids, ids, keys) of the cell's own rows that ask, some at a time; otherwise as `search_cell`.

    Args:
        index: Index of the cell's rows.
        cell_ids: int64, shape (n,), ascending: their ids.
        rows: float32, shape (n, d): themselves, as they came.
        asking: bool, shape (n,): which of them ask.
        k: Neighbours wanted.
    """
    if not asking.all():
        numbers = np.flatnonzero(asking)
        for at in range(0, len(numbers), _ASKED_ROWS):
            some = numbers[at : at + _ASKED_ROWS]
            yield cell_ids[some], *search_cell(index, cell_ids, rows[some], cell_ids[some], k)
        return
    start = 0
    for numbers, keys in index.query_all(min(k + 1, len(cell_ids))):
        own = cell_ids[start : start + len(numbers)]
        yield own, *without_self(cell_ids[numbers], keys, own, k)
        start += len(numbers)


def exact_neighbours(
    queries: Floats, X: Floats, k: int, metric: str, *, own: Ints | None = None, ids: Ints | None = None
) -> tuple[Ints, Floats]:
    """Search all rows for the nearest of each query, a block at a time.

    Args:
        queries: Shape (q, d).
        X: Shape (n, d).
        k: Neighbours wanted.
        metric: Metric.
        own: int64 (q,): ids of the queries, to leave themselves out; none if they are no rows of X.
        ids: int64 (n,), ascending: ids of the rows; their numbers if left out.

    Returns:
        ids int64 (q, k) and keys float32 (q, k); see `Space.distances`.
    """
    ids = np.arange(len(X)) if ids is None else ids
    own = np.full(len(queries), NO_ID) if own is None else own
    asking = np.arange(len(queries))
    best_ids = np.full((len(queries), k), NO_ID, dtype=np.int64)
    best_keys = np.full((len(queries), k), np.inf, dtype=np.float32)
    for start in range(0, len(X), _EXACT_ROWS):
        part = slice(start, start + _EXACT_ROWS)
        found, keys = search_cell(ExactIndex(X[part], metric), ids[part], queries, own, k)
        both = np.concatenate([best_ids, found]), np.concatenate([best_keys, keys])
        _, best_ids, best_keys = merge_top_k(np.concatenate([asking, asking]), *both, k)
    return best_ids, best_keys


@contextlib.contextmanager
def _blas_threads(limit: int) -> Iterator[int]:
    """Give BLAS `limit` threads and yield how many Python threads to run beside each other."""
    try:
        import threadpoolctl
    except ImportError:
        yield 1  # BLAS uses all cores by itself; threads on top of it would only compete
        return
    with threadpoolctl.threadpool_limits(limit):
        yield os.cpu_count() or 1
