"""How many threads a number of jobs means."""

from __future__ import annotations

import os


def count_threads(n_jobs: int | None) -> int:
    """Return how many threads `n_jobs` means: -1 is one per core, -2 one less, and so on; None or 0 is one."""
    if not n_jobs:
        return 1
    return n_jobs if n_jobs > 0 else max(1, (os.cpu_count() or 1) + n_jobs + 1)
