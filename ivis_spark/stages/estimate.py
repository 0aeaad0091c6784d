"""What a stage will need: the form of the estimate that each stage's module makes, and the cluster it is made for.

`estimate(rows, dims, config, cluster, seen)` stands in each stage's file, with the constants that only measuring gives;
all others are imported from the code that works by them. `config` has a value for each setting that was `auto`. `seen`
holds facts of a finished run's manifest of the stage, in the place of what is assumed of the table.
"""

from __future__ import annotations

import math
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
        options = f"--executors {text!r} --executor-memory {memory!r}" + f" --executor-disk {disk!r}" * (
            disk is not None
        )
        try:
            executors, cores = (int(part) for part in text.lower().split("x"))
            cluster = cls(executors, cores, _bytes(memory), math.inf if disk is None else _bytes(disk))
        except (ValueError, KeyError) as err:
            raise ConfigError(f"{options} must be of the form 50x16 (executors x cores), 64g and 500g") from err
        if min(cluster.executors, cluster.cores, cluster.memory, cluster.disk) <= 0:
            raise ConfigError(f"{options} must be above 0")
        return cluster

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


def _bytes(text: str) -> float:
    return float(text[:-1]) * {"g": 1 << 30, "m": 1 << 20, "t": 1 << 40}[text[-1:].lower()]
