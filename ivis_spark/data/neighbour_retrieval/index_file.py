"""Annoy indexes as files."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

from annoy import AnnoyIndex

from ivis_spark.config import IVIS_METRIC, Metric, NeighboursConfig, check_value
from ivis_spark.core.seeds import RandomState, to_seed
from ivis_spark.core.threads import count_threads
from ivis_spark.data.rows import as_rows, blocks
from ivis_spark.errors import InputError

log = logging.getLogger(__name__)


def build_annoy_index(
    X: Any,
    path: str,
    metric: Metric = IVIS_METRIC,
    ntrees: int = NeighboursConfig.n_trees,
    build_index_on_disk: bool = True,
    verbose: int = 1,
    n_jobs: int = -1,
    random_state: RandomState = None,
) -> AnnoyIndex:
    """Build an Annoy index of rows; data of more than two dimensions is flattened.

    Memory: a few megabytes of rows at a time, and the index itself unless it is built on disk.

    Args:
        X: Rows: an array, or anything `Ivis` accepts.
        path: File to write the index to.
        metric: angular, euclidean, manhattan, hamming or dot.
        ntrees: Trees; more give a higher recall and a larger index.
        build_index_on_disk: Build in the file itself instead of in memory.
        verbose: 0 logs nothing.
        n_jobs: Threads; -1 is one per core.
        random_state: Seed of the splits, as in `Ivis`; None is Annoy's own. Reproducible only with n_jobs=1.

    Returns:
        The index, open.

    Raises:
        ConfigError: if there is no such metric.
        InputError: if the rows cannot be used.
        OSError: if the file cannot be written.
    """
    rows = as_rows(X)
    index = _new_index(math.prod(rows.shape[1:]), metric)
    if random_state is not None:
        index.set_seed(to_seed(random_state))
    if build_index_on_disk:
        index.on_disk_build(path)
    number = 0
    for block in blocks(rows):
        for vector in block.reshape(len(block), -1):
            index.add_item(number, vector)
            number += 1
    if verbose:
        log.info("Annoy: %d rows of %d features, building %d trees", number, index.f, ntrees)
    index.build(ntrees, count_threads(n_jobs))
    if not build_index_on_disk:
        index.save(path)
    return index


def _new_index(dims: int, metric: Metric) -> AnnoyIndex:
    return AnnoyIndex(dims, metric=check_value("neighbours.metric", metric))


def open_index(path: str, dims: int, metric: Metric) -> AnnoyIndex:
    """Open an index on disk.

    Raises:
        ConfigError: if there is no such metric.
        FileNotFoundError: if there is no such file.
        OSError: if it is corrupt, or of rows of another width.
    """
    index = _new_index(dims, metric)
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no Annoy index at {path!r}: pass the path of an index, or build one")
    try:
        index.load(path)
    except OSError as err:
        raise OSError(
            f"the Annoy index {path!r} cannot be loaded as one of {dims} features ({err}): it is corrupt, or was "
            f"built on other data; rebuild it"
        ) from err
    return index


def check_ivis_k(n_rows: int, k: int) -> None:
    """Check that k neighbours, the row itself counted, can be found. Raises InputError if not."""
    if not 0 < k < n_rows:
        raise InputError(f"k={k} must be at least 1 and less than the number of rows, {n_rows}; lower k")
