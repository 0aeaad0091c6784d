"""Keras callbacks of this package."""

from __future__ import annotations

import logging
import time
from typing import Any

import keras

log = logging.getLogger(__name__)


class ProgressLogger(keras.callbacks.Callback):  # type: ignore[misc]
    """Logs, after each epoch, its loss, its seconds and the rate; early stopping may come before the last."""

    def __init__(self, rows_per_epoch: int, *, min_interval_s: float = 0.0) -> None:
        """Set up.

        Args:
            rows_per_epoch: Triplets of an epoch, over all ranks.
            min_interval_s: Seconds between two messages at least; the last epoch is always logged.
        """
        super().__init__()
        self.rows_per_epoch = rows_per_epoch
        self.min_interval_s = min_interval_s
        self._epoch_start = 0.0
        self._last_message = float("-inf")
        self._unlogged: tuple[Any, ...] | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._epoch_start = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the epoch, unless the last message was a moment ago."""
        now = time.monotonic()
        seconds = max(now - self._epoch_start, 1e-9)
        epochs = self.params.get("epochs", epoch + 1)
        figures = ", ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        self._unlogged = (epoch + 1, epochs, figures, seconds, self.rows_per_epoch / seconds)
        if now - self._last_message >= self.min_interval_s:
            self._last_message = now
            self._log()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Log the last epoch."""
        self._log()

    def _log(self) -> None:
        if self._unlogged is not None:
            log.info("epoch %d/%d: %s, %.1f s, %.0f triplets/s", *self._unlogged)
            self._unlogged = None
