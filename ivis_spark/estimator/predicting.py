"""Rows through a trained network, and whether it tells them apart at all."""

from __future__ import annotations

import warnings

import keras
import numpy as np
from numpy.typing import NDArray

from ivis_spark.core.metrics import is_collapsed
from ivis_spark.data.rows import Rows, blocks
from ivis_spark.errors import InputError
from ivis_spark.estimator.saving import NotFitted
from ivis_spark.nn.networks import dense_network

Floats = NDArray[np.float32]

_PREDICT_ROWS = 256


def predict(network: keras.Model, rows: Rows) -> Floats:
    """Return the output for each row, in NumPy where the network is a chain of dense layers."""
    dense = dense_network(network)
    if dense:
        return np.concatenate([dense(block) for block in blocks(rows)])
    if network.inputs[0].dtype == "float64":  # `Model.predict` would cast rows to float32 before they are scaled
        starts = ((block, start) for block in blocks(rows) for start in range(0, len(block), _PREDICT_ROWS))
        return np.concatenate([np.asarray(network(block[at : at + _PREDICT_ROWS])) for block, at in starts])
    return np.concatenate([network.predict(block, batch_size=_PREDICT_ROWS, verbose=0) for block in blocks(rows)])


def check_width(network: keras.Model | None, shape: tuple[int, ...]) -> None:
    """Check that rows of this shape fit a network.

    Raises:
        NotFitted: if there is no network.
        InputError: if they do not.
    """
    if network is None:
        raise NotFitted("Model was not fitted yet. Call `fit` before calling `transform`.")
    wanted, given = tuple(network.input_shape[1:]), shape[1:]
    if len(wanted) != len(given) or any(w not in (None, g) for w, g in zip(wanted, given, strict=True)):
        if len(wanted) == len(given) == 1:
            raise InputError(f"X has {given[0]} features, but Ivis is expecting {wanted[0]} features as input")
        raise InputError(f"rows of X have shape {given}; the model takes {wanted}: pass rows of that shape")


def warn_if_collapsed(rows: Floats, embedding: Floats, *, stacklevel: int) -> None:
    """Warn, with what to try, if rows that differ all lie at almost the same point."""
    if (rows != rows[0]).any() and is_collapsed(embedding):
        warnings.warn(
            "the embedding has collapsed: rows that differ lie at almost the same point. Scale the features to [0, 1], "
            "lower learning_rate, take another distance, or start with preset='fast'",
            UserWarning,
            stacklevel=stacklevel,
        )
