"""The table of faults: what was tried, what survived, which rows were lost, what was half published meanwhile."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ivis_spark import storage
from ivis_spark.errors import ArtifactError
from ivis_spark.operations.inspect import verify


@dataclass
class Fault:
    """One line. Count `tried` before the fault and `survived` when all that was looked for after it was right.

    Rows are None where the fault cannot touch any: then the table says so instead of 0.
    """

    name: str
    tried: int = 0
    survived: int = 0
    lost: int | None = None
    doubled: int | None = None
    half: int | None = None

    @contextlib.contextmanager
    def attempt(self, times: int = 1) -> Iterator[None]:
        """Try the fault: survived if the block ends without an exception."""
        self.tried += times
        yield
        self.survived += times

    def compare(self, found: Iterable[object], wanted: Iterable[object]) -> None:
        """Count the rows that are missing in what is published, and those that are there too often."""
        have, want = Counter(found), Counter(wanted)
        self.lost = (self.lost or 0) + (want - have).total()
        self.doubled = (self.doubled or 0) + (have - want).total()

    def look(self, output: str | Path) -> None:
        """Look in a run folder for what counts as published and is not whole."""
        self.half = (self.half or 0) + half_published(str(output))

    def check(self) -> None:
        assert self.tried and self.survived == self.tried, self
        assert not self.lost and not self.doubled and not self.half, self

    def __str__(self) -> str:
        figures = [self.tried, self.survived, self.lost, self.doubled, self.half]
        return f"{self.name:<66}" + "".join(f"{'-' if figure is None else figure:>10}" for figure in figures)


@dataclass
class FaultTable:
    """All lines, also of faults that were not survived."""

    faults: list[Fault] = field(default_factory=list)

    @contextlib.contextmanager
    def fault(self, name: str) -> Iterator[Fault]:
        """Give a line of the table, which stays whatever happens in the block, and check it at its end."""
        line = Fault(name)
        self.faults.append(line)
        yield line
        line.check()

    def __str__(self) -> str:
        heads = ("tried", "survived", "lost", "doubled", "half")
        title = f"{'fault (rows lost or doubled, stages half published meanwhile)':<66}"
        return "\n".join([title + "".join(f"{head:>10}" for head in heads), *map(str, self.faults)])


def half_published(root: str) -> int:
    """Return how many stages of a run folder have a manifest and are not what it says."""
    folder, half = storage.RunFolder(root), 0
    for stage in folder.published():
        try:
            folder.require(stage, "run")
        except ArtifactError:
            half += 1
    if folder.published() and not half:
        try:
            verify(root)
        except ArtifactError:
            half = 1
    return half
