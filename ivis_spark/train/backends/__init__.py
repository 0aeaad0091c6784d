"""Ways in which several processes train together, one file each: `train.backend` names the file.

A backend defines how its ranks connect, the environment of their processes, their messages, and how a lost peer is
detected. To add one, add a file here with a class `Ranks` that passes tests/train/backends/test_ring.py. Importing this
loads neither TensorFlow nor any of them: Spark's Python workers use it to start ranks.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ivis_spark.config import TrainConfig
from ivis_spark.config.checks import AUTO
from ivis_spark.config.imports import load_class, load_installed
from ivis_spark.errors import ConfigError, DependencyError
from ivis_spark.nn.reducer import Reducer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Meeting:
    """What a task that starts a rank knows about the other ranks.

    Attributes:
        rank: Rank of this task's process.
        hosts: The host of each rank.
        share: Takes a text of this task, and returns those of all, by rank, when all have called it.
        stall_timeout_seconds: Time after which a rank that others wait for is considered lost.
        start_timeout_seconds: Time within which all ranks must be connected.
    """

    rank: int
    hosts: Sequence[str]
    share: Callable[[str], list[str]]
    stall_timeout_seconds: float
    start_timeout_seconds: float


class Backend(Reducer):
    """One of the processes that train together; this base class trains alone.

    Args:
        config: Settings of the training. In a rank's process, the constructor returns when all ranks are connected.
    """

    rank = 0
    #: Whether it is for ranks in Spark's tasks, and not for this process.
    distributed = True
    #: Which of those installed `auto` takes: that with the largest.
    preference = 0

    def __init__(self, config: TrainConfig | None = None) -> None: ...

    @classmethod
    def check(cls) -> None:
        """Check that it can be used here, without expensive imports. Runs on: driver.

        Raises:
            DependencyError: if a package is missing; the message has the pip command.
        """

    @classmethod
    @contextlib.contextmanager
    def meet(cls, meeting: Meeting) -> Iterator[dict[str, str]]:
        """Agree with the other tasks on where the ranks connect. Runs on: executor, around the rank's process.

        Yields:
            Environment variables of the rank's process.

        Raises:
            DependencyError: if a package is missing.
            ConnectionError: if another task could not open the meeting point.
        """
        yield {}

    @classmethod
    def is_lost_peer(cls, err: BaseException) -> bool:
        """Return whether an error means that another rank is gone, or stalled."""
        return False

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's value, which must be serialisable as JSON, on every rank."""
        return value

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        """Copy the values of rank 0's variables to every rank."""

    def leave(self) -> None:
        """Wait until every rank has reached this point. The process is kept alive until all ranks have ended."""


def load_backend(name: str) -> type[Backend]:
    """Return the backend that a setting, or `name_of`, names.

    Raises:
        ConfigError: if there is none.
    """
    return load_class("train.backend", __name__, name, "Ranks", Backend)


def name_of(kind: type[Backend]) -> str:
    """Return a name by which every machine finds a backend."""
    return f"{kind.__module__}:{kind.__qualname__}"


def resolve_backend(config: TrainConfig) -> type[Backend]:
    """Return where to train. Runs on: driver.

    Raises:
        DependencyError: if the backend that was asked for, or any for several ranks, is not installed.
        ConfigError: if there is no such backend, or it is for one process and there are several ranks.
    """
    if config.backend != AUTO:
        kind = load_backend(config.backend)
        kind.check()
        if config.num_ranks > 1 and not kind.distributed:
            raise ConfigError(
                f"train.num_ranks={config.num_ranks} needs a train.backend for several ranks, or auto; "
                f"{config.backend} runs one process"
            )
        return kind
    usable, refused = load_installed("train.backend", __name__, "Ranks", Backend)
    fitting = {name: kind for name, kind in usable.items() if kind.distributed == (config.num_ranks > 1)}
    if not fitting:
        reasons = "; ".join(map(str, refused.values()))
        raise DependencyError(f"train.num_ranks={config.num_ranks}: several ranks cannot train here. {reasons}")
    name, kind = max(fitting.items(), key=lambda item: item[1].preference)
    log.debug("train.backend=auto is %s", name)
    return kind


def local_address(host: str) -> str:
    """Return the address of the network interface that leads to a host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing; the kernel picks the route
        return str(probe.getsockname()[0])
