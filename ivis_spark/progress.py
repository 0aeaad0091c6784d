"""Progress and remaining time of a piece of work: a bar in terminals and notebooks, log lines elsewhere."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

_PACKAGE = logging.getLogger(__package__)
_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 5.0
_LONG_SECONDS = 30.0  # of which a slow start is a small part
_SECONDS_BETWEEN_BARS = 0.2
_LEAST_LOGGED = 0.05  # seconds of a step
# A bar of a program that writes JSON, or is no person's, would spoil its output; IVIS_SPARK_PROGRESS=bar|lines decides.
_VARIABLE = "IVIS_SPARK_PROGRESS"

_lock, _bars, _redirection = threading.Lock(), 0, contextlib.ExitStack()


def say(text: str) -> None:
    """Write a line to the log, or to standard error if no log is set up."""
    if _log.hasHandlers():
        _log.info(text)
    else:
        tqdm.write(text, file=sys.stderr)


_step_seconds: contextvars.ContextVar[dict[str, float] | None] = contextvars.ContextVar("step_seconds", default=None)


@contextlib.contextmanager
def step(name: str, text: str) -> Iterator[None]:
    """Time a part of a stage: said in the log, and kept for the stage's manifest under the name."""
    started = time.perf_counter()
    yield
    taken, kept = time.perf_counter() - started, _step_seconds.get()
    _log.log(logging.INFO if taken >= _LEAST_LOGGED else logging.DEBUG, "%s: %.1f s", text, taken)
    if kept is not None:
        kept[name] = round(kept.get(name, 0.0) + taken, 3)


@contextlib.contextmanager
def collect_steps() -> Iterator[dict[str, float]]:
    """Yield the seconds of each `step` inside the block, by name."""
    found: dict[str, float] = {}
    token = _step_seconds.set(found)
    try:
        yield found
    finally:
        _step_seconds.reset(token)


def time_left(seconds: float) -> str:
    """Return a time in readable form: 40 s, 3 min, 2 h 5 min."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Meter:
    """Shows the progress of a piece of work whose size is known.

    Args:
        title: What is counted, for example `epoch`.
        total: Total number.
        unit: Unit of the count, for example `tasks`.
        begun: How many an earlier process finished; they are excluded from the rate.
        at_most: Whether the work may end before `total`.
        slow_start: Whether the first takes some seconds longer than the others: if these would count, the time left is
            known from the second on.
        seconds_between_lines: Minimum seconds between two lines where there is no bar; the last is always written.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        unit: str = "",
        begun: int = 0,
        at_most: bool = False,
        slow_start: bool = False,
        seconds_between_lines: float = _SECONDS_BETWEEN_LINES,
    ) -> None:
        self.title, self.total = title, total
        self._unit, self._begun, self._at_most = unit and f" {unit}", begun, "at most " if at_most else ""
        self._done = -1
        self._interval = seconds_between_lines
        self._start = time.monotonic()
        self._last_line = float("-inf")
        self._skip_first = slow_start
        self._text = self._unsaid = ""
        self._open = contextlib.ExitStack()
        self._bar: Any = None
        if _draws_bars():
            form = "{desc} {n_fmt}/{total_fmt}" + self._unit + " {bar} {elapsed}{postfix}"
            if _in_notebook():
                self._bar = _CellBar(title, total, form)
            else:
                self._open.enter_context(_redirected())
                options = {"leave": False, "dynamic_ncols": True, "bar_format": form}
                self._bar = tqdm(desc=title, total=total, initial=begun, **options)

    def update(self, done: int, note: str = "") -> None:
        """Show that so many are done.

        Args:
            done: Of `total`.
            note: What else to show, like the loss.
        """
        if done == self._done:
            return
        self._done, now = done, time.monotonic()
        left = self._left(done, now)
        begins = done == self._begun
        if self._skip_first and done > self._begun:
            self._skip_first, self._begun, self._start = False, done, now
        self._text = self._unsaid = f"{self.title} {done}/{self.total}{self._unit}" + (f": {note}" if note else "")
        if self._bar is not None:
            self._bar.n = done
            self._bar.set_postfix_str(", ".join(filter(None, (left, note))))
        if begins and self._bar is None:
            self._unsaid = ""  # nothing is done yet
        elif now - self._last_line >= self._interval:
            self._last_line = now
            self._write(f", {left}" if left else "")

    def close(self, ending: str = "") -> None:
        """Show the last state, and take the bar away.

        Args:
            ending: Why the work ended before `total`, if that is no failure.
        """
        if ending:
            self._text = f"{self._text}; {ending}" if self._text else ending
            self._unsaid = f"{self._unsaid}; {ending}" if self._unsaid else ending
        if self._bar is not None:
            self._bar.close()
        self._open.close()
        if not isinstance(self._bar, _CellBar):
            self._bar = None
        elif self._text:
            self._bar.show(self._text)
        self._write()

    def _left(self, done: int, now: float) -> str:
        """Return what is known of the time left; nothing at the end."""
        if done >= self.total or done <= self._begun:
            return ""
        if self._skip_first and now - self._start < _LONG_SECONDS:
            return "? left"
        seconds = (self.total - done) * (now - self._start) / (done - self._begun)
        return f"{self._at_most}{time_left(seconds)} left"

    def _write(self, left: str = "") -> None:
        if self._unsaid and self._bar is None:
            say(self._unsaid + left)
        elif self._unsaid:
            _log.debug(self._unsaid + left)  # for the file of the log
        self._unsaid = ""


class _CellBar:
    """A bar below a cell of a notebook: what `Meter` uses of tqdm's, as an output that is replaced.

    tqdm's own for notebooks is a widget, of which a saved notebook keeps an error message.
    """

    def __init__(self, title: str, total: int, form: str) -> None:
        display: Any = importlib.import_module("IPython.display").display
        self.n, self.total = 0, total
        self._start, self._last = time.monotonic(), float("-inf")
        self._format = {"ncols": 100, "prefix": title, "bar_format": form}
        self._shown = display({"text/plain": title}, raw=True, display_id=True)

    def set_postfix_str(self, note: str) -> None:
        """Show the count and a note, unless that was done a moment ago."""
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_BARS:
            self._last = time.monotonic()
            self.show(tqdm.format_meter(self.n, self.total, self._last - self._start, postfix=note, **self._format))

    def show(self, text: str) -> None:
        """Show a text instead of the bar."""
        self._shown.update({"text/plain": text}, raw=True)

    def close(self) -> None:
        """End as tqdm's bars do; what was shown last stays."""


@contextlib.contextmanager
def _redirected() -> Iterator[None]:
    """Let log lines go above the bars. Bars of several threads share it: only the last takes it back."""
    global _bars, _redirection
    with _lock:
        _bars += 1
        if _bars == 1:
            _redirection = contextlib.ExitStack()
            from tqdm.contrib.logging import logging_redirect_tqdm  # warns in a notebook without widgets

            _redirection.enter_context(logging_redirect_tqdm([_PACKAGE]))
    try:
        yield
    finally:
        with _lock:
            _bars -= 1
            if _bars == 0:
                _redirection.close()


def _draws_bars() -> bool:
    chosen = os.environ.get(_VARIABLE)
    if chosen in ("bar", "lines"):
        return chosen == "bar"
    formatters = [type(handler.formatter).__name__ for handler in _PACKAGE.handlers]
    return "JsonFormatter" not in formatters and (sys.stderr.isatty() or _in_notebook())


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and getattr(shell, "kernel", None) is not None
