"""Triplet batches of rows in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from ivis_spark.data.triplets import triplet_dataset  # noqa: E402

N, K = 23, 4
X = np.arange(N, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
NEIGHBOURS = (np.arange(N)[:, None] + np.arange(1, K + 1)) % N


def epochs(count: int, random_state: int = 1) -> list[np.ndarray]:
    """Return the row numbers of anchors, positives and negatives of some epochs, (n, 3) each."""
    dataset, steps = triplet_dataset(X, NEIGHBOURS, labels=np.arange(N), batch_size=5, random_state=random_state)
    assert steps == 5
    batches = iter(dataset)
    result = []
    for _ in range(count):
        rows = []
        for _ in range(steps):
            batch = {name: value.numpy() for name, value in next(batches).items()}
            triplets = batch["stacked"][:, 0].reshape(3, -1)
            np.testing.assert_array_equal(batch["label"], triplets[0])
            rows.append(triplets.T)
        result.append(np.concatenate(rows).astype(int))
    return result


def test_every_row_is_an_anchor_once_an_epoch_in_a_fresh_order() -> None:
    first, second = epochs(2)
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch[:, 0]), np.arange(N))
    assert not np.array_equal(first[:, 0], second[:, 0])


def test_positives_are_neighbours_and_negatives_are_not() -> None:
    for epoch in epochs(5):
        for anchor, positive, negative in epoch:
            assert positive in NEIGHBOURS[anchor]
            assert negative not in NEIGHBOURS[anchor]
            assert negative != anchor


def test_negatives_of_batches_in_memory_are_their_own_anchors() -> None:
    """23 rows make batches of 19 and of 4, where some have no other row that is far."""
    near = (np.arange(N)[:, None] + np.arange(1, 11)) % N
    dataset, steps = triplet_dataset(X, near, batch_size=19, random_state=1, negatives=3)
    alone = 0
    for batch in dataset.take(40 * steps).as_numpy_iterator():
        anchors, positives = batch["stacked"][:, 0].reshape(2, -1).astype(int)
        assert batch["negative"].shape == (len(anchors), 3)
        assert all(positive in near[anchor] for anchor, positive in zip(anchors, positives, strict=True))
        for anchor, places in zip(anchors, batch["negative"], strict=True):
            forbidden = {anchor, *near[anchor]}
            if places[0] >= 0:
                assert not forbidden & set(anchors[places])
            else:
                assert set(anchors) <= forbidden
                alone += 1
    assert alone


def test_ranks_are_drawn_row_by_row() -> None:
    (epoch,) = epochs(1)
    ranks = (epoch[:, 1] - epoch[:, 0] - 1) % N
    assert len(np.unique(ranks[:5])) > 1


@pytest.mark.parametrize("labels", [None, np.arange(N)])
@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_pairs_leave_negatives_out_and_are_exchanged_unless_labelled(shuffle: bool | str, labels: Any) -> None:
    """In memory, and a batch at a time."""
    settings = {"batch_size": 5, "random_state": 1, "shuffle": shuffle, "negatives": 0, "labels": labels}
    dataset, steps = triplet_dataset(X, NEIGHBOURS, **settings)
    pairs = [batch["stacked"].numpy()[:, 0].reshape(2, -1) for batch in dataset.take(steps)]
    first, second = np.concatenate(pairs, axis=1).astype(int)
    as_drawn = np.array([b in NEIGHBOURS[a] for a, b in zip(first, second, strict=True)])
    anchors, positives = np.where(as_drawn, first, second), np.where(as_drawn, second, first)
    assert sorted(anchors) == list(range(N))
    assert all(b in NEIGHBOURS[a] for a, b in zip(anchors, positives, strict=True))
    assert as_drawn.all() if labels is not None else 0.2 < as_drawn.mean() < 0.8


def test_seed_decides() -> None:
    np.testing.assert_array_equal(epochs(1, 7)[0], epochs(1, 7)[0])
    assert not np.array_equal(epochs(1, 7)[0], epochs(1, 8)[0])
