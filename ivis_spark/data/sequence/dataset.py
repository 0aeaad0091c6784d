"""The interface of data that need not fit in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any


class IndexableDataset(Sequence[Any]):
    """Rows by number. Subclasses give `__len__`, `__getitem__` and `shape`; `get_batch` where many at once are cheaper.

    `Ivis` takes such a dataset in place of an array, for training and for embedding.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the data: its rows, then the shape of one row. A plain attribute does as well."""

    def get_batch(self, idx_seq: Iterable[int]) -> Sequence[Any]:
        """Return the rows of some numbers, which come in any order and may repeat."""
        return [self[idx] for idx in idx_seq]
