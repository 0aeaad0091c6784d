"""Predictions of a trained network, and whether the embedding has collapsed."""

from __future__ import annotations

import functools
import logging
import warnings
from numbers import Integral
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ivis_spark.core.metrics import is_collapsed
from ivis_spark.core.projection import Projection
from ivis_spark.data.arrays import warn_of_counts, warn_of_range
from ivis_spark.data.rows import LazyRows, Rows, blocks, project_blocks, take
from ivis_spark.errors import ConfigError, InputError
from ivis_spark.estimator.saving import NotFitted
from ivis_spark.nn.networks import dense_network
from ivis_spark.nn.projection import split_projection

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

_PREDICT_ROWS = 256
_SAMPLE_ROWS = 1000  # by which a collapse is noticed
_FEW_COMPONENTS = 10  # fewer are rarely meant
_WIDE, _SLOW_CELLS = 1000, 10_000_000  # columns of sparse rows, and zeros and values together, that search slowly
_PROJECTED = ("euclidean", "angular", "dot")  # distances that principal components keep


def predict(network: keras.Model, rows: Rows, projection: Projection | None = None) -> Floats:
    """Return the output for each row, in NumPy where the network is a chain of dense layers.

    A network that begins with a projection uses `projection`, which has more digits and takes sparse rows.
    """
    inner, own = split_projection(network)
    parts = blocks(rows) if own is None else project_blocks(rows, projection or own)
    apply = dense_network(inner) or functools.partial(_apply_keras, inner)
    return np.concatenate([apply(part) for part in parts])


def _apply_keras(network: keras.Model, rows: Floats) -> Floats:
    if network.inputs[0].dtype != "float64":
        return network.predict(rows, batch_size=_PREDICT_ROWS, verbose=0)
    # `Model.predict` would cast rows to float32 before they are scaled
    starts = range(0, len(rows), _PREDICT_ROWS)
    return np.concatenate([np.asarray(network(rows[start : start + _PREDICT_ROWS])) for start in starts])


def embed_fitted(encoder: keras.Model, rows: Rows) -> Floats | None:
    """Embed the rows of a fit where that costs little, and warn if those that differ lie at one point."""
    dense = isinstance(rows, np.ndarray) and dense_network(encoder) is not None
    embedding = predict(encoder, rows) if dense else None
    places = np.unique(np.linspace(0, len(rows) - 1, _SAMPLE_ROWS).astype(np.int64))
    sample = take(rows, places)
    warn_if_collapsed(sample, predict(encoder, sample) if embedding is None else embedding[places], stacklevel=4)
    return embedding


def check_components(count: Any, metric: str, *, searched: bool) -> None:
    """Raise ConfigError if `n_components` is invalid, or does not preserve the distances of the neighbours."""
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ConfigError(
            f"n_components={count!r} must be a whole number of at least 1, for example 50, or None to use all columns"
        )
    if searched and metric not in _PROJECTED:
        raise ConfigError(
            f"n_components={count} preserves only the distances {', '.join(_PROJECTED)}, not "
            f"knn_distance_metric={metric!r}: change one of them, or pass neighbour_matrix"
        )


def warn_of_components(count: int, projection: Projection, embedding_dims: int, n_rows: int) -> None:
    """Warn if components are fewer than asked for, or so few that the size of the embedding was probably meant."""
    width, kept = projection.axes.shape
    if kept < count:
        warnings.warn(
            f"n_components={count} was lowered to {kept}: X has {n_rows} rows and {width} columns",
            UserWarning,
            stacklevel=3,
        )
    elif kept < width and kept < max(_FEW_COMPONENTS, embedding_dims + 1):
        warnings.warn(
            f"n_components={count} replaces the {width} columns of X by {count} principal components before training. "
            f"The size of the embedding is embedding_dims={embedding_dims}; omit n_components, or pass more",
            UserWarning,
            stacklevel=3,
        )


def warn_of_rows(rows: Rows, names: NDArray[np.object_] | None, *, searched: bool) -> None:
    """Warn of raw counts and unscaled columns, and of sparse rows whose search would take long.

    Args:
        rows: Of a fit.
        names: Of the columns, if they have any.
        searched: Whether neighbours are searched among all columns.

    Raises: InputError: if distances between rows exceed float32.
    """
    sparse = isinstance(rows, LazyRows) and rows.sparse
    if not (sparse or isinstance(rows, np.ndarray)) or len(rows.shape) != 2:
        return
    places = np.unique(np.linspace(0, len(rows) - 1, _SAMPLE_ROWS).astype(np.int64))
    sample = rows.take_sparse(places) if isinstance(rows, LazyRows) else rows[places]
    values: Any = sample.data if sparse else sample
    totals = np.asarray(sample.sum(axis=1)).ravel()
    largest = sample.max(axis=0).toarray().ravel() if sparse else sample.max(axis=0)
    counts = warn_of_counts(values[values != 0], totals, largest)
    if isinstance(rows, np.ndarray):
        warn_of_range(rows, names, counts=counts)
    if sparse and searched and rows.shape[1] > _WIDE and rows.shape[0] * rows.shape[1] > _SLOW_CELLS:
        log.warning(
            "the neighbours of sparse rows of %s columns are searched among all columns, which takes long; "
            "n_components=50 searches principal components instead, without densifying rows",
            f"{rows.shape[1]:,}",
        )


def rows_to_search(given: Rows, projected: Rows, projection: Projection | None, metric: str) -> Rows:
    """Return the rows among which the neighbours of rows `given` are searched."""
    if projection is None or metric == "euclidean" or not isinstance(projected, np.ndarray):
        return projected
    # Angles need the origin, which a projection that was loaded with a model no longer knows.
    return projection.around_origin(projected) if len(projection.explained) else given


def check_width(network: keras.Model | None, shape: tuple[int, ...]) -> None:
    """Check that rows of this shape fit a network.

    Raises:
        NotFitted: if there is no network.
        InputError: if they do not.
    """
    if network is None:
        raise NotFitted(
            "Model was not fitted yet. Call `fit` or `load_model` before `transform`, `score_samples` and `plot`."
        )
    wanted, given = tuple(network.input_shape[1:]), shape[1:]
    if len(wanted) != len(given) or any(w not in (None, g) for w, g in zip(wanted, given, strict=True)):
        if len(wanted) == len(given) == 1:
            raise InputError(f"X has {given[0]} features, but Ivis is expecting {wanted[0]} features as input")
        raise InputError(f"rows of X have shape {given}; the model takes {wanted}: pass rows of that shape")


def warn_if_collapsed(rows: Floats, embedding: Floats, *, stacklevel: int) -> None:
    """Warn, with what to try, if all rows lie at almost the same point, or are equal."""
    if not (rows != rows[0]).any():
        warnings.warn(
            f"all rows of X{' that were looked at' if len(rows) == _SAMPLE_ROWS else ''} are equal, so there is "
            "nothing to embed: check how X was read",
            UserWarning,
            stacklevel=stacklevel,
        )
    elif is_collapsed(embedding):
        warnings.warn(
            "the embedding has collapsed: different rows are embedded at almost the same point. Scale the features to "
            "[0, 1], lower learning_rate, use another distance, or start with preset='fast'",
            UserWarning,
            stacklevel=stacklevel,
        )
