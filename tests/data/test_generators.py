"""Batches of triplets by number."""

from __future__ import annotations

import numpy as np
import pytest

from ivis_spark.data.generators import SupervisedTripletGenerator, generator_from_neighbour_matrix
from ivis_spark.errors import ConfigError, InputError

X = np.arange(10, dtype=np.float32)[:, None] * np.ones(3, np.float32)
RAGGED = [[*range(i + 1, i + 2 + i % 2), i] for i in range(8)] + [[9, 8], [8, 9]]


@pytest.mark.parametrize("labels", [None, np.arange(10)])
def test_every_row_is_an_anchor_with_a_neighbour_and_a_stranger(labels: np.ndarray | None) -> None:
    batches = list(generator_from_neighbour_matrix(X, labels, RAGGED, batch_size=4))
    assert [len(batch[0][0]) for batch in batches] == [4, 4, 2]
    anchors, positives, negatives = (np.concatenate([batch[0][i][:, 0] for batch in batches]) for i in range(3))
    np.testing.assert_array_equal(anchors, np.arange(10))
    for row in range(10):
        assert positives[row] in set(RAGGED[row]) - {row}
        assert negatives[row] not in RAGGED[row]
    if labels is not None:
        assert isinstance(batches[0][1], tuple)
        np.testing.assert_array_equal(np.concatenate([batch[1][1] for batch in batches]), labels)


def test_wrong_sizes() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=11 .* 10"):
        generator_from_neighbour_matrix(X, None, RAGGED, batch_size=11)
    with pytest.raises(InputError, match="9 rows and X has 10"):
        generator_from_neighbour_matrix(X, None, RAGGED[1:], batch_size=2)
    with pytest.raises(InputError, match="9 labels for 10 rows"):
        SupervisedTripletGenerator(X, np.arange(9), RAGGED, batch_size=2)
    with pytest.raises(IndexError):
        generator_from_neighbour_matrix(X, None, RAGGED, batch_size=4)[3]
