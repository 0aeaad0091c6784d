"""SIGTERM ends a run as an exception would: what is half built is removed, what is published stays."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

TERMINATED = 128 + signal.SIGTERM  # 143, what a shell reports for it
_AGAIN_S = 0.2


class Terminated(BaseException):
    """SIGTERM came. Not an Exception, so that no handler on the way takes it for a fault that can be mended."""


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` in the main thread when SIGTERM comes; a second one ends the process at once.

    Python throws away what is raised in a finaliser or a weak reference's callback, of which imports run thousands. So
    it is raised again, by an alarm, until something handles it; clean-up that does is left alone.

    Outside the main thread, where Python allows no handlers, this does nothing. Runs on: driver.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(*_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        raise Terminated

    def on_alarm(*_: Any) -> None:
        if not _is_handled():
            raise Terminated

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    timer = signal.getitimer(signal.ITIMER_REAL)
    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGALRM) is on_alarm:
            signal.setitimer(signal.ITIMER_REAL, *timer)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_handled() -> bool:
    """Tell whether the code that was interrupted runs because of `Terminated`: a `finally`, `except` or `with`."""
    err = sys.exc_info()[1]
    while err is not None and not isinstance(err, Terminated):
        err = err.__context__
    return err is not None
