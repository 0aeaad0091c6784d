"""How many threads work side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_process = {"own": False}


def own_process(own: bool) -> None:
    """Set whether this process runs nothing but a command of ours, so that its libraries may be set up for that."""
    _process["own"] = own


def is_own_process() -> bool:
    """Return whether threads of libraries may be limited; in a notebook they belong to the user."""
    return _process["own"]


def count_threads(n_jobs: int | None) -> int:
    """Return how many threads `n_jobs` means: -1 is one per core, -2 one less, and so on; None or 0 is one."""
    if not n_jobs:
        return 1
    return n_jobs if n_jobs > 0 else max(1, (os.cpu_count() or 1) + n_jobs + 1)


@contextmanager
def blas_threads(limit: int) -> Iterator[int]:
    """Give BLAS `limit` threads and yield how many Python threads to run beside each other."""
    try:
        import threadpoolctl
    except ImportError:
        yield 1  # BLAS uses all cores by itself; threads on top of it would only compete
        return
    with threadpoolctl.threadpool_limits(limit):
        yield os.cpu_count() or 1
