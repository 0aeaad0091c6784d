"""SIGTERM is an exception that nothing swallows and that leaves clean-up alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from ivis_spark.runtime import signals
from ivis_spark.runtime.signals import Terminated, raise_on_sigterm


@pytest.fixture(autouse=True)
def _handlers_come_back() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 0


def end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_finaliser_swallows_is_raised_again() -> None:
    class Finaliser:
        def __del__(self) -> None:
            end_this_process()

    def work() -> None:
        with raise_on_sigterm():
            Finaliser()
            time.sleep(20)

    started = time.monotonic()
    with pytest.raises(Terminated):
        work()
    assert time.monotonic() - started < 10


def test_clean_up_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_AGAIN_S", 0.02)
    done = []

    def clean_up() -> None:
        try:
            raise OSError("a folder that is not there")
        except OSError:
            time.sleep(0.1)
        done.append("cleaned")

    def work() -> None:
        with raise_on_sigterm():
            try:
                end_this_process()
            finally:
                clean_up()

    with pytest.raises(Terminated):
        work()
    assert done == ["cleaned"]
    time.sleep(0.1)  # no alarm is left


def test_without_a_signal_nothing_happens() -> None:
    with raise_on_sigterm():
        pass
