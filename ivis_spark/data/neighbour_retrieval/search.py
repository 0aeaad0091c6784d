"""Which search finds the neighbours of an `Ivis` fit."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn.search import all_neighbours
from ivis_spark.data.arrays import Ints, check_neighbours
from ivis_spark.data.neighbour_retrieval.knn import AnnoyKnnMatrix
from ivis_spark.data.rows import Rows
from ivis_spark.errors import InputError

Neighbours = Ints | Sequence[Any]


def read_neighbours(neighbour_matrix: Any, n_rows: int) -> Neighbours:
    """Return neighbours that a user passes: an array as int64, checked; any other sequence as it is.

    Raises: InputError: if an array does not fit; lists are looked at when they are drawn from.
    """
    if hasattr(neighbour_matrix, "to_numpy"):
        neighbour_matrix = neighbour_matrix.to_numpy()
    if isinstance(neighbour_matrix, np.ndarray):
        ragged = neighbour_matrix.dtype == object
        return list(neighbour_matrix) if ragged else check_neighbours(neighbour_matrix, n_rows)
    if not hasattr(neighbour_matrix, "__getitem__") or not hasattr(neighbour_matrix, "__len__"):
        raise InputError(
            f"neighbour_matrix is a {type(neighbour_matrix).__name__}; it must be an array of shape ({n_rows}, k), or "
            "a sequence with a list of neighbours for each row"
        )
    lists: Sequence[Any] = neighbour_matrix
    return lists


def find_neighbours(
    rows: Rows,
    config: NeighboursConfig,
    *,
    random_state: int,
    precompute: bool,
    index_path: str | None,
    index_on_disk: bool,
    n_jobs: int,
) -> Neighbours:
    """Find the neighbours of every row.

    Rows in memory are searched by leaves, without an index on disk. Annoy is used when an index is given, when the rows
    are not in memory, or when the neighbours must not be (`precompute=False`). An index made here is removed when it is
    no longer needed.

    Args:
        rows: Shape (n, ...); more than two dimensions are flattened.
        config: k, metric, n_trees and search_k.
        random_state: Seed.
        precompute: Return all neighbours as an array.
        index_path: A built Annoy index of the rows.
        index_on_disk: Build a new index on disk and not in memory.
        n_jobs: Threads of Annoy.

    Returns:
        Row numbers, int64 (n, k), or a sequence that searches when asked.

    Raises:
        InputError: if k is too large for the rows, or the index is of other data.
        FileNotFoundError, OSError: if the index is missing or corrupt.
    """
    if not 0 < config.k < len(rows) - 1:
        raise InputError(
            f"k={config.k} must be at most n_rows - 2 = {len(rows) - 2}, so that each row has a negative outside its "
            "neighbours; lower k or pass more rows"
        )
    if index_path is None and precompute and isinstance(rows, np.ndarray):
        return all_neighbours(rows.reshape(len(rows), -1), config, random_state=random_state)[0]
    shape = (len(rows), int(np.prod(rows.shape[1:])))
    # Annoy finds the row itself as its own first neighbour
    options: dict[str, Any] = {"k": config.k + 1, "metric": config.metric, "search_k": config.search_k}
    if index_path is not None:
        matrix = AnnoyKnnMatrix.load(index_path, shape, **options, n_jobs=n_jobs)
        return _numbers(matrix) if precompute else matrix
    matrix = _build_index(rows, options, config.n_trees, index_on_disk, n_jobs, random_state)
    if not precompute:
        return matrix
    try:
        return _numbers(matrix)
    finally:
        matrix.delete_index(parent=True)


def _build_index(
    rows: Rows, options: dict[str, Any], n_trees: int, on_disk: bool, n_jobs: int, random_state: int
) -> AnnoyKnnMatrix:
    """Build an index in a folder of its own, which is removed with the matrix."""
    folder = tempfile.mkdtemp(prefix="ivis_spark_")
    try:
        matrix = AnnoyKnnMatrix.build(
            rows,
            os.path.join(folder, "annoy.index"),
            **options,
            ntrees=n_trees,
            build_index_on_disk=on_disk,
            n_jobs=n_jobs,
            random_state=random_state,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(matrix, shutil.rmtree, folder, ignore_errors=True)
    return matrix


def _numbers(matrix: AnnoyKnnMatrix) -> Ints:
    """Return the neighbours of all rows without the rows themselves, int64 (n, k - 1)."""
    numbers = np.asarray(matrix.get_neighbour_indices(matrix.n_jobs)).astype(np.int64)
    others = numbers != np.arange(len(numbers))[:, None]
    others[others.all(axis=1), -1] = False
    return numbers[others].reshape(len(numbers), -1)
