"""Ways to read row groups of triplet blocks from Parquet, one file each: `train.reader` names the file.

To add one, add a file here with a class `Reader` that passes tests/train/readers/test_contract.py.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterator
from typing import Any

from ivis_spark.config.checks import AUTO
from ivis_spark.config.imports import load_class, load_installed
from ivis_spark.errors import DependencyError
from ivis_spark.train.dataset.blocks import TripletBlocks
from ivis_spark.train.dataset.sharding import Part

log = logging.getLogger(__name__)

# The packed blocks of a row group, by column; anything that NumPy's frombuffer takes.
RowGroup = dict[str, list[Any]]


class BlockReader(abc.ABC):
    """Reads row groups. Runs on: each rank, in the thread that reads ahead."""

    #: Which of those installed `auto` takes: that with the largest.
    preference = 0

    @classmethod
    @abc.abstractmethod
    def check(cls) -> None:
        """Check that it can be used here, without expensive imports.

        Raises:
            DependencyError: if a package is missing or does not fit the others; the message has the pip command.
        """

    @abc.abstractmethod
    def read(self, blocks: TripletBlocks, parts: list[Part], columns: list[str], *, seed: int) -> Iterator[RowGroup]:
        """Yield the row groups of `parts` in the order of `sharding.row_groups_of`.

        Args:
            blocks: Location of the files.
            parts: Which parts of which files to read.
            columns: Names of binary columns.
            seed: At least 1; shuffles the row groups of whole files.

        Raises:
            ArtifactError: if a file has fewer row groups than its blocks need.
        """


def installed_readers() -> tuple[dict[str, type[BlockReader]], dict[str, DependencyError]]:
    """Return the readers of this folder that can be used here, by name, and why the others cannot."""
    return load_installed("train.reader", __name__, "Reader", BlockReader)  # type: ignore[type-abstract]


def make_reader(name: str) -> BlockReader:
    """Return the reader that `train.reader` names.

    Raises:
        DependencyError: if it, or with `auto` any, cannot be used here.
    """
    if name != AUTO:
        kind: type[BlockReader] = load_class(
            "train.reader",
            __name__,
            name,
            "Reader",
            BlockReader,  # type: ignore[type-abstract]
        )
        kind.check()
        return kind()
    usable, refused = installed_readers()
    if not usable:
        raise DependencyError("; ".join(map(str, refused.values())))
    chosen, kind = max(usable.items(), key=lambda item: item[1].preference)
    log.debug("triplets are read by %s; %s", chosen, refused)
    return kind()
