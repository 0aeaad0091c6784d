"""One integer seed from any `random_state` of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np

from ivis_spark.config import check_value

RandomState = int | np.integer[Any] | np.random.RandomState | np.random.Generator | None
# Keras, Annoy and TensorFlow take 31 bits.
_SEEDS = 2**31


def to_seed(random_state: RandomState) -> int:
    """Return a seed, as scikit-learn's `check_random_state` would read it.

    Args:
        random_state: An integer is the seed itself. A `RandomState` or `Generator` is drawn from, so that each call
            gives another seed. None draws from NumPy's global state, which `np.random.seed` seeds.

    Returns:
        An int in [0, 2^31).

    Raises: ConfigError: if it is anything else, or an integer outside that range.
    """
    if random_state is None:
        return int(np.random.randint(_SEEDS, dtype=np.int64))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(_SEEDS, dtype=np.int64))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(_SEEDS))
    return int(check_value("random_state", random_state))
