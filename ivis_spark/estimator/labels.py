"""Labels as users have them: text, booleans and dates become the numbers of classes."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.data.rows import as_labels
from ivis_spark.errors import InputError
from ivis_spark.nn.supervision import UNLABELLED, count_outputs, takes_classes

Classes = NDArray[Any]


def read_labels(Y: ArrayLike, n_rows: int, metric: Any) -> tuple[NDArray[Any], Classes | None, int]:
    """Return labels as the network takes them.

    If the metric takes one class per row, text, booleans, dates and mixed types are numbered in sorted order, and
    None, NaN, NA and NaT are unlabelled; integers are the numbers of classes already, and -1 is unlabelled.

    Args:
        Y: Shape (n,) or (n, c).
        n_rows: n.
        metric: Keras loss of the labels.

    Returns:
        Labels, float32 or int64, of the shape of Y; the classes in the order of their numbers, None where the metric
        takes values; and the outputs of the network that they need.

    Raises:
        InputError: if there is not one label per row, or they do not fit the metric.
    """
    if not takes_classes(metric):
        labels = as_labels(Y, n_rows)
        return labels, None, count_outputs(metric, labels)
    labels = as_labels(Y, n_rows) if np.asarray(Y).dtype.kind != "b" else np.asarray(Y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    labels, classes = _numbered(labels) if labels.ndim == 1 else (labels, None)
    n_classes = count_outputs(metric, labels)
    return labels.astype(np.int64), np.arange(n_classes) if classes is None else classes, n_classes


def _numbered(labels: NDArray[Any]) -> tuple[NDArray[Any], Classes | None]:
    """Return the numbers of classes of labels of shape (n,), and the classes, None if the labels were numbers."""
    missing = np.array([is_missing(label) for label in labels]) if labels.dtype.kind in "OmMf" else None
    labelled = labels if missing is None else labels[~missing]
    if labels.dtype.kind == "O" and all(_is_number(label) for label in labelled):
        labelled = labelled.astype(np.float64)
    if labelled.dtype.kind in "iuf":
        if missing is None:
            return labels, None
        numbered = np.full(len(labels), UNLABELLED, labelled.dtype)
        numbered[~missing] = labelled
        return numbered, None
    try:
        classes, codes = np.unique(labelled, return_inverse=True)
    except TypeError as err:
        kinds = ", ".join(sorted({type(label).__name__ for label in labelled}))
        raise InputError(
            f"labels have types that cannot be sorted together ({kinds}); convert them all to text"
        ) from err
    numbered = np.full(len(labels), UNLABELLED, np.int64)
    numbered[slice(None) if missing is None else ~missing] = codes
    return numbered, classes


def is_missing(label: Any) -> bool:
    """Tell whether a value is None, NaN, NA or NaT."""
    return label is None or type(label).__name__ in ("NAType", "NaTType") or label != label


def _is_number(label: Any) -> bool:
    return isinstance(label, numbers.Real) and not isinstance(label, (bool, np.bool_))
