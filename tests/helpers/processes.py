"""A process of its own for tests with many fits, of each of which TensorFlow keeps some 40 MB."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor


def _without_tracing(function: Callable[[], None]) -> None:
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    function()


def in_a_process(function: Callable[[], None]) -> None:
    """Call a function of a module in a new process, and raise what it raises.

    What TensorFlow would compile runs as it is: for a few steps a fit that takes longer than the fit itself.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(_without_tracing, function).result()
