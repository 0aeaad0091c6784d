"""The interface of data that need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class IndexableDataset(Sequence[Any]):
    """Rows by index. Subclasses define `__len__`, `__getitem__`, `shape`, and `get_batch` if it is cheaper.

    `shape` is the number of rows, then the shape of one row; an attribute or a property.

    `Ivis` accepts such a dataset instead of an array, for training and embedding.

    Example:
        >>> import numpy as np
        >>> from ivis_spark.data.sequence import IndexableDataset
        >>> class Squares(IndexableDataset):
        ...     shape = (10, 2)
        ...     def __len__(self):
        ...         return 10
        ...     def __getitem__(self, number):
        ...         return np.array([number, number**2])
        >>> Squares().get_batch([3, 1])
        [array([3, 9]), array([1, 1])]
    """

    shape: tuple[int, ...]

    def get_batch(self, idx_seq: Iterable[int]) -> Sequence[Any]:
        """Return rows by index, in any order and with repeats."""
        return [self[idx] for idx in idx_seq]
