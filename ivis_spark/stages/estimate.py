"""What a stage will need: the form of the estimate that each stage's module makes, and the cluster it is made for.

`estimate(rows, dims, config, cluster, seen)` stands in each stage's file, with the constants that only measuring gives;
all others are imported from the code that works by them. `config` has a value for each setting that was `auto`. `seen`
holds facts of a finished run's manifest of the stage, in the place of what is assumed of the table.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from ivis_spark.errors import ConfigError


@dataclass(frozen=True)
class Cluster:
    """What the run gets: executors, cores of each, memory and, where it is known, disk of each in bytes."""

    executors: int
    cores: int
    memory: float
    disk: float = math.inf

    @classmethod
    def parse(cls, text: str, memory: str, disk: str | None = None) -> Cluster:
        """Read `50x16`, `64g` and `500g`.

        Raises:
            ConfigError: if one is not of that form.
        """
        counts = re.fullmatch(r"(\d+)x(\d+)", text.lower())
        if counts is None or 0 in map(int, counts.groups()):
            raise ConfigError(f"--executors {text!r} must be executors x cores of each, like 50x16")
        sizes = (_bytes("--executor-memory", memory), math.inf if disk is None else _bytes("--executor-disk", disk))
        return cls(int(counts[1]), int(counts[2]), *sizes)

    @property
    def slots(self) -> int:
        """Tasks that run at once."""
        return self.executors * self.cores


@dataclass(frozen=True)
class Estimate:
    """What one stage needs. Bytes are upper bounds: nothing is taken off for compression.

    Attributes:
        stage: Its name.
        tasks: Tasks of its largest job.
        slots: Tasks that run at once.
        fixed_seconds: Time independent of the rows: start-up, consecutive jobs, samples of fixed size.
        core_seconds: Work that grows with the rows, in seconds of one core.
        shuffle_bytes: Written for shuffles, by all tasks.
        storage_bytes: Published.
        task_bytes: Memory of a task.
        driver_bytes: What the driver holds for it.
        formula: How all this follows from rows and dims.
        remedy: Setting that makes a task smaller.
        slots_of_executor: Tasks of an executor at once; None for one per core.
        advice: What to change.
    """

    stage: str
    tasks: int
    slots: int
    fixed_seconds: float
    core_seconds: float
    shuffle_bytes: float
    storage_bytes: float
    task_bytes: float
    driver_bytes: float
    formula: str
    remedy: str = "give executors more memory"
    slots_of_executor: int | None = None
    advice: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.fixed_seconds + self.core_seconds / self.slots

    def local_bytes(self, cluster: Cluster) -> float:
        """Return what its shuffle takes of an executor's disk: once sorted by the map side, once merged."""
        return 2 * self.shuffle_bytes / cluster.executors


def _bytes(option: str, text: str) -> float:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([mgt])", text.lower())
    size = float(found[1]) * {"m": 1 << 20, "g": 1 << 30, "t": 1 << 40}[found[2]] if found else 0.0
    if size <= 0:
        raise ConfigError(f"{option} {text!r} must be a number above 0 with m, g or t, like 64g")
    return size
