"""The recall of neighbours, measured on held-out rows, with its interval."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ivis_spark.core.knn.metrics import Floats
from ivis_spark.errors import IvisError

log = logging.getLogger(__name__)

_Z = 1.96  # of a 95 % interval
_TIE = 1e-5  # relative: a distance this close to the k-th is as near
_POOR = 0.5


@dataclass(frozen=True)
class Recall:
    """Recall@k on a sample of rows used neither to learn the quantiser nor to choose the effort.

    Attributes:
        value: Mean over the rows, 0 to 1.
        low: Lower end of the 95 % confidence interval.
        high: Upper end.
        sample: Rows measured.
        tail: Share of these rows with a recall under 0.5.
    """

    value: float
    low: float
    high: float
    sample: int
    tail: float = 0.0

    @classmethod
    def exact(cls, rows: int) -> Recall:
        """Return the recall of an exact search."""
        return cls(1.0, 1.0, 1.0, rows)

    @classmethod
    def of_shares(cls, shares: npt.NDArray[np.float64], *, k: int, n_rows: int) -> Recall:
        """Return the recall from that of each row.

        The interval is Wilson's for as many independent draws as have the variance seen, so that it stays inside 0 to 1
        and holds near both ends; it closes as the sample becomes the whole table.

        Args:
            shares: Recall of each sampled row, shape (q,).
            k: Neighbours of a row.
            n_rows: Rows the sample was drawn from.
        """
        count, value = len(shares), float(shares.mean())
        variance = float(shares.var(ddof=1)) / count if count > 1 else 0.0
        draws = value * (1 - value) / variance if variance > 0 else float(count)
        draws = min(max(draws, 1.0), float(count * k))
        if n_rows > count:
            draws *= (n_rows - 1) / (n_rows - count)
        else:
            return cls(value, value, value, count, float((shares < _POOR).mean()))
        middle = (value + _Z * _Z / (2 * draws)) / (1 + _Z * _Z / draws)
        reach = _Z * (value * (1 - value) / draws + _Z * _Z / (4 * draws * draws)) ** 0.5 / (1 + _Z * _Z / draws)
        low, high = max(0.0, middle - reach), min(1.0, middle + reach)
        return cls(value, min(low, value), max(high, value), count, float((shares < _POOR).mean()))

    def to_mapping(self) -> dict[str, Any]:
        """Return the recall as the manifest records it."""
        return {"value": self.value, "ci95": [self.low, self.high], "sample": self.sample, "tail": self.tail}


def shares_found(found_keys: Floats, true_keys: Floats) -> npt.NDArray[np.float64]:
    """Return the share (q,) of the true k nearest that was found; a row as near as the k-th counts as one of them.

    Args:
        found_keys: float32 (q, k); infinity where none was found.
        true_keys: float32 (q, k), from `exact_neighbours`.
    """
    limit = true_keys.max(axis=1, keepdims=True)
    limit = limit + _TIE * np.abs(limit)
    return np.asarray((found_keys <= limit).mean(axis=1, dtype=np.float64))


def recall_at_k(found_keys: Floats, true_keys: Floats, *, n_rows: int) -> Recall:
    """Return the recall of sampled rows, by `shares_found`, that were drawn from `n_rows`."""
    return Recall.of_shares(shares_found(found_keys, true_keys), k=true_keys.shape[1], n_rows=n_rows)


def check_recall(recall: Recall, target: float, remedy: str) -> None:
    """Check that the recall is at least the target, by the lower end of its interval.

    Raises:
        IvisError: if it is not; the message has the recall and what to change.
    """
    log.info(
        "recall@k %.4f (%.4f to %.4f on %d rows; %.2f %% of them under %s)",
        recall.value,
        recall.low,
        recall.high,
        recall.sample,
        100 * recall.tail,
        _POOR,
    )
    if recall.low < target:
        raise IvisError(
            f"recall@k is {recall.value:.4f}, 95 % interval {recall.low:.4f} to {recall.high:.4f} on {recall.sample} "
            f"sampled rows: its lower end must reach neighbours.target_recall={target}. {remedy}, raise "
            "neighbours.recall_sample for a narrower interval, or lower neighbours.target_recall"
        )
