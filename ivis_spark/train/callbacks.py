"""Keras callbacks by name: those of Keras that write logs, and functions of the user."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import keras

from ivis_spark.config import is_import_name
from ivis_spark.config.imports import import_named
from ivis_spark.errors import ConfigError, DependencyError


def make_callbacks(names: Sequence[str], logs: str) -> list[keras.callbacks.Callback]:
    """Return Keras callbacks.

    Runs on: rank 0, or each rank for those of every rank.

    Args:
        names: `csv`, `tensorboard`, or `package.module:function` of a function without arguments that returns one.
        logs: Local folder to write into; it is published with the model.

    Raises:
        ConfigError: if there is no such function, or it returns something else.
        DependencyError: if TensorBoard is missing.
    """
    return [_make_callback(name, logs) for name in names]


def _make_callback(name: str, logs: str) -> keras.callbacks.Callback:
    if name == "csv":
        os.makedirs(logs, exist_ok=True)
        return keras.callbacks.CSVLogger(os.path.join(logs, "training.csv"), append=True)
    if name == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            raise DependencyError("the callback tensorboard needs TensorBoard: pip install 'ivis_spark[tensorboard]'")
        return keras.callbacks.TensorBoard(os.path.join(logs, "tensorboard"), write_graph=False, profile_batch=0)
    if not is_import_name(name):
        raise ConfigError(f"callback {name!r} must be csv, tensorboard or of the form package.module:function")
    callback = import_named(name, "callback")()
    if not isinstance(callback, keras.callbacks.Callback):
        raise ConfigError(f"{name} returned a {type(callback).__name__}; it must return a keras.callbacks.Callback")
    return callback
