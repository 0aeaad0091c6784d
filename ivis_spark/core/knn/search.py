"""Nearest neighbours of all rows: the search of one region, which Spark's tasks and one process share.

Lists of neighbours are (ids, keys) of shape (rows, k), nearest first; missing ones have id `NO_ID`
and key infinity.
"""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.blas import SLOW_PRODUCTS, wrong_core
from ivis_spark.core.knn.candidates import Flags
from ivis_spark.core.knn.exact import exact_neighbours
from ivis_spark.core.knn.indexes import IndexSettings, RegionIndex, choose_backend, load_index
from ivis_spark.core.knn.leaves import rows_per_leaf
from ivis_spark.core.knn.merge import without_self
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.recall import check_recall, recall_at_k, shares_found
from ivis_spark.core.knn.regions import hash_ids
from ivis_spark.core.threads import blas_threads
from ivis_spark.errors import InputError

log = logging.getLogger(__name__)

_ONE_BLOCK_ROWS = 4096  # up to here comparing all rows with all is faster than leaving any out
CALIBRATION_ROWS = 512  # of all regions, but some of each
_QUERY_ROWS = 1 << 14
ROUNDS = 3  # of the search, each with more effort, while the recall is too low


@dataclass(frozen=True)
class Searched:
    """A region that was searched.

    Attributes:
        index: Its index.
        effort: Effort that is sufficient.
        ids: int64 (q,), ascending: query rows whose primary region it is.
        neighbour_ids: int64 (q, k); keys: float32 (q, k).
    """

    index: RegionIndex
    effort: float
    ids: Ints
    neighbour_ids: Ints
    keys: Floats


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


def search_region(
    rows: Floats,
    ids: Ints,
    is_primary: Flags,
    config: NeighboursConfig,
    *,
    backend: str,
    target: float,
    held_out: Ints,
    seed: int,
    calibration_rows: int,
    query: Flags | None = None,
    threads: int = 1,
) -> Searched:
    """Find the k nearest rows in a region for the query rows whose primary region it is.

    Args:
        rows: float32 (n, d): all rows that lie in the region.
        ids: int64 (n,), ascending.
        is_primary: bool (n,): rows whose primary region it is.
        config: k, metric and what an index is built with.
        backend: Index library.
        target: Recall to reach within the region, on the rows that it is calibrated on; 1 is exact.
        held_out: int64 (m,): rows that measure the recall and are not used to choose the effort. Leaves are learnt from
            a sample that may include them: excluding them would make them unrepresentative.
        seed: Seed.
        calibration_rows: Rows to find the effort on.
        query: bool (n,): query rows among those of the region itself; by default all.
        threads: Threads, beside which BLAS has one each.
    """
    settings = IndexSettings(rows_per_leaf(config.leaf_rows, len(rows)), config.n_trees, config.search_k, seed)
    index = load_index(backend).build(rows, ids, config.metric, settings)
    k = min(config.k, len(rows) - 1)
    candidates = np.flatnonzero(is_primary & ~np.isin(ids, held_out))
    drawn = np.argsort(hash_ids(ids[candidates], seed), kind="stable")[:calibration_rows]
    sample = np.sort(candidates[drawn])
    effort = calibrate(index, rows, ids, sample, k, target)
    if target < 1 and np.isfinite(index.high_effort) and effort >= index.high_effort:
        index = load_index(backend).build(rows, ids, config.metric, dataclasses.replace(settings, projects=False))
        effort = calibrate(index, rows, ids, sample, k, target)
    asking = np.flatnonzero(is_primary if query is None else is_primary & query)
    neighbour_ids = np.empty((len(asking), config.k), np.int64)
    keys = np.empty((len(asking), config.k), np.float32)

    def search(at: int) -> None:
        part = asking[at : at + _QUERY_ROWS]
        nearest = index.query(rows[part], min(k + 1, len(rows)), effort)
        place = slice(at, at + len(part))
        neighbour_ids[place], keys[place] = without_self(*nearest, ids[part], config.k)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(search, range(0, len(asking), _QUERY_ROWS)))
    return Searched(index, effort, ids[asking], neighbour_ids, keys)


def calibrate(index: RegionIndex, X: Floats, ids: Ints, sample: Ints, k: int, target: float) -> float:
    """Return the lowest effort whose recall, on rows of the region, is at least the target.

    Args:
        index: Index of the region.
        X: Its rows, float32 (n, d).
        ids: int64 (n,): their ids, ascending.
        sample: Positions of the rows to measure on, int64 (q,).
        k: Neighbours of a row.
        target: Recall to reach within the region; 1 uses the last effort.
    """
    low, high = 0, len(index.efforts) - 1
    if target >= 1 or not len(sample):
        return index.efforts[-1]
    _, true_keys = exact_neighbours(X[sample], X, k, index.metric, own=ids[sample], ids=ids)
    while low < high:
        middle = (low + high) // 2
        nearest, keys = index.query(X[sample], k + 1, index.efforts[middle])
        shares = shares_found(without_self(nearest, keys, ids[sample], k)[1], true_keys)
        low, high = (low, middle) if shares.mean() >= target else (middle + 1, high)
    return index.efforts[low]


