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
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError as SklearnNotFittedError

from ivis_spark import storage
from ivis_spark.core.projection import Projection
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import ArtifactError, ConfigError, ExistsError, NotFittedError
from ivis_spark.estimator.parameters import Parameters
from ivis_spark.nn import persistence
from ivis_spark.nn.ivis2 import is_ivis2_folder, load_ivis2_folder
from ivis_spark.nn.model import TripletModel
from ivis_spark.nn.optimizer import make_optimizer
from ivis_spark.nn.projection import split_projection, with_projection

# Parameters that hold objects: not saved with a model.
_OBJECTS = ("callbacks", "neighbour_matrix")
_CALLABLES = ("distance", "supervision_metric")
# Attributes that are rebuilt from what is saved, or by the next fit.
_REMADE = ("model_", "encoder_", "head_", "supervised_model_", "neighbour_matrix_")

_Self = TypeVar("_Self", bound="Saving")


class NotFitted(NotFittedError, SklearnNotFittedError):  # type: ignore[misc]
    """A model was used before it was trained or loaded; also scikit-learn's NotFittedError."""


class Saving(Parameters):
    """Saving, loading and pickling of `Ivis`."""

    # Defaults of the class: the constructor sets parameters only.
    encoder_: keras.Model | None = None
    head_: keras.Model | None = None
    supervised_model_: keras.Model | None = None
    model_: Any = None
    projection_: Projection | None = None
    loss_history_: list[float] = []  # noqa: RUF012 - a fit makes one of its own
    _seed: int
    n_classes_: int | None = None
    classes_: NDArray[Any] | None = None
    output_names_: NDArray[Any] | None = None
    _loaded = False
    _made_with: Mapping[str, Any] = {}

    def __sklearn_is_fitted__(self) -> bool:
        """Tell scikit-learn whether this can transform."""
        return self.encoder_ is not None

    @property
    def _n_features_out(self) -> int:
        """Dimensions of the embedding, for the names of its columns."""
        if self.encoder_ is None:
            raise AttributeError("not fitted")
        return int(self.encoder_.output_shape[-1])

    def _forget(self) -> None:
        """Drop all that a fit learnt."""
        for name in [name for name in self.__dict__ if name.endswith("_") or name == "_loaded"]:
            delattr(self, name)
        self.loss_history_ = []

    def save_model(self, folder_path: str, save_format: str = "keras", overwrite: bool = False) -> None:
        """Save into a new folder: networks, the state of the optimizer, parameters and the history of the loss.

        `embedding_` and `neighbour_matrix_`, which are of the rows of the fit, are not saved; a pickle has the former.
        The folder appears completely or not at all. For an untrained model only the parameters are saved.

        Args:
            folder_path: Local path; ~ is the home folder.
            save_format: Accepted for compatibility with ivis; Keras files are written.
            overwrite: Replace the saved model if there is one.

        Raises:
            ExistsError: if the folder exists, or holds files that are not part of a saved model; also an InputError and
                a FileExistsError.
            NotFittedError: if the model is not trained and would replace one that is.
            ConfigError: if there is no path.
        """
        del save_format
        if not folder_path:
            raise ConfigError("save_model needs folder_path, the folder to write, for example 'digits.ivis'")
        target = os.path.abspath(os.path.expanduser(folder_path))
        if os.path.exists(target) and not overwrite:
            raise ExistsError(f"{folder_path!r} exists; pass overwrite=True to replace it, or another path")
        if os.path.exists(target):
            if not os.path.isdir(target):
                raise ExistsError(f"{folder_path!r} is a file, not the folder of a saved model; choose another path")
            if foreign := persistence.foreign_files(target):
                raise ExistsError(
                    f"{folder_path!r} holds files that are not part of a saved model ({', '.join(foreign[:5])}); "
                    f"choose another path"
                )
            if self.encoder_ is None and os.listdir(target) and persistence.is_trained(target):
                raise NotFitted(
                    f"the model is not trained, and {folder_path!r} holds a trained one, which would be lost: call fit "
                    f"first, or choose another path"
                )
        os.makedirs(os.path.dirname(target), exist_ok=True)
        building, replaced = (f"{target}.{uuid.uuid4().hex[:8]}.{state}" for state in ("building", "replaced"))
        try:
            self._write(building)
            if os.path.exists(target):
                os.rename(target, replaced)
            os.rename(building, target)
        finally:
            if os.path.exists(replaced) and not os.path.exists(target):
                os.rename(replaced, target)
            for folder in (building, replaced):
                shutil.rmtree(folder, ignore_errors=True)

    def load_model(self: _Self, folder_path: str = "", custom_objects: Mapping[str, Any] | None = None) -> _Self:
        """Load a model saved by `save_model` or by ivis 2, including its parameters. `fit` then resumes training.

        A function passed before as `distance` or `supervision_metric` is kept.

        Args:
            folder_path: Local path; ~ is the home folder.
            custom_objects: Layers and functions of a custom backbone, by name.

        Raises:
            ArtifactError: if the folder is corrupt, modified or not a model.
            ConfigError: if the model was trained with a custom loss that is neither registered nor passed, or there is
                no instance or no path.
        """
        _check_instance(self, folder_path)
        folder_path = os.path.expanduser(folder_path)
        if os.path.isfile(folder_path):
            raise ArtifactError(f"{folder_path!r} is a file, not a folder: pass the folder that save_model wrote")
        if any(os.path.exists(os.path.join(folder_path, name)) for name in (storage.MARK, "metadata")):
            raise ConfigError(
                f"{folder_path!r} is a run folder or a saved model of Spark ML, not of Ivis: load it with "
                "ivis_spark.IvisModel.from_run or IvisModel.load, whose to_local() returns an Ivis"
            )
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
        self._forget()
        self._loaded = True
        self.loss_history_, self.n_classes_ = list(extra["loss_history"]), extra["n_classes"]
        self.classes_ = _restored(extra.get("classes"))
        if extra.get("feature_names"):
            self.feature_names_in_ = np.array(extra["feature_names"], dtype=object)
        if extra.get("output_names"):
            self.output_names_ = np.array(extra["output_names"], dtype=object)
        if extra.get("projection"):
            self.projection_ = Scaler.from_text(extra["projection"]).projection
        if loaded is not None:
            self._restore(loaded, custom_objects)
            self._made_with = self._followed()
        return self

    def _get_serializable_dict(self) -> dict[str, Any]:
        """Return the parameters and facts that JSON can hold; objects are left out, functions become their names."""
        params = {name: None if name in _OBJECTS else _plain(value) for name, value in self.get_params().items()}
        params["model"] = params["model"] if isinstance(params["model"], str) else None
        if not isinstance(params["random_state"], (int, type(None))):
            params["random_state"] = self._seed
        facts: dict[str, Any] = {"loss_history": list(self.loss_history_), "n_classes": self.n_classes_}
        facts |= {"classes": _kept(self.classes_), "feature_names": list(getattr(self, "feature_names_in_", ()))}
        facts["output_names"] = None if self.output_names_ is None else self.output_names_.tolist()
        facts["projection"] = None if self.projection_ is None else Scaler.of_projection(self.projection_).to_text()
        return {"params": params, **facts}

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
        encoder, projection = split_projection(saved.encoder)
        self.projection_ = self.projection_ or projection  # what is kept beside the network has more digits
        self._assemble(encoder, saved.head, optimizer)
        if saved.encoder.input_shape[1] is not None:
            self.n_features_in_ = int(saved.encoder.input_shape[1])

    def _assemble(self, encoder: keras.Model, head: keras.Model | None, optimizer: Any = None) -> None:
        config = self._config().train
        whole = with_projection(encoder, self.projection_)
        self.encoder_, self.head_ = whole, head
        self.supervised_model_ = None if head is None else keras.Model(whole.inputs[0], head(whole.outputs[0]))
        self.model_ = TripletModel(
            encoder,
            self._loss(),
            head=head,
            supervision_metric=self.supervision_metric,
            supervision_weight=config.supervision_weight,
            global_weight=config.global_weight,
            optimizer=optimizer or make_optimizer(config, encoder),
        )


def _check_instance(model: Any, folder_path: str) -> None:
    """Refuse `Ivis.load_model(path)`, where the path stands in for the instance."""
    if isinstance(model, (str, os.PathLike)):
        raise ConfigError(f"load_model is a method of an instance: Ivis().load_model({str(model)!r})")
    if not folder_path:
        raise ConfigError("load_model needs folder_path, the folder that save_model wrote")


def _kept(classes: NDArray[Any] | None) -> dict[str, Any] | None:
    """Return classes as JSON can hold them."""
    if classes is None:
        return None
    values = classes.astype(str) if classes.dtype.kind in "mM" else classes
    kept = [value if isinstance(value, (str, bool, int, float)) else str(value) for value in values.tolist()]
    return {"dtype": str(classes.dtype), "values": kept}


def _restored(kept: Mapping[str, Any] | None) -> NDArray[Any] | None:
    return None if kept is None else np.array(kept["values"], dtype=kept["dtype"])


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return getattr(value, "__name__", type(value).__name__) if callable(value) else value
