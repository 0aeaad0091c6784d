"""Index libraries of a region, one file each: `neighbours.backend` names the file.

An index holds the rows of one region. Its effort sets how much of it a query inspects; `core.knn.search.calibrate`
finds the lowest effort that reaches a recall. To add one, add a file here with a class `Index` that passes
tests/core/knn/test_indexes.py.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from ivis_spark.config.checks import AUTO
from ivis_spark.config.imports import load_class, load_installed
from ivis_spark.core.knn.leaves import Leaf
from ivis_spark.core.knn.metrics import Floats, Ints

_SETTING = "neighbours.backend"


@dataclass(frozen=True)
class IndexSettings:
    """Settings of an index.

    Attributes:
        leaf_rows: Rows per leaf.
        n_trees: Annoy's trees.
        search_k: Minimum nodes that Annoy inspects; -1 is n_trees * k.
        seed: Seed.
        projects: Whether an index may compare wide rows along some directions first.
    """

    leaf_rows: int
    n_trees: int
    search_k: int = -1
    seed: int = 0
    projects: bool = True


class RegionFiles(Protocol):
    """Reads the files of a saved index; each is checked against its record."""

    def local(self, suffix: str) -> AbstractContextManager[str]:
        """Return the local path of a file, copied to this machine if necessary."""
        ...

    def part(self, suffix: str, start: int, stop: int) -> bytes:
        """Return some bytes of a file, without a check."""
        ...

    def leaf(self, number: int, read: Callable[[], Leaf]) -> Leaf:
        """Return a leaf's ids and rows, read unless they were kept."""
        ...


class RegionIndex(abc.ABC):
    """The rows of one region, ready to be searched. Runs on: driver, executor.

    Attributes:
        metric: Metric of the rows.
        efforts: Efforts in ascending order; the last one inspects everything.
        high_effort: An index that needs this effort or more is built again without `IndexSettings.projects`: the
            directions along which rows are compared first do not tell neighbours apart. Infinity: never.
    """

    metric: str
    efforts: Sequence[float]
    high_effort = math.inf

    @classmethod
    def check(cls) -> None:
        """Check that it can be used here, without expensive imports.

        Raises:
            DependencyError: if a package is missing; the message has the pip command.
        """
        return

    @classmethod
    @abc.abstractmethod
    def build(cls, X: npt.NDArray[Any], ids: Ints, metric: str, settings: IndexSettings) -> RegionIndex:
        """Index rows, float32 (n, d), with ids int64 (n,); equal seeds give equal indexes."""

    @classmethod
    @abc.abstractmethod
    def load(cls, files: RegionFiles, metric: str, dims: int) -> RegionIndex:
        """Open what `save` wrote; nothing may be unpickled.

        Raises:
            ValueError: if the files are not such an index.
        """

    @classmethod
    @abc.abstractmethod
    def cost(cls, dims: int, rows: int, k: int, settings: IndexSettings) -> float:
        """Return the core microseconds to index and search one row of a region: `auto` picks the cheapest."""

    @abc.abstractmethod
    def query(self, Q: npt.NDArray[Any], k: int, effort: float) -> tuple[Ints, Floats]:
        """Return ids int64 (q, k) and keys float32 (q, k), nearest first, ties by id; k is at most the rows.

        Keys are those of `core.knn.metrics.Space`.
        """

    @abc.abstractmethod
    def save(self, path: str) -> list[str]:
        """Write files that start with a local path; return what follows it in each name."""


def load_index(name: str) -> type[RegionIndex]:
    """Return the index library that `neighbours.backend` names.

    Raises:
        ConfigError: if there is none; lists the valid ones.
    """
    return load_class(_SETTING, __name__, name, "Index", RegionIndex)  # type: ignore[type-abstract]


def installed_indexes() -> dict[str, type[RegionIndex]]:
    """Return the index libraries of this folder that can be used here, by name."""
    return load_installed(_SETTING, __name__, "Index", RegionIndex)[0]  # type: ignore[type-abstract]


def choose_backend(requested: str, dims: int, rows: int, k: int, settings: IndexSettings) -> tuple[str, str]:
    """Pick the library that searches a region faster, by measured costs; `requested` if it is not `auto`.

    Returns:
        Its name, and why.

    Raises:
        ConfigError: if there is none of that name.
        DependencyError: if it cannot be used here.
    """
    kinds = installed_indexes()
    if requested != AUTO:
        kinds = {requested: load_index(requested), **kinds}
        kinds[requested].check()
    costs = {name: kind.cost(dims, rows, k, settings) for name, kind in kinds.items()}
    listed = ", ".join(f"{name} about {cost:.0f} us per row" for name, cost in costs.items())
    if requested != AUTO:
        return requested, f"requested ({listed})"
    return min(costs, key=lambda name: costs[name]), f"lowest estimated cost ({listed})"
