"""Supervised training: which output layer and which loss of a row go with a Keras loss."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ivis_spark.config import did_you_mean
from ivis_spark.config.imports import import_named
from ivis_spark.errors import ConfigError, InputError
from ivis_spark.nn.distances import Tensor
from ivis_spark.nn.losses import with_autograph
from ivis_spark.nn.seeds import seeded_layers

_SPARSE = "sparse_categorical_crossentropy"
_MULTICLASS = (_SPARSE, "categorical_crossentropy", "categorical_hinge")
_HINGE = ("hinge", "squared_hinge", "categorical_hinge")
_BINARY = ("binary_crossentropy", "hinge", "squared_hinge")
# Stands for a missing class.
UNLABELLED = -1
# Names of Keras 2, as in ivis's documentation, that Keras 3 no longer knows.
_ALIASES = {"logcosh": "log_cosh", "kullback_leibler_divergence": "kl_divergence"}

Metric = str | Callable[..., Any]


def count_outputs(metric: Metric, labels: NDArray[Any]) -> int:
    """Check the labels and return the units of the output layer.

    Args:
        metric: Name of a Keras loss, or one.
        labels: Shape (n,) or (n, c). The distinct labels are enough. -1 stands for a missing label when the metric is
            sparse_categorical_crossentropy.

    Returns:
        The number of classes, or the width of the labels.

    Raises:
        ConfigError: if Keras has no such loss.
        InputError: if the labels do not fit the metric.
    """
    name = _loss_name(metric)
    width = labels.shape[1] if labels.ndim > 1 else 1
    if not np.issubdtype(labels.dtype, np.number) and labels.dtype != np.bool_:
        raise InputError(
            f"Unknown label type: {labels.dtype}; supervision_metric={name!r} takes numbers; pass numbers, or use "
            f"{_SPARSE!r}"
        )
    if name == _SPARSE:
        return _count_classes(labels.reshape(-1) if width == 1 else labels)
    if name in _MULTICLASS and width < 2:
        raise InputError(
            f"labels have shape {labels.shape}; supervision_metric={name!r} needs one column per class: one-hot "
            f"encode the labels, or use {_SPARSE!r}"
        )
    return width


def most_classes(metric: Metric) -> float:
    """Return how many classes, numbered from 0, a loss takes as one number per row: infinity, 2 or 0.

    Raises: ConfigError: if Keras has no such loss.
    """
    name = _loss_name(metric)
    return math.inf if name == _SPARSE else 2 if name in _BINARY else 0


def takes_classes(metric: Metric) -> bool:
    """Tell whether labels of a metric are one class per row, rather than values or indicators."""
    return most_classes(metric) == math.inf


def build_head(metric: Metric, n_outputs: int, embedding_dims: int, *, seed: int | None = None) -> keras.Model:
    """Build the output layer on the embedding.

    Regression is linear; multi-class a softmax; binary and multi-label a sigmoid; hinge losses a linear layer with an
    L2 penalty (a linear SVM).

    Args:
        metric: Name of a Keras loss, or one.
        n_outputs: Units, from `count_outputs`.
        embedding_dims: Dimensions of the embedding.
        seed: Of the initial weights.

    Returns:
        A Keras model, shape (b, embedding_dims) -> (b, n_outputs).

    Raises:
        ConfigError: if Keras has no such loss.
    """
    name = _loss_name(metric)
    activation = "linear"
    if name in _MULTICLASS and name not in _HINGE:
        activation = "softmax"
    elif name in _BINARY and name not in _HINGE:
        activation = "sigmoid"
    penalty = keras.regularizers.L2() if name in _HINGE else None
    with seeded_layers(seed):
        layer = keras.layers.Dense(n_outputs, activation=activation, kernel_regularizer=penalty, name="supervised")
    return keras.Sequential([keras.Input(shape=(embedding_dims,)), layer])


def make_supervised_loss_fn(metric: Metric) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a function of labels, shape (b,) or (b, c), and predictions (b, c): loss and mask of each row, (b,) each.

    The mask is 0 where the label is missing: NaN, and for sparse_categorical_crossentropy -1.

    Raises: ConfigError: if Keras has no such loss.
    """
    name = _loss_name(metric)
    loss = keras_loss(metric)
    function = with_autograph(loss.call if isinstance(loss, keras.losses.Loss) else loss, loss)

    def row_losses(labels: Tensor, predictions: Tensor) -> tuple[Tensor, Tensor]:
        labels = tf.reshape(labels, [tf.shape(labels)[0], -1])
        if name == _SPARSE:
            labels = tf.cast(labels, tf.float32)  # where NaN is a label that is held out
            labelled = tf.logical_not(tf.math.is_nan(labels) | tf.equal(labels, UNLABELLED))
            labels = tf.cast(tf.where(labelled, labels, 0), tf.int32)[:, 0]
        else:
            labels = tf.cast(labels, predictions.dtype)
            labelled = tf.logical_not(tf.math.is_nan(labels))
            labels = tf.where(labelled, labels, 0)
        mask = tf.reduce_all(labelled, axis=1)
        values = function(labels, predictions)
        values = tf.reduce_mean(tf.reshape(values, [tf.shape(predictions)[0], -1]), axis=1)
        return values, tf.cast(mask, values.dtype)

    return row_losses


def _count_classes(labels: NDArray[Any]) -> int:
    if labels.ndim != 1:
        raise InputError(f"labels have shape {labels.shape}; supervision_metric={_SPARSE!r} needs one integer per row")
    classes = np.unique(labels)
    classes = classes[classes != UNLABELLED]
    if len(classes) == 0:
        raise InputError("no row has a label, all are -1, None or NaN: label some rows, or train without labels")
    if np.any(classes != np.round(classes)) or not np.all(np.isfinite(classes)):
        raise InputError(
            f"labels hold {classes[classes != np.round(classes)][0]!s}; classes must be integers 0, 1, 2, ..."
        )
    if classes[0] != 0:
        raise InputError(
            f"labels start at {classes[0]:g}. Ensure that your labels are zero-indexed: 0, 1, 2, ... (-1: missing)"
        )
    if classes[-1] != len(classes) - 1:
        missing = next(number for number, label in enumerate(classes) if label != number)
        raise InputError(
            f"labels go up to {classes[-1]:g} but {missing} is missing. Ensure that your labels are indexed "
            f"consecutively"
        )
    return len(classes)


def keras_loss(metric: Metric) -> Any:
    """Return the Keras loss of a name, or that of `package.module:function`; any other value is returned as it is.

    Raises: ConfigError: if Keras has no such loss.
    """
    if isinstance(metric, str) and ":" in metric:
        return import_named(metric, "supervision_metric")
    try:
        return keras.losses.get(_ALIASES.get(metric, metric) if isinstance(metric, str) else metric)
    except (ValueError, TypeError) as err:
        names = [name for name in dir(keras.losses) if name.islower() and not name.startswith("_")]
        hint = did_you_mean(metric, ["mae", "mse", *names, *_ALIASES])
        raise ConfigError(
            f"supervision_metric={metric!r} is not a Keras loss; use one such as {_SPARSE}, binary_crossentropy, "
            f"mae{hint}"
        ) from err


def _loss_name(metric: Metric) -> str:
    """Return the snake-case name of a Keras loss given as a name, alias, class name, function or instance."""
    loss = keras_loss(metric)
    if isinstance(loss, keras.losses.Loss):
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(loss).__name__).lower()
    return str(getattr(loss, "__name__", type(loss).__name__))
