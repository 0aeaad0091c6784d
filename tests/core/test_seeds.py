"""What may be a random_state."""

from __future__ import annotations

import numpy as np
import pytest

from ivis_spark.core.seeds import to_seed
from ivis_spark.errors import ConfigError


def test_what_scikit_learn_takes() -> None:
    assert [to_seed(seed) for seed in (0, 7, np.int64(7), np.uint8(7), 2**31 - 1)] == [0, 7, 7, 7, 2**31 - 1]
    for kind in (np.random.RandomState, np.random.default_rng):
        state = kind(3)
        drawn = [to_seed(state), to_seed(state)]
        assert drawn[0] != drawn[1]
        again = kind(3)
        assert drawn == [to_seed(again), to_seed(again)]
    np.random.seed(4)
    drawn = [to_seed(None), to_seed(None)]
    np.random.seed(4)
    assert drawn == [to_seed(None), to_seed(None)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("wrong", [-1, 2**31, 1.5, True, "seven", [1], np.random.SeedSequence(1), np.array([1, 2])])
def test_all_else_is_refused_in_a_line(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"^random_state=.*") as caught:
        to_seed(wrong)
    assert "\n" not in str(caught.value)
