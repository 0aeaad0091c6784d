"""Whether settings fit the rows that were ingested, before any work that depends on both."""

from __future__ import annotations

from typing import Any

import numpy as np

from ivis_spark.config import Config
from ivis_spark.errors import InputError


def check_fit(info: dict[str, Any], config: Config) -> None:
    """Check the settings of the stages that follow against the facts of the stage `rows`. Runs on: driver.

    Raises:
        InputError: if there are too few rows for k, or no labels of the kind that the settings need.
    """
    rows = info["rows"]
    k = config.for_rows(rows).neighbours.k
    if rows < k + 2:
        raise InputError(
            f"neighbours.k={k} needs at least {k + 2} rows, so that each has {k} neighbours and one other; the "
            f"input has {rows}. " + (f"Pass --set neighbours.k={rows - 2} or less" if rows > 2 else "Pass more rows")
        )
    if config.neighbours.by_label and info["labels"] is None:
        raise InputError("neighbours.by_label needs labels; name their column with --label-col")
    _check_labels(info, config.train.supervision_metric)


def label_values(info: dict[str, Any]) -> list[Any] | None:
    """Return the distinct labels; for labels too many to list (regression) any will do, since none is a class."""
    labels = info["labels"]
    if labels is None:
        return None
    width = labels.get("width", 1)
    some = [0.0, 1.0] if width == 1 else [[0.0] * width]
    return some if labels["values"] is None else list(labels["values"])


def _check_labels(info: dict[str, Any], metric: str | None) -> None:
    labels = info["labels"]
    if metric is None:
        return
    if labels is None:
        raise InputError(f"train.supervision_metric={metric!r} needs labels; name their column with --label-col")
    if labels["null"]:
        raise InputError(
            f"label column {info['label_col']!r} holds null; give every row a label (for classes, -1 is no label)"
        )
    from ivis_spark.nn.supervision import count_outputs

    try:
        count_outputs(metric, np.asarray(label_values(info)))
    except InputError as err:
        raise InputError(f"label column {info['label_col']!r}: {err}") from err
