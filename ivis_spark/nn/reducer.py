"""How ranks that train together join their parts. Importing this loads no TensorFlow."""

from __future__ import annotations

from typing import Any

Tensor = Any


class Reducer:
    """Joins what the ranks that train together computed; this one is for a process that trains alone.

    For another way to train together, override all of it. The functions are called inside a compiled step.
    """

    n_ranks = 1
    #: Whether `sum_gradients` keeps float32, so that sums of weights can travel with the gradients.
    exact_gradients = False

    def sum_gradients(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return the sums over the ranks, in the same order."""
        return gradients

    def sum_values(self, values: list[Tensor]) -> list[Tensor]:
        """Return the sums over the ranks of a few exact numbers."""
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all ranks, this rank's first; gradients go back to the rank that a row is of."""
        return rows
