"""Where training runs: one process now; the only room that will know horovod."""

from __future__ import annotations

from typing import Any, Protocol

from ivis_spark.nn.model import keep_gradients


class Reducer(Protocol):
    """Averages gradients over the ranks that train together."""

    def __call__(self, gradients: list[Any], /) -> list[Any]:
        """Return the averaged gradients, in the same order."""


def make_reduce_fn() -> Reducer:
    """Return the reducer of this process: gradients stay as they are while it trains alone."""
    return keep_gradients


def rank() -> int:
    """Return which of the training processes this is; 0 also when it is the only one."""
    return 0


def size() -> int:
    """Return how many processes train together."""
    return 1
