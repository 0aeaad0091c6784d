"""Seeds of layers belong to the thread that makes them."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

import keras  # noqa: E402

from ivis_spark.nn.dropout import PooledAlphaDropout  # noqa: E402
from ivis_spark.nn.seeds import seeded_layers  # noqa: E402


def weights(seed: int | None, started: threading.Barrier | None = None) -> list[np.ndarray]:
    """Return the weights of layers made with a seed, and the seed of a dropout between them."""
    with seeded_layers(seed):
        found = []
        for width in (3, 5):
            if started is not None:
                started.wait()
            layer = keras.layers.Dense(width)
            layer.build((None, 4))
            found += [np.asarray(layer.kernel), np.array(PooledAlphaDropout(0.1).seed)]
        return found


def test_two_threads_draw_what_each_would_alone() -> None:
    alone = [weights(seed) for seed in (1, 2)]
    found: dict[int, list[np.ndarray]] = {}
    started = threading.Barrier(2)
    threads = [threading.Thread(target=lambda s=seed: found.update({s: weights(s, started)})) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, (found[1], found[2]), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(alone[0][0], alone[1][0])


def test_the_users_random_is_neither_read_nor_changed_with_a_seed_and_read_without_one() -> None:
    random.seed(5)
    before = random.getstate()
    weights(1)
    assert random.getstate() == before
    one = weights(None)
    assert random.getstate() != before
    random.seed(5)
    for a, b in zip(one, weights(None), strict=True):
        np.testing.assert_array_equal(a, b)
