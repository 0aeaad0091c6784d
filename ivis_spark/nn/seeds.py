"""Seeds of layers, without a seed that the whole process shares.

Keras takes the seed of every initializer and dropout that has none from Python's global `random`. Here it takes it from
a source of the thread's own, where one was opened, so that networks built by two threads at once are those that each
would build alone, and the user's `random` is left alone.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from types import SimpleNamespace

from keras.src.random import seed_generator

_of_thread = threading.local()


def _draw(low: int, high: int) -> int:
    source = getattr(_of_thread, "source", None)
    return (source or random).randint(low, high)


# The module's `random`, of which it uses nothing else; tests/nn/test_seeds.py fails with a Keras that draws otherwise.
seed_generator.python_random = SimpleNamespace(randint=_draw)


def draw_seed() -> int:
    """Return a seed as layers without one take it."""
    return _draw(0, 2**31 - 1)


@contextlib.contextmanager
def seeded_layers(seed: int | None) -> Iterator[None]:
    """Seed the layers that this thread makes inside; None leaves them as they are."""
    before = getattr(_of_thread, "source", None)
    _of_thread.source = before if seed is None else random.Random(seed)
    try:
        yield
    finally:
        _of_thread.source = before
