"""SIGTERM and Ctrl-C are exceptions that nothing swallows and that leave clean-up alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from ivis_spark.runtime import signals
from ivis_spark.runtime.signals import Terminated, raise_on_signals

BOTH = pytest.mark.parametrize(
    ("number", "raised", "code"), [(signal.SIGTERM, Terminated, 143), (signal.SIGINT, KeyboardInterrupt, 130)]
)


@pytest.fixture(autouse=True)
def _handlers_come_back() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 0


def end_this_process(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@BOTH
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_finaliser_swallows_is_raised_again(number: int, raised: type[BaseException], code: int) -> None:
    class Finaliser:
        def __del__(self) -> None:
            end_this_process(number)

    def work() -> None:
        with raise_on_signals() as guard:
            try:
                Finaliser()
                time.sleep(20)
            finally:
                assert guard.exit_code == code

    started = time.monotonic()
    with pytest.raises(raised):
        work()
    assert time.monotonic() - started < 10


@BOTH
def test_clean_up_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, number: int, raised: type[BaseException], code: int
) -> None:
    monkeypatch.setattr(signals, "_AGAIN_S", 0.02)
    done = []

    def clean_up() -> None:
        try:
            raise OSError("a folder that is not there")
        except OSError:
            time.sleep(0.1)
        done.append("cleaned")

    def work() -> None:
        with raise_on_signals():
            try:
                end_this_process(number)
            finally:
                clean_up()

    with pytest.raises(raised):
        work()
    assert done == ["cleaned"]
    time.sleep(0.1)  # no alarm is left


@BOTH
def test_callbacks_run_in_a_thread_before_the_guard_ends(number: int, raised: type[BaseException], code: int) -> None:
    called = []

    def note() -> None:
        time.sleep(0.1)
        called.append(threading.current_thread())

    def work() -> None:
        with raise_on_signals() as guard:
            guard.at_once(note)
            end_this_process(number)

    with pytest.raises(raised):
        work()
    assert called and called[0] is not threading.main_thread()


@BOTH
def test_a_second_one_ends_the_process_at_once(number: int, raised: type[BaseException], code: int) -> None:
    program = f"""
import os, time
from ivis_spark.runtime.signals import raise_on_signals
with raise_on_signals():
    try:
        os.kill(os.getpid(), {int(number)})
        time.sleep(5)
    finally:
        os.kill(os.getpid(), {int(number)})
        time.sleep(30)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=25, check=False).returncode == code


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raise_on_signals() as guard:
            end_this_process(signal.SIGINT)
        assert guard.signal is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_a_signal_nothing_happens() -> None:
    with raise_on_signals() as guard:
        guard.at_once(lambda: pytest.fail("no signal came"))
    assert guard.signal is None
