"""SIGTERM ends a run as an exception would: what is half built is removed, what is published stays."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

TERMINATED = 128 + signal.SIGTERM  # 143, what a shell reports for it


class Terminated(BaseException):
    """SIGTERM came. Not an Exception, so that no handler on the way takes it for a fault that can be mended."""


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` in the main thread when SIGTERM comes; a second one ends the process at once.

    Outside the main thread, where Python allows no handlers, this does nothing. Runs on: driver.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(*_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
        raise Terminated

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
