"""The interface of data that need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class IndexableDataset(Sequence[Any]):
    """Rows by number. Subclasses give `__len__`, `__getitem__` and `shape`; `get_batch` where many at once are cheaper.

    `shape` is that of the data: its rows, then the shape of one row. An attribute or a property will do.

    `Ivis` takes such a dataset in place of an array, for training and for embedding.

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
        """Return the rows of some numbers, which come in any order and may repeat."""
        return [self[idx] for idx in idx_seq]
