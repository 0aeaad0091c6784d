"""Labels as users have them: text, booleans and dates become the numbers of classes."""

from __future__ import annotations

import logging
import numbers
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.config import listed
from ivis_spark.data.labels import is_missing, warn_of_words, with_plain_text
from ivis_spark.data.rows import as_labels
from ivis_spark.errors import InputError
from ivis_spark.nn.supervision import UNLABELLED, count_outputs, takes_classes

log = logging.getLogger(__name__)

Classes = NDArray[Any]

# What to do with numbers that are no classes 0, 1, 2, ...
_ADVICE = (
    "for numbers to predict pass supervision_metric='mae'; for classes with other numbers pass text, y.astype(str), or "
    "number them with sklearn.preprocessing.LabelEncoder; to train without labels omit y, or in a Pipeline, which "
    "passes it, set supervision_weight=0"
)
# The same where some are missing: text of these would be a class.
_ADVICE_WITH_MISSING = _ADVICE.replace(
    "pass text, y.astype(str), or number them with sklearn.preprocessing.LabelEncoder",
    "pass text that keeps missing labels, pandas.Series(y).convert_dtypes().replace(-1, pandas.NA).astype('string')",
)


def labels_for(
    Y: Any, n_rows: int, metric: Any, weight: float, resumed: Classes | None = None
) -> tuple[NDArray[Any], Classes | None, int] | None:
    """Return labels as `read_labels` does; None without labels, or if their weight is 0 and they do not fit.

    Warns of labels that cannot teach anything: a single class, or text like "nan" that is taken as a class.
    """
    if Y is None:
        return None
    try:
        labels, classes, n_outputs = read_labels(Y, n_rows, metric, resumed)
    except InputError as err:
        if weight > 0:
            raise
        log.debug("labels are ignored, since supervision_weight=0: %s", err)
        return None
    if classes is not None and weight > 0:
        _warn_of_classes(classes)
    return labels, classes, n_outputs


def _warn_of_classes(classes: Classes) -> None:
    if len(classes) == 1:
        warnings.warn(
            f"all labels are of one class, {classes[0]!s}: they separate nothing. Label rows of other classes too, or "
            "train without labels",
            UserWarning,
            stacklevel=4,
        )
    warn_of_words(classes.tolist(), stacklevel=4)


def read_labels(
    Y: ArrayLike, n_rows: int, metric: Any, resumed: Classes | None = None
) -> tuple[NDArray[Any], Classes | None, int]:
    """Return labels as the network takes them.

    If the metric takes one class per row, text, booleans, dates and mixed types are numbered in sorted order, and
    None, NaN, NA and NaT are unlabelled; integers are the numbers of classes already, and -1 is unlabelled.

    Args:
        Y: Shape (n,) or (n, c).
        n_rows: n.
        metric: Keras loss of the labels.
        resumed: Classes of the model whose training resumes, which keep their numbers; None for a new model.

    Returns:
        Labels, float32 or int64, of the shape of Y; the classes in the order of their numbers, None where the metric
        takes values; and the outputs of the network that they need.

    Raises:
        InputError: if there is not one label per row, no row has one, or they do not fit the metric or the classes of
            the model.
    """
    if not takes_classes(metric):
        labels = as_labels(Y, n_rows)
        if labels.dtype.kind == "f" and np.isnan(labels).reshape(n_rows, -1).any(axis=1).all():
            raise InputError("no row has a label, all are None or NaN: label some rows, or train without labels")
        return labels, None, count_outputs(metric, labels)
    labels = with_plain_text(np.asarray(Y))
    if isinstance(Y, (list, tuple)) and labels.dtype.kind in "US":  # text, or numbers among text, which became text
        labels = with_plain_text(np.asarray(Y, object))
    if labels.dtype.kind != "b":
        as_labels(labels, n_rows)  # which checks them; messages show the numbers as they were given
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    labels, classes = _numbered(labels) if labels.ndim == 1 else (labels, None)
    if resumed is not None and labels.ndim == 1:
        return _renumbered(labels, classes, resumed), resumed, len(resumed)
    try:
        n_classes = count_outputs(metric, labels)
    except InputError as err:
        numbers_given = labels.ndim == 1 and labels.dtype.kind in "iuf" and (labels != UNLABELLED).any()
        advice = _ADVICE_WITH_MISSING if (labels == UNLABELLED).any() else _ADVICE
        raise InputError(f"{err}: {advice}" if numbers_given else str(err)) from err
    return labels.astype(np.int64), np.arange(n_classes) if classes is None else classes, n_classes


def _numbered(labels: NDArray[Any]) -> tuple[NDArray[Any], Classes | None]:
    """Return the numbers of classes of labels of shape (n,), and the classes, None if the labels were numbers."""
    missing = np.array([is_missing(label) for label in labels]) if labels.dtype.kind in "OmMf" else None
    known = labels if missing is None else labels[~missing]
    if labels.dtype.kind == "O" and all(_is_number(label) for label in known):
        known = known.astype(np.float64)
    if known.dtype.kind in "iuf":
        if missing is None:
            return labels, None
        numbered = np.full(len(labels), UNLABELLED, known.dtype)
        numbered[~missing] = known
        return numbered, None
    try:
        classes, codes = np.unique(known, return_inverse=True)
    except TypeError as err:
        kinds = ", ".join(sorted({type(label).__name__ for label in known}))
        raise InputError(
            f"labels have types that cannot be sorted together ({kinds}); convert them all to text"
        ) from err
    numbered = np.full(len(labels), UNLABELLED, np.int64)
    numbered[slice(None) if missing is None else ~missing] = codes
    return numbered, classes


def _renumbered(labels: NDArray[Any], classes: Classes | None, resumed: Classes) -> NDArray[np.int64]:
    """Return the numbers that classes have in the model whose training resumes, which are matched by name."""
    known = labels != UNLABELLED
    names = np.unique(labels[known]) if classes is None else classes
    if len(names) == 0:
        raise InputError("no row has a label, all are -1, None or NaN: label some rows, or train without labels")
    if resumed.dtype.kind == "M" == names.dtype.kind:  # dates of another unit are the same dates
        names = names.astype(resumed.dtype)
    if names.dtype.kind == "f" and (names == np.round(names)).all():
        names = names.astype(np.int64)
    places = {name: place for place, name in enumerate(resumed.tolist())}
    given = names.tolist()
    if any(name not in places for name in given):
        raise InputError(
            f"labels are of the classes {listed([repr(name) for name in given])}; training resumes a model of the "
            f"classes {listed([repr(name) for name in places])}: label rows with these, or fit a new model"
        )
    codes = np.searchsorted(names, labels[known]) if classes is None else labels[known]
    numbered = np.full(len(labels), UNLABELLED, np.int64)
    numbered[known] = np.array([places[name] for name in given])[codes.astype(np.int64)]
    return numbered


def _is_number(label: Any) -> bool:
    return isinstance(label, numbers.Real) and not isinstance(label, (bool, np.bool_))
