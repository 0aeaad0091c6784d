"""A trained model in MLflow: a `python_function` flavour around the model's own folder, so nothing is pickled."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ivis_spark.errors import DependencyError, InputError
from ivis_spark.serving.encoder import Encoder
from ivis_spark.serving.folder import ModelFolder, read_model, write_model


def save_pyfunc(model: ModelFolder, path: str, **options: Any) -> None:
    """Write a model so that `mlflow.pyfunc.load_model` and `mlflow.pyfunc.spark_udf` read it. Runs on: driver.

    Args:
        model: The model's files.
        path: Local folder; made.
        options: Of `mlflow.pyfunc.save_model`, like `signature` or `pip_requirements`.

    Raises:
        DependencyError: if mlflow is not installed.
    """
    _write("save_model", model, path=path, **options)


def log_pyfunc(model: ModelFolder, name: str, **options: Any) -> Any:
    """Log a model to the active MLflow run, and register it with `registered_model_name=...`. Runs on: driver.

    Args:
        model: The model's files.
        name: Of the artifact.
        options: Of `mlflow.pyfunc.log_model`.

    Raises:
        DependencyError: if mlflow is not installed.
    """
    return _write("log_model", model, name, **options)


def _write(function: str, model: ModelFolder, *arguments: Any, **options: Any) -> Any:
    try:
        import mlflow.pyfunc
    except ImportError as err:
        raise DependencyError("MLflow's flavour needs the package mlflow: pip install 'ivis_spark[mlflow]'") from err
    with tempfile.TemporaryDirectory(prefix="ivis-spark-") as folder:
        write_model(folder, model)
        options = {"pip_requirements": ["ivis_spark"], **options}
        return getattr(mlflow.pyfunc, function)(*arguments, loader_module=__name__, data_path=folder, **options)


def _load_pyfunc(path: str) -> PyfuncModel:
    """Make the model of what MLflow stored; MLflow calls this by its name."""
    return PyfuncModel(read_model(path).encoder())


class PyfuncModel:
    """What MLflow calls: rows in, embeddings out."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Embed rows.

        Args:
            model_input: DataFrame of one column of arrays, or of a numeric column a feature; or an array (n, d).
            params: Not used.

        Returns:
            float32, shape (n, e).

        Raises:
            InputError: if rows have another width than the model's, or hold null, NaN or infinity.
        """
        del params
        X = np.asarray(_rows(model_input), dtype=np.float32)
        if not np.isfinite(X).all():
            bad = int((~np.isfinite(X).all(axis=1)).sum())
            raise InputError(f"{bad} of {len(X)} rows hold null, NaN or infinity: fix them or leave them out")
        return self._encoder(X)


def _rows(model_input: Any) -> Any:
    if not isinstance(model_input, pd.DataFrame):
        return model_input
    if model_input.shape[1] == 1 and model_input.dtypes.iloc[0].kind == "O":
        rows = model_input.iloc[:, 0].to_list()
        widths = {-1 if row is None else len(row) for row in rows}
        if len(widths) > 1 or -1 in widths:
            raise InputError(f"rows have {sorted(widths)} features (-1: null); every row needs the same number")
        return np.stack(rows) if rows else np.empty((0, 1), np.float32)
    return model_input.to_numpy()
