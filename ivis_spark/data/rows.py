"""Rows from any source: in memory, sparse, in a file larger than memory, or generated on access."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.core.projection import Projection, sample_rows
from ivis_spark.data.arrays import Dtype, Floats, Ints, check_rows, finite_rows, shape_message, to_numbers
from ivis_spark.errors import InputError

_BLOCK_BYTES = 8 << 20
_SPARSE_ROWS = 10_000


class LazyRows:
    """Rows that are read a batch at a time; memory does not grow with their number.

    Args:
        X: A SciPy sparse matrix, an HDF5 dataset, a memory map, an `IndexableDataset`, or anything else that has
            `shape` and gives a row for a number; `get_batch(numbers)` is used where there is one.
        dtype: What rows are read as.

    Raises:
        InputError: if the shape is not that of rows of features.
    """

    def __init__(self, X: Any, dtype: Dtype = np.float32) -> None:
        self._dtype = dtype
        self._X = X.tocsr() if hasattr(X, "tocsr") else X
        shape = X.shape() if callable(X.shape) else X.shape
        self.shape = tuple(int(size) for size in shape)
        if len(self.shape) < 2 or math.prod(self.shape) == 0:
            raise InputError(shape_message(self.shape))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def take(self, numbers: Ints) -> Floats:
        """Return some rows, shape (b, ...).

        Args:
            numbers: Row numbers in any order, shape (b,); they may repeat.

        Raises:
            InputError: if what was read are not finite numbers of the shape promised.
        """
        rows = to_numbers(np.asarray(self._read(numbers)), self._dtype)
        if rows.shape != (len(numbers), *self.shape[1:]):
            raise InputError(
                f"X gave {len(numbers)} rows as an array of shape {rows.shape}; X has shape {self.shape}, so it must "
                f"be {(len(numbers), *self.shape[1:])}"
            )
        return finite_rows(rows, numbers)

    def blocks(self) -> Iterator[Floats]:
        """Yield all rows in order, about 8 MB at a time."""
        step = max(1, _BLOCK_BYTES // (4 * math.prod(self.shape[1:])))
        for start in range(0, len(self), step):
            yield self.take(np.arange(start, min(start + step, len(self))))

    def _read(self, numbers: Ints) -> Any:
        X = self._X
        if hasattr(X, "get_batch"):
            return X.get_batch(numbers.tolist())
        if hasattr(X, "tocsr"):
            return X[numbers].toarray()
        if not hasattr(X, "dtype"):
            return [X[number] for number in numbers.tolist()]
        if len(numbers) and np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers))):
            return X[int(numbers[0]) : int(numbers[0]) + len(numbers)]
        # HDF5 wants each row once and in order
        unique, places = np.unique(numbers, return_inverse=True)
        return np.asarray(X[unique])[places]

    def sample(self, count: int, rng: np.random.Generator) -> Any:
        """Return some rows in their order: a SciPy sparse matrix where they are one, else float32 (count, ...)."""
        numbers = np.sort(rng.permutation(len(self))[:count])
        return self.take_sparse(numbers) if self.sparse else self.take(numbers)

    def sparse_blocks(self) -> Iterator[Any]:
        """Yield all rows in order, as SciPy sparse matrices if they are sparse, else as `blocks` does."""
        if not self.sparse:
            yield from self.blocks()
            return
        for start in range(0, len(self), _SPARSE_ROWS):
            yield self.take_sparse(np.arange(start, min(start + _SPARSE_ROWS, len(self))))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory, of a sparse one on average."""
        return max(1, 12 * self._X.nnz // len(self)) if self.sparse else 4 * math.prod(self.shape[1:])

    @property
    def sparse(self) -> bool:
        """Whether the rows are a SciPy sparse matrix."""
        return hasattr(self._X, "tocsr")

    def take_sparse(self, numbers: Ints) -> Any:
        """Return some rows of a sparse matrix as one, see `take`."""
        rows = self._X[numbers]
        wrong = ~np.isfinite(rows.data)
        if wrong.any():
            row = int(numbers[np.searchsorted(rows.indptr, np.flatnonzero(wrong)[0], side="right") - 1])
            raise InputError(f"X holds NaN or infinity, first in row {row}; drop or fix these rows")
        return rows


Rows = NDArray[np.float32] | LazyRows


def as_rows(X: Any, dtype: Dtype = np.float32) -> Rows:
    """Return rows that are in memory as float32 or float64, checked, and all others as `LazyRows`.

    Raises: InputError: if they are not rows of finite numbers; lazy rows are looked at when they are read.
    """
    if isinstance(X, LazyRows):
        return X
    in_memory = isinstance(X, np.ndarray) and not isinstance(X, np.memmap)
    reads = hasattr(X, "shape") and hasattr(X, "__getitem__")
    converts = hasattr(X, "to_numpy") or hasattr(X, "numpy")  # data frames and tensors
    if hasattr(X, "tocsr") or (reads and not in_memory and not converts):
        return LazyRows(X, dtype)
    return check_rows(X, dtype)


def take(rows: Rows, numbers: Ints) -> Floats:
    """Return some rows, float32, shape (b, ...), see `LazyRows.take`."""
    return rows.take(numbers) if isinstance(rows, LazyRows) else rows[numbers]


def blocks(rows: Rows) -> Iterator[Floats]:
    """Yield all rows in order; rows in memory as one block."""
    return rows.blocks() if isinstance(rows, LazyRows) else iter([rows])


def learn_projection(rows: Rows, n_components: int, *, seed: int) -> Projection:
    """Learn the principal components of rows on a sample of them, see `core.projection`.

    Raises: InputError: if the rows are not vectors, or have no components.
    """
    if len(rows.shape) != 2:
        raise InputError(f"X has shape {rows.shape}; n_components needs rows to be vectors: flatten them")
    rng = np.random.default_rng(seed)
    row_bytes = rows.row_bytes if isinstance(rows, LazyRows) else 4 * rows.shape[1]
    count = sample_rows(row_bytes, n_components)
    if isinstance(rows, LazyRows):
        sample = rows.sample(count, rng)
    else:
        sample = rows if count >= len(rows) else rows[np.sort(rng.permutation(len(rows))[:count])]
    return Projection.fit(sample, n_components, seed=seed)


def project_blocks(rows: Rows, projection: Projection) -> Iterator[Floats]:
    """Yield all rows projected, float32 (b, c), in order; sparse ones stay sparse until then."""
    for part in rows.sparse_blocks() if isinstance(rows, LazyRows) else [rows]:
        yield projection.transform(part)


def project(rows: Rows, projection: Projection | None) -> Rows:
    """Return all rows projected, float32 (n, c); as they are without a projection."""
    return rows if projection is None else np.concatenate(list(project_blocks(rows, projection)))


def as_labels(Y: ArrayLike, n_rows: int) -> NDArray[Any]:
    """Return labels as an array, shape (n,) or (n, c): float32, int64, or of their own type if they are not numbers.

    Raises: InputError: if there is not one per row.
    """
    labels = np.asarray(Y)
    if labels.ndim == 0 or len(labels) != n_rows:
        shown = len(labels) if labels.ndim else "not a list of"
        raise InputError(f"Y has {shown} labels for {n_rows} rows of X; pass one label per row")
    if labels.dtype.kind not in "fiub":
        return labels
    return labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)
