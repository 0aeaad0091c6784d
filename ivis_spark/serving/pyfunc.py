"""A trained model in MLflow: a `python_function` flavour around the model's own folder; nothing is pickled."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ivis_spark.config import listed
from ivis_spark.errors import DependencyError, ExistsError, InputError
from ivis_spark.serving.encoder import Encoder
from ivis_spark.serving.folder import HasFolder, ModelFolder, folder_of, read_model, write_model


def save_pyfunc(model: HasFolder | ModelFolder, path: str, *, overwrite: bool = False, **options: Any) -> None:
    """Write a model so that `mlflow.pyfunc.load_model` and `mlflow.pyfunc.spark_udf` read it. Runs on: driver.

    Args:
        model: The model, or its files.
        path: Local folder, which is created.
        overwrite: Whether a model of MLflow that is there is replaced.
        options: Options of `mlflow.pyfunc.save_model`, like `signature` or `pip_requirements`. The signature is made
            from the names of the features if it is not given, so that MLflow and `predict` find columns by name.

    Raises:
        DependencyError: if mlflow is not installed.
        InputError: if `model` is no model that can be exported; says what to pass.
        ExistsError: if something is there, and it is not a model of MLflow or `overwrite` is False.

    Example:
        >>> from ivis_spark.serving.pyfunc import save_pyfunc
        >>> save_pyfunc(model, "cells-pyfunc")
    """
    if not os.path.isdir(path) or not os.listdir(path):
        _write("save_model", model, path=path, **options)
        return
    if not os.path.isfile(os.path.join(path, "MLmodel")):
        raise ExistsError(f"{path!r} exists and is not a model of MLflow: choose another path")
    if not overwrite:
        raise ExistsError(f"{path!r} exists: pass overwrite=True, or choose another path")
    with tempfile.TemporaryDirectory(prefix="ivis-spark-", dir=os.path.dirname(os.path.abspath(path))) as folder:
        _write("save_model", model, path=os.path.join(folder, "new"), **options)
        os.rename(path, os.path.join(folder, "old"))  # removed with the folder, once the new one is in its place
        os.rename(os.path.join(folder, "new"), path)


def log_pyfunc(model: HasFolder | ModelFolder, name: str, **options: Any) -> Any:
    """Log a model to the active MLflow run, and register it with `registered_model_name=...`. Runs on: driver.

    Args:
        model: The model, or its files.
        name: Name of the artifact.
        options: Options of `mlflow.pyfunc.log_model`.

    Raises:
        DependencyError: if mlflow is not installed.
        InputError: if `model` is no model that can be exported; says what to pass.
    """
    return _write("log_model", model, name, **options)


def _write(function: str, model: HasFolder | ModelFolder, *arguments: Any, **options: Any) -> Any:
    try:
        import mlflow.pyfunc
    except ImportError as err:
        raise DependencyError("MLflow's flavour needs the package mlflow: pip install 'ivis_spark[mlflow]'") from err
    with tempfile.TemporaryDirectory(prefix="ivis-spark-") as folder:
        files = folder_of(model)
        write_model(folder, files)
        options = {"pip_requirements": ["ivis_spark"], "signature": _signature(files), **options}
        return getattr(mlflow.pyfunc, function)(*arguments, loader_module=__name__, data_path=folder, **options)


def _load_pyfunc(path: str) -> PyfuncModel:
    """Make the model of what MLflow stored; MLflow calls this by its name."""
    model = read_model(path)
    return PyfuncModel(model.encoder(), model.serving["features"])


def _signature(model: ModelFolder) -> Any:
    """Return what the model takes and gives: named numeric columns, or one named column of arrays; float32 (n, e)."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    names, n_inputs = model.serving["features"], model.n_inputs
    if not names or model.images:
        return None
    inputs: list[Any]
    if len(names) == n_inputs > 1:
        inputs = [ColSpec(DataType.double, name) for name in names]
    else:
        inputs = [ColSpec(Array(DataType.double), names[0])]
    outputs: list[Any] = [TensorSpec(np.dtype(np.float32), (-1, model.serving["n_outputs"]))]
    return ModelSignature(Schema(inputs), Schema(outputs))


class PyfuncModel:
    """The model that MLflow calls: rows in, embeddings out."""

    def __init__(self, encoder: Encoder, features: list[str]) -> None:
        self._encoder = encoder
        self._features = features

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Embed rows.

        Args:
            model_input: DataFrame with the features that the model was trained on by name, in any order and beside
                other columns; of other names only one column of arrays; without names (numbered columns) a numeric
                column per feature, in the order of training; or an array (n, d).
            params: Not used.

        Returns:
            float32, shape (n, e).

        Raises:
            InputError: if columns are missing (names them), rows have another width than the model's, or hold null, NaN
                or infinity.
        """
        del params
        X = np.asarray(self._rows(model_input))
        X = X if X.dtype == np.float32 else X.astype(np.float64)
        if not np.isfinite(X).all():
            bad = int((~np.isfinite(X).all(axis=1)).sum())
            raise InputError(f"{bad} of {len(X)} rows hold null, NaN or infinity: fix or drop them")
        return self._encoder(X)

    def _rows(self, model_input: Any) -> Any:
        if not isinstance(model_input, pd.DataFrame):
            return model_input
        named = any(isinstance(name, str) for name in model_input.columns)
        missing = [name for name in self._features if name not in model_input.columns]
        if self._features and not missing:
            model_input = model_input[self._features]
        elif named and self._features and not _is_one_of_arrays(model_input):
            raise InputError(
                f"the DataFrame lacks {listed([repr(name) for name in missing])} of the {len(self._features)} features "
                f"that the model was trained on; it has: {listed(model_input.columns)}"
            )
        if _is_one_of_arrays(model_input):
            return _stacked(model_input.iloc[:, 0].to_list())
        return model_input.to_numpy()


def _is_one_of_arrays(frame: pd.DataFrame) -> bool:
    return frame.shape[1] == 1 and frame.dtypes.iloc[0].kind == "O"


def _stacked(rows: list[Any]) -> Any:
    widths = {-1 if row is None else len(row) for row in rows}
    if len(widths) > 1 or -1 in widths:
        raise InputError(f"rows have {sorted(widths)} features (-1: null); every row needs the same number")
    return np.stack(rows) if rows else np.empty((0, 1), np.float32)
