"""The recall that is published: by hand, and its interval against the truth over many data sets and seeds."""

from __future__ import annotations

import numpy as np
import pytest

from ivis_spark.config import NeighboursConfig
from ivis_spark.core.knn import search
from ivis_spark.core.knn.exact import exact_neighbours
from ivis_spark.core.knn.recall import Recall, check_recall, recall_at_k
from ivis_spark.core.knn.search import all_neighbours
from ivis_spark.errors import IvisError


def test_recall_by_hand() -> None:
    """Of three true keys, 1, 2, 3: row 0 has all, row 1 two and a tie with the third, row 2 one."""
    true = np.array([[1, 2, 3]] * 3, np.float32)
    found = np.array([[1, 2, 3], [2, 3, 3], [1, 3.1, np.inf]], np.float32)
    recall = recall_at_k(found, true, n_rows=100)
    assert recall.value == pytest.approx(7 / 9) and recall.sample == 3
    assert recall.tail == pytest.approx(1 / 3)
    assert 0 < recall.low < 7 / 9 < recall.high < 1
    whole = recall_at_k(found, true, n_rows=3)
    assert whole.low == whole.value == whole.high


def test_interval_by_hand() -> None:
    """A share of 0 or 1 is a coin: Wilson's interval, as published for 50 of 60; all found leaves room below."""
    coins = np.repeat([1.0, 0.0], [50, 10])
    found = Recall.of_shares(coins, k=1, n_rows=10**9)
    assert (found.low, found.high) == (pytest.approx(0.7196, abs=2e-3), pytest.approx(0.9069, abs=2e-3))
    perfect = Recall.of_shares(np.ones(500), k=10, n_rows=10**9)
    assert perfect.value == perfect.high == 1 and 0.99 < perfect.low < 0.995


@pytest.mark.parametrize("kind", ["beta", "nearly all found", "a tail of lost rows"])
def test_interval_holds_the_truth_as_often_as_claimed(kind: str) -> None:
    rng = np.random.default_rng(0)
    shares = {
        "beta": rng.binomial(15, rng.beta(18, 1, 100_000)) / 15,
        "nearly all found": rng.binomial(15, 0.9995, 100_000) / 15,
        "a tail of lost rows": np.where(rng.random(100_000) < 0.02, 0.1, 0.99),
    }[kind]
    intervals = [Recall.of_shares(rng.choice(shares, 500), k=15, n_rows=100_000) for _ in range(1500)]
    held = np.mean([found.low <= shares.mean() <= found.high for found in intervals])
    assert 0.93 <= held


def mixture(seed: int) -> np.ndarray:
    """Rows whose neighbours depend on which rows the partitions were learnt from: few per partition, some noise."""
    rng = np.random.default_rng(seed)
    dims = int(rng.integers(6, 24))
    centres = rng.normal(size=(10, dims)) * rng.uniform(0.5, 3)
    return (centres[rng.integers(0, 10, 5000)] + rng.normal(size=(5000, dims))).astype(np.float32)


def test_measured_recall_holds_over_data_sets_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of ten data sets, two seeds each: the true recall of all rows lies in the interval that was stated."""
    stated: list[Recall] = []
    monkeypatch.setattr(search, "check_recall", lambda recall, target, remedy: stated.append(recall))
    inside, above = [], []
    for seed in range(10):
        X = mixture(seed)
        _, true = exact_neighbours(X, X, 10, "euclidean", own=np.arange(len(X)))
        for random_state in (1, 2):
            config = NeighboursConfig(k=10, leaf_rows=100, target_recall=0.8, recall_sample=300)
            _, distances = all_neighbours(X, config, random_state=random_state)
            truth = recall_at_k(distances**2, true, n_rows=len(X)).value
            inside.append(stated[-1].low <= truth <= stated[-1].high)
            above.append(truth >= stated[-1].low)
    assert len(stated) == 20 and np.mean(inside) >= 0.85  # 17 of 20: fewer has a chance of 2 % where 95 % is true
    assert np.mean(above) >= 0.9
    assert np.mean([recall.value < 1 for recall in stated]) > 0.5  # else this test shows nothing


def test_target_is_met_by_the_lower_end() -> None:
    check_recall(Recall(0.96, 0.95, 1.0, 10), 0.95, "Raise x")
    text = (
        r"recall@k is 0.9600, 95 % interval 0.9490 to 1.0000 on 10 .*target_recall=0.95. Raise x, raise neighbours.re"
    )
    with pytest.raises(IvisError, match=text):
        check_recall(Recall(0.96, 0.949, 1.0, 10), 0.95, "Raise x")
