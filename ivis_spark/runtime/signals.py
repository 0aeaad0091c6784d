"""SIGTERM and Ctrl-C end a run as an exception would: what is half built is removed, what is published stays."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_AGAIN_S = 0.2
_CALLBACKS_S = 5.0


class Terminated(BaseException):
    """SIGTERM came. Not an Exception, so that no handler on the way takes it for a fault that can be repaired."""


# What each signal raises. KeyboardInterrupt, since libraries know it.
_RAISED: dict[int, type[BaseException]] = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}


@dataclass
class Guard:
    """Which signal came, if any, and what is to be done at once when one comes."""

    signal: signal.Signals | None = None
    _callbacks: list[Callable[[], object]] = field(default_factory=list)
    _thread: threading.Thread | None = None

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that the signal ended: 143 or 130."""
        return 128 + (self.signal or 0)

    def at_once(self, callback: Callable[[], object]) -> None:
        """Call a function in a thread of its own when a signal comes: the main thread may be waiting for others."""
        self._callbacks.append(callback)

    def _came(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self._thread = threading.Thread(target=lambda: [each() for each in self._callbacks], daemon=True)
        self._thread.start()

    def _settle(self) -> None:
        if self._thread is not None:
            self._thread.join(_CALLBACKS_S)


@contextlib.contextmanager
def raise_on_signals() -> Iterator[Guard]:
    """Raise `Terminated` or KeyboardInterrupt in the main thread on SIGTERM or SIGINT; a second one ends the process.

    Python throws away what is raised in a finaliser or a weak reference's callback, of which imports run thousands. So
    it is raised again, by an alarm, until something handles it; clean-up that does is left alone.

    Outside the main thread, where Python allows no handlers, this does nothing. Runs on: driver.
    """
    guard = Guard()
    if threading.current_thread() is not threading.main_thread():
        yield guard
        return

    def on_signal(number: int, *_: Any) -> None:
        for each in _RAISED:
            signal.signal(each, lambda number, *_: os._exit(128 + number))
        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        guard._came(number)
        raise _RAISED[number]

    def on_alarm(*_: Any) -> None:
        if guard.signal is not None and not _is_handled(_RAISED[guard.signal]):
            raise _RAISED[guard.signal]

    before = {number: signal.getsignal(number) for number in (*_RAISED, signal.SIGALRM)}
    timer = signal.getitimer(signal.ITIMER_REAL)
    for number in _RAISED:
        if before[number] is not signal.SIG_IGN:  # as a shell starts a command in the background, or nohup does
            signal.signal(number, on_signal)
    try:
        yield guard
    finally:
        if signal.getsignal(signal.SIGALRM) is on_alarm:
            signal.setitimer(signal.ITIMER_REAL, *timer)
        for number, handler in before.items():
            signal.signal(number, handler)
        guard._settle()


def _is_handled(kind: type[BaseException]) -> bool:
    """Tell whether the code that was interrupted runs because of the signal: a `finally`, `except` or `with`."""
    err = sys.exc_info()[1]
    while err is not None and not isinstance(err, kind):
        err = err.__context__
    return err is not None