def all_neighbours(X: Floats, config: NeighboursConfig, *, random_state: int) -> tuple[Ints, Floats]:
    """Find the k nearest other rows of every row, in this process: all rows are one region.

    Args:
        X: float32, shape (n, d), finite.
        config: k, metric, index, target recall.
        random_state: Seed; the same seed gives the same result.

    Returns:
        ids int64 (n, k) and distances float32 (n, k), nearest first, the row itself excluded, ties by id. Distances
        are those of Annoy (see `core.knn.metrics`), computed exactly.

    Raises:
        InputError: if k is not less than n.
        IvisError: if the target recall is not reached.
    """
    X = np.ascontiguousarray(X, dtype=np.float32)
    check_k(config.k, len(X))
    ids, target = np.arange(len(X)), config.target_recall
    backend = pick_backend(config, len(X), X.shape[1])
    exact = leaves_nothing_out(config, backend, len(X))
    held_out = ids[:0] if exact else in_random_order(ids, random_state)[: sample_rows(config, len(X))]
    if not exact and (found := wrong_core()) is not None:
        log.warning(SLOW_PRODUCTS, *found)
    for attempt in range(ROUNDS):
        aim = 1.0 if exact else aimed_recall(target, len(held_out))
        with blas_threads(1) as threads:
            searched = search_region(
                X,
                ids,
                np.ones(len(X), bool),
                config,
                backend=backend,
                target=aim,
                held_out=held_out,
                seed=random_state,
                calibration_rows=CALIBRATION_ROWS,
                threads=threads,
            )
        if exact:
            break
        if attempt == 0:
            _, true_keys = exact_neighbours(X[held_out], X, config.k, config.metric, own=held_out, ids=ids)
        recall = recall_at_k(searched.keys[held_out], true_keys, n_rows=len(X))
        if recall.low >= config.target_recall or searched.effort == searched.index.efforts[-1]:
            break
        target = raised_target(target, recall.low, config.target_recall)
    if not exact:
        check_recall(recall, config.target_recall, remedy(backend))
    return searched.neighbour_ids, Space(config.metric).distances(searched.keys)


def pick_backend(config: NeighboursConfig, region_rows: int, dims: int) -> str:
    """Return the index library of a configuration, and log why."""
    settings = IndexSettings(rows_per_leaf(config.leaf_rows, region_rows), config.n_trees, config.search_k)
    backend, reason = choose_backend(config.backend, dims, region_rows, config.k, settings)
    log.info("neighbours: %s index, %s", backend, reason)
    return backend


def leaves_nothing_out(config: NeighboursConfig, backend: str, n_rows: int) -> bool:
    """Return whether there are so few rows that all pairs are compared and there is no recall to measure."""
    return backend == "leaves" and n_rows <= max(_ONE_BLOCK_ROWS, 2 * config.k)


def in_random_order(ids: Ints, seed: int) -> Ints:
    """Return ids in random order."""
    return np.asarray(ids[np.argsort(hash_ids(ids, seed), kind="stable")])


def sample_rows(config: NeighboursConfig, n_rows: int) -> int:
    """Return the rows that measure the recall; as many others may be needed to choose by, and half to learn from."""
    return max(1, min(config.recall_sample, n_rows // 4))


def aimed_recall(target: float, sample: int) -> float:
    """Return the recall to aim at, so that the lower end of the interval of so many rows is likely to be the target."""
    if target >= 1 or not sample:
        return target
    spread = 0.45 * (1 - target) ** 0.5  # of the recall of single rows, about
    return min(target + 3 * spread / sample**0.5, 1 - 0.2 * (1 - target))


def raised_target(aimed: float, reached: float, target: float) -> float:
    """Return what to aim at next where the lower end `reached` is below the target."""
    return min(aimed + 1.5 * (target - reached) + 0.1 * (1 - aimed), 1 - 0.3 * (1 - aimed))


def remedy(backend: str) -> str:
    """Return what to change where the recall is too low."""
    annoy = ", neighbours.n_trees" if backend == "annoy" else ""
    return f"Raise neighbours.max_regions or neighbours.region_rows{annoy}"


def region_seed(random_state: int, region: int) -> int:
    """Return the seed of a region's index."""
    return int(hash_ids(np.array([region]), random_state)[0] >> np.uint64(33))


def keys_of_pairs(metric: str, rows: npt.NDArray[Any], others: npt.NDArray[Any]) -> Floats:
    """Return the keys, float32 (n,), of pairs of rows as they came, both (n, d)."""
    space = Space(metric)
    return space.pair_keys(space.prepare(rows), space.prepare(others), np.arange(len(rows))[:, None])[:, 0]
