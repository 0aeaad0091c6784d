"""Less time and memory for many fits: TensorFlow keeps some 40 MB of each, and compiles for half a second."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import pytest


@contextmanager
def untraced() -> Iterator[None]:
    """Train without compiling, which is as fast for some twenty steps."""
    from ivis_spark.train import loop

    make = loop._make_run_steps_fn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_make_run_steps_fn", lambda model: make(model).python_function)
        yield


def _call_untraced(function: Callable[[], None]) -> None:
    with untraced():
        function()


def in_a_process(function: Callable[[], None]) -> None:
    """Call a function of a module in a new process, `untraced`, and raise what it raises."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(_call_untraced, function).result()
