"""Saving, loading and pickling of `Ivis`."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any, TypeVar

import keras
import numpy as np

from ivis_spark.errors import ExistsError
from ivis_spark.estimator.parameters import Parameters
from ivis_spark.nn import persistence
from ivis_spark.nn.ivis2 import is_ivis2_folder, load_ivis2_folder

# Parameters that hold objects: not saved with a model.
_OBJECTS = ("callbacks", "neighbour_matrix")
_CALLABLES = ("distance", "supervision_metric")
# Attributes that are made anew from what is saved, or by the next fit.
_REMADE = ("model_", "encoder_", "head_", "supervised_model_", "neighbour_matrix_")

_Self = TypeVar("_Self", bound="Saving")


class Saving(Parameters):
    """What of `Ivis` outlives the process."""

    encoder_: keras.Model | None
    head_: keras.Model | None
    model_: Any
    loss_history_: list[float]
    n_classes_: int | None

    def save_model(self, folder_path: str, save_format: str = "keras", overwrite: bool = False) -> None:
        """Save into a new folder: networks, the state of the optimizer, parameters and the history of the loss.

        The folder appears whole or not at all. A model that was not trained yet is saved as its parameters.

        Args:
            folder_path: Local path.
            save_format: Kept for ivis's sake; Keras files are written.
            overwrite: Replace the folder if it exists.

        Raises:
            ExistsError: if the folder exists; it is an InputError and a FileExistsError.
        """
        del save_format
        target = os.path.abspath(folder_path)
        if os.path.exists(target) and not overwrite:
            raise ExistsError(f"{folder_path!r} exists; pass overwrite=True to replace it, or another path")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        building = f"{target}.{uuid.uuid4().hex[:8]}.building"
        try:
            self._write(building)
            if os.path.exists(target):
                shutil.rmtree(target)
            os.rename(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def load_model(self: _Self, folder_path: str, custom_objects: Mapping[str, Any] | None = None) -> _Self:
        """Load what `save_model` wrote, or what ivis 2 did, parameters included. `fit` then goes on training.

        A function given before as `distance` or `supervision_metric` is kept.

        Args:
            folder_path: Local path.
            custom_objects: Layers and functions of a custom backbone, by name.

        Raises:
            ArtifactError: if the folder is torn, altered or no model.
            ConfigError: if the model was trained with a loss of one's own that was neither registered nor given.
        """
        if is_ivis2_folder(folder_path):
            imported = load_ivis2_folder(folder_path, custom_objects=custom_objects)
            extra = {
                **imported.extra,
                "params": {n: v for n, v in imported.extra["params"].items() if hasattr(self, n)},
            }
            loaded: persistence.SavedModel | None = imported if imported.encoder is not None else None
        else:
            extra = persistence.load_extra(folder_path)
            trained = persistence.is_trained(folder_path)
            loaded = persistence.load_model(folder_path, custom_objects=custom_objects) if trained else None
        given = {name: getattr(self, name) for name in _CALLABLES if callable(getattr(self, name))}
        self.set_params(**{**extra["params"], **given})
        self.loss_history_, self.n_classes_ = extra["loss_history"], extra["n_classes"]
        if loaded is not None:
            self._restore(loaded, custom_objects)
        return self

    def _get_serializable_dict(self) -> dict[str, Any]:
        """Return the parameters and facts that JSON can hold; objects are left out, functions become their names."""
        params = {name: None if name in _OBJECTS else _plain(value) for name, value in self.get_params().items()}
        params["model"] = params["model"] if isinstance(params["model"], str) else None
        return {"params": params, "loss_history": list(self.loss_history_), "n_classes": self.n_classes_}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out networks, which go as the files of a saved model; callbacks of a trained model stay behind too."""
        state = {name: value for name, value in self.__dict__.items() if name not in _REMADE}
        files: dict[str, bytes] = {}
        if self.encoder_ is not None:
            state["callbacks"] = None
            with tempfile.TemporaryDirectory() as folder:
                self._write(folder)
                for name in os.listdir(folder):
                    with open(os.path.join(folder, name), "rb") as file:
                        files[name] = file.read()
        return {**state, "files": files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the networks again."""
        state = dict(state)
        files = state.pop("files")
        self.__dict__.update(state)
        for name in _REMADE:
            setattr(self, name, None)
        if files:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    with open(os.path.join(folder, name), "wb") as file:
                        file.write(content)
                self._restore(persistence.load_model(folder), None)

    def _write(self, folder: str) -> None:
        optimizer = None if self.model_ is None else self.model_.optimizer
        extra = self._get_serializable_dict()
        persistence.save_model(folder, self.encoder_, head=self.head_, optimizer=optimizer, extra=extra)

    def _restore(self, saved: persistence.SavedModel, custom_objects: Mapping[str, Any] | None) -> None:
        optimizer = None
        if saved.optimizer is not None:
            variables = saved.encoder.trainable_variables + (saved.head.trainable_variables if saved.head else [])
            optimizer = saved.optimizer.restore(variables, custom_objects)
        self._assemble(saved.encoder, saved.head, optimizer)

    def _assemble(self, encoder: keras.Model, head: keras.Model | None, optimizer: Any = None) -> Any:
        raise NotImplementedError


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return getattr(value, "__name__", type(value).__name__) if callable(value) else value
