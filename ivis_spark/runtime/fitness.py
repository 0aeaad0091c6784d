"""Whether settings fit the rows that were ingested, before any work that depends on both."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ivis_spark.config import Config
from ivis_spark.errors import InputError


def rows_facts(info: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a stage `rows` as they are written now, also of one that an older version wrote.

    That one knew integer ids and numbers as labels, and kept no other columns.
    """
    if "columns" in info:
        return info
    id_col, labels = info.get("id_col"), info.get("labels")
    if labels is not None:
        values, kind = labels["values"], "numbers" if labels.get("width", 1) == 1 else "arrays"
        labels = {"kind": kind, "type": "bigint" if labels["integer"] else "double", "values": values} | {
            "count": None if values is None else len(values),
            "unlabelled": int(labels["null"]),
            "width": labels.get("width", 1),
        }
    return {**info, "keys": [id_col] if id_col else [], "numbered": not id_col, "columns": None, "labels": labels}


def check_k(rows: int, config: Config) -> None:
    """Check k against the rows. Runs on: driver.

    Raises:
        InputError: if there are too few rows.
    """
    k = config.for_rows(rows).neighbours.k
    if rows < k + 2:
        raise InputError(
            f"neighbours.k={k} needs at least {k + 2} rows, so that each has {k} neighbours and one other row; the "
            f"input has {rows}. " + (f"Pass --set neighbours.k={rows - 2} or less" if rows > 2 else "Pass more rows")
        )


def check_fit(info: dict[str, Any], config: Config) -> None:
    """Check the settings of the stages that follow against the facts of the stage `rows`. Runs on: driver.

    Raises:
        InputError: if there are too few rows for k, or no labels of the kind that the settings need.
    """
    check_k(info["rows"], config)
    if info.get("components") and config.neighbours.metric != "euclidean":
        raise InputError(
            f"neighbours.metric={config.neighbours.metric} needs the features, and the rows of this run hold "
            f"{info['components']['count']} principal components: build them again with --overwrite and --set "
            "data.components=none"
        )
    if config.neighbours.by_label and info["labels"] is None:
        raise InputError("neighbours.by_label needs labels; set the label column with --label-col")
    _check_labels(info, config.train.supervision_metric)


def class_values(info: dict[str, Any], metric: str | None) -> list[Any] | None:
    """Return the label of each class, in the order of the model's outputs; None if labels are not classes for the loss.

    Names are classes for any loss, numbers for a classification loss; there -1 means unlabelled, as with ivis.

    Raises:
        InputError: if there are too many classes, or the labels are not whole numbers.
    """
    labels = info["labels"]
    if metric is None or labels is None or labels["kind"] == "arrays":
        return None
    from ivis_spark.nn.supervision import UNLABELLED, most_classes

    most = most_classes(metric)
    if labels["kind"] == "names":
        if most < labels["count"]:
            raise InputError(
                f"label column {info['label_col']!r} holds {labels['count']} classes; "
                f"train.supervision_metric={metric!r} takes {'numbers' if most == 0 else 'two'}: use "
                "sparse_categorical_crossentropy"
            )
        return list(labels["values"])
    if most < math.inf:
        return None
    if labels["values"] is None:
        raise InputError(
            f"label column {info['label_col']!r} has {labels['count']} distinct numbers, too many classes for "
            f"train.supervision_metric={metric!r}: use a regression loss, like mae"
        )
    values = [value for value in labels["values"] if value != UNLABELLED]
    broken = next((value for value in values if not math.isfinite(value) or value != int(value)), None)
    if broken is not None:
        raise InputError(
            f"label column {info['label_col']!r} holds {broken}; classes for train.supervision_metric={metric!r} must "
            f"be whole numbers or text: use a regression loss, like mae"
        )
    return values


def label_values(info: dict[str, Any], metric: str | None) -> list[Any] | None:
    """Return examples of the labels that training reads: all class numbers, or any numbers of the right width."""
    labels = info["labels"]
    if labels is None:
        return None
    classes = class_values(info, metric)
    if classes is not None:
        return list(range(len(classes)))
    width = labels["width"]
    return [0.0, 1.0] if width == 1 else [[0.0] * width]


def _check_labels(info: dict[str, Any], metric: str | None) -> None:
    if metric is None:
        return
    if info["labels"] is None:
        raise InputError(f"train.supervision_metric={metric!r} needs labels; set the label column with --label-col")
    from ivis_spark.nn.supervision import count_outputs

    values = np.asarray(label_values(info, metric))
    try:
        count_outputs(metric, values)
    except InputError as err:
        raise InputError(f"label column {info['label_col']!r}: {err}") from err
