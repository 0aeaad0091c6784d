"""Bytes that bound what tasks hold, and what their processes hold before any data."""

from __future__ import annotations

SPLIT_BYTES = 128 << 20  # of a table that a task reads
BROADCAST_BYTES = 32 << 20  # of a table that every executor, and for a moment the driver, holds
BATCH_BYTES = 64 << 20  # of an Arrow batch
PYTHON_BYTES = 150 << 20  # of a Python worker
TENSORFLOW_BYTES = 700 << 20  # of a rank
