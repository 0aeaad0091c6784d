"""Neighbours from an Annoy index on disk, with ivis's names."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from annoy import AnnoyIndex
from numpy.typing import NDArray

from ivis_spark.config import IVIS_K, IVIS_METRIC, Metric, NeighboursConfig
from ivis_spark.core.seeds import RandomState
from ivis_spark.core.threads import count_threads
from ivis_spark.data.neighbour_retrieval.index_file import build_annoy_index, check_ivis_k, open_index
from ivis_spark.data.rows import as_rows
from ivis_spark.errors import InputError

__all__ = ["AnnoyKnnMatrix", "NeighbourMatrix", "build_annoy_index", "extract_knn"]

log = logging.getLogger(__name__)


class NeighbourMatrix(Sequence[Any]):
    """Row i lists the numbers of the neighbours of row i of the data."""

    @property
    @abstractmethod
    def k(self) -> int:
        """Neighbours of each row. A plain attribute does as well."""

    def get_batch(self, idx_seq: Iterable[int]) -> Sequence[Any]:
        """Return the neighbours of some rows."""
        return [self[idx] for idx in idx_seq]


class AnnoyKnnMatrix(NeighbourMatrix):
    """The k nearest rows of every row found by Annoy: nearest first, usually including the row itself.

    Unless precomputed, neighbours are searched on access, so memory does not grow with the rows; the index stays on
    disk. Pickling stores the path of the index, not the index.

    Example:
        >>> import numpy as np
        >>> from ivis_spark.data.neighbour_retrieval import AnnoyKnnMatrix
        >>> X = np.arange(10.0)[:, None]
        >>> matrix = AnnoyKnnMatrix.build(X, "example.annoy", k=3, metric="euclidean", n_jobs=1)
        >>> sorted(matrix[4])
        [3, 4, 5]
    """

    k: int = 0
    index: Any  # hides Sequence.index, as in ivis
    precomputed_neighbours: Any = None

    def __init__(
        self,
        index: AnnoyIndex,
        nrows: int,
        index_path: str = "annoy.index",
        metric: Metric = IVIS_METRIC,
        k: int = IVIS_K,
        search_k: int = NeighboursConfig.search_k,
        precompute: bool = False,
        include_distances: bool = False,
        verbose: int = 0,
        n_jobs: int = -1,
    ) -> None:
        """Wrap an index; see `build` and `load`.

        Args:
            index: A built Annoy index.
            nrows: Rows of the data it was built on.
            index_path: Its path on disk.
            metric: angular, euclidean, manhattan, hamming or dot.
            k: Neighbours of each row.
            search_k: Nodes inspected per query; -1 is n_trees * k. With too few, Annoy finds fewer than k neighbours.
            precompute: Search all neighbours now and keep them in memory.
            include_distances: Return a pair (indices, distances) instead of indices.
            verbose: 0 logs nothing.
            n_jobs: Threads; -1 is one per core.
        """
        self.index = index
        self.nrows = nrows
        self.index_path = index_path
        self.index_dims = index.f
        self.metric = metric
        self.k = k
        self.search_k = search_k
        self.include_distances = include_distances
        self.verbose = verbose
        self.n_jobs = n_jobs
        if precompute:
            self.precomputed_neighbours = self.get_neighbour_indices(n_jobs=n_jobs)

    @classmethod
    def build(
        cls,
        X: Any,
        path: str,
        k: int = IVIS_K,
        metric: Metric = IVIS_METRIC,
        search_k: int = NeighboursConfig.search_k,
        include_distances: bool = False,
        ntrees: int = NeighboursConfig.n_trees,
        build_index_on_disk: bool = True,
        precompute: bool = False,
        verbose: int = 1,
        n_jobs: int = -1,
        random_state: RandomState = None,
    ) -> AnnoyKnnMatrix:
        """Build an index at `path` and wrap it, see `build_annoy_index` and the constructor.

        Raises: InputError: if k is not less than the number of rows.
        """
        rows = as_rows(X)
        check_ivis_k(len(rows), k)
        index = build_annoy_index(rows, path, metric, ntrees, build_index_on_disk, verbose, n_jobs, random_state)
        return cls(index, len(rows), path, metric, k, search_k, precompute, include_distances, verbose, n_jobs)

    @classmethod
    def load(
        cls,
        index_path: str,
        data_shape: Sequence[int],
        k: int = IVIS_K,
        metric: Metric = IVIS_METRIC,
        search_k: int = NeighboursConfig.search_k,
        include_distances: bool = False,
        precompute: bool = False,
        verbose: int = 1,
        n_jobs: int = -1,
    ) -> AnnoyKnnMatrix:
        """Wrap an index on disk.

        Args:
            index_path: Its path.
            data_shape: Shape of the data it was built on.
            k: Neighbours of each row.
            metric: What the index was built with.
            search_k: Nodes inspected per query; -1 is n_trees * k.
            include_distances: Return a pair (indices, distances) instead of indices.
            precompute: Search all neighbours now and keep them in memory.
            verbose: 0 logs nothing.
            n_jobs: Threads; -1 is one per core.

        Raises:
            InputError: if k is not less than the number of rows, or the index was built on other data.
            FileNotFoundError: if there is no such file.
            OSError: if the file is corrupt.
        """
        check_ivis_k(data_shape[0], k)
        index = open_index(index_path, math.prod(data_shape[1:]), metric)
        if index.get_n_items() != data_shape[0]:
            raise InputError(
                f"the Annoy index {index_path!r} holds {index.get_n_items()} rows and X has {data_shape[0]}: pass the "
                f"index that was built on X"
            )
        return cls(
            index, data_shape[0], index_path, metric, k, search_k, precompute, include_distances, verbose, n_jobs
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.nrows

    def __getitem__(self, idx: Any) -> Any:
        """Return the neighbours of a row (a negative index counts from the end), or a list of them for a slice."""
        if isinstance(idx, slice):
            return [self[i] for i in range(*idx.indices(len(self)))]
        row = idx + len(self) if idx < 0 else idx
        if not 0 <= row < len(self):
            raise IndexError(f"row {idx} is not one of the {len(self)} rows of this matrix")
        if self.precomputed_neighbours is None:
            return self.index.get_nns_by_item(row, self.k, self.search_k, self.include_distances)
        if self.include_distances:
            return self.precomputed_neighbours[0][row], self.precomputed_neighbours[1][row]
        return self.precomputed_neighbours[row]

    def get_batch(self, idx_seq: Iterable[int]) -> list[Any]:
        """Return the neighbours of some rows, searched in `n_jobs` threads."""
        numbers = [int(idx) for idx in idx_seq]
        threads = count_threads(self.n_jobs)
        if self.precomputed_neighbours is not None or threads == 1:
            return [self[idx] for idx in numbers]
        with ThreadPoolExecutor(threads) as workers:
            parts = workers.map(lambda part: [self[idx] for idx in part], np.array_split(numbers, threads))
            return [each for part in parts for each in part]

    def get_neighbour_indices(self, n_jobs: int = -1) -> Any:
        """Return the neighbours of all rows, see `extract_knn`."""
        if self.precomputed_neighbours is not None:
            return self.precomputed_neighbours
        return extract_knn(self, verbose=self.verbose, n_jobs=n_jobs)

    def save(self, path: str) -> None:
        """Write the index to another file; this matrix keeps using its own file."""
        if os.path.exists(self.index_path):
            shutil.copyfile(self.index_path, path)  # Annoy itself does not save what was built on disk
        else:
            self.index.save(path)

    def unload(self) -> None:
        """Release the file, so that others may write it; only precomputed neighbours remain available."""
        self.index.unload()

    def delete_index(self, parent: bool = False) -> None:
        """Unload the index and remove its file, and with `parent` its folder if that is then empty."""
        self.index.unload()
        os.remove(self.index_path)
        if parent:
            with contextlib.suppress(OSError):  # there are files of others
                os.rmdir(os.path.dirname(os.path.abspath(self.index_path)))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is on disk, and what can be searched again."""
        return {**self.__dict__, "index": None, "precomputed_neighbours": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the index again."""
        self.__dict__.update(state)
        self.index = open_index(self.index_path, self.index_dims, self.metric)


def extract_knn(knn_index: NeighbourMatrix, verbose: int = 1, n_jobs: int = -1) -> Any:
    """Search the neighbours of all rows.

    Args:
        knn_index: Returns a list of k indices for each row, or a pair of k indices and k distances.
        verbose: 0 logs nothing.
        n_jobs: Threads; -1 is one per core.

    Returns:
        Row indices, of the smallest unsigned type that holds them, shape (n, k); with distances a pair of these and
        float32 (n, k).

    Raises:
        InputError: if a row has another number of neighbours.
    """
    n, k = len(knn_index), knn_index.k
    with_distances = bool(getattr(knn_index, "include_distances", False))
    ids: NDArray[Any] = np.empty((n, k), dtype=np.min_scalar_type(n))
    distances = np.empty((n, k) if with_distances else (0, k), dtype=np.float32)

    def search(rows: NDArray[np.int64]) -> None:
        for row in rows.tolist():
            answer = knn_index[row]
            neighbours = answer[0] if with_distances else answer
            if len(neighbours) != k:
                raise InputError(
                    f"row {row} has {len(neighbours)} neighbours, fewer than k={k}: raise search_k, lower k, or do "
                    "not precompute"
                )
            ids[row] = neighbours
            if with_distances:
                distances[row] = answer[1]

    if verbose:
        log.info("searching %d neighbours of each of %d rows", k, n)
    threads = count_threads(n_jobs)
    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(search, np.array_split(np.arange(n), threads)))
    return (ids, distances) if with_distances else ids
