"""Saving and loading a model: Keras files and JSON, with digests; loading runs no code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ivis_spark.errors import UNREADABLE, ArtifactError
from ivis_spark.manifest import check_fields, check_list
from ivis_spark.nn.optimizer import FusedAdam
from ivis_spark.nn.safety import check_code

_FORMAT = 1
_INDEX = "model.json"
_ENCODER = "encoder.keras"
_HEAD = "head.keras"
_OPTIMIZER = "optimizer.npz"


@dataclass(frozen=True)
class SavedOptimizer:
    """An optimizer as it stood: its class, its settings and its state, in the order of its variables."""

    name: str
    config: dict[str, Any]
    state: list[NDArray[Any]]

    @classmethod
    def of(cls, optimizer: Any) -> SavedOptimizer:
        """Take the state of an optimizer."""
        state = [keras.ops.convert_to_numpy(variable) for variable in optimizer.variables]
        return cls(type(optimizer).__name__, optimizer.get_config(), state)

    def restore(self, variables: list[Any], custom_objects: Mapping[str, Any] | None = None) -> Any:
        """Make the optimizer again, for the variables it updated.

        Raises: ArtifactError: if it is neither Keras's nor passed in `custom_objects`, or does not fit the variables.
        """
        known = {FusedAdam.__name__: FusedAdam, **(custom_objects or {})}
        kind = known.get(self.name) or getattr(keras.optimizers, self.name, None)
        if kind is None:
            raise ArtifactError(
                f"the saved optimizer {self.name!r} is not one of Keras {keras.__version__}: pass its class in "
                "custom_objects"
            )
        optimizer = kind.from_config(dict(self.config))
        optimizer.build(variables)
        if [tuple(each.shape) for each in optimizer.variables] != [each.shape for each in self.state]:
            raise ArtifactError(f"the state of the saved optimizer {self.name!r} does not fit the network; train again")
        for variable, value in zip(optimizer.variables, self.state, strict=True):
            variable.assign(value)
        return optimizer


@dataclass(frozen=True)
class SavedModel:
    """What a folder held: the encoder, the supervised head and the optimizer if saved, and the caller's own facts."""

    encoder: keras.Model
    head: keras.Model | None
    extra: dict[str, Any]
    optimizer: SavedOptimizer | None = None


def save_model(
    folder: str,
    encoder: keras.Model | None,
    *,
    head: keras.Model | None = None,
    optimizer: Any | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model into a local folder, which is made when it does not exist.

    Runs on: driver, or rank 0.

    Args:
        folder: Local path.
        encoder: The network that embeds; None saves the facts alone.
        head: The network from the embedding to labels.
        optimizer: A built Keras optimizer, whose state is kept so that training can go on.
        extra: Facts to keep with the model; anything JSON can hold.
    """
    os.makedirs(folder, exist_ok=True)
    for name, model in ((_ENCODER, encoder), (_HEAD, head)):
        if model is not None:
            model.save(os.path.join(folder, name))
    index: dict[str, Any] = {"format": _FORMAT, "keras": keras.__version__, "extra": dict(extra or {})}
    if optimizer is not None:
        saved = SavedOptimizer.of(optimizer)
        index["optimizer"] = {"name": saved.name, "config": saved.config}
        np.savez(os.path.join(folder, _OPTIMIZER), *saved.state)
    written = [name for name in (_ENCODER, _HEAD, _OPTIMIZER) if os.path.exists(os.path.join(folder, name))]
    index["files"] = {name: _digest(os.path.join(folder, name)) for name in written}
    with open(os.path.join(folder, _INDEX), "w", encoding="utf-8") as file:
        json.dump(index, file, indent=2, sort_keys=True)
        file.write("\n")


def load_model(folder: str, *, custom_objects: Mapping[str, Any] | None = None) -> SavedModel:
    """Read what `save_model` wrote, after checking that no file changed.

    Runs on: driver, each rank.

    Args:
        folder: Local path.
        custom_objects: Layers and functions of a custom backbone by name; only what stands here is used.

    Raises:
        ArtifactError: if a file is missing, corrupt or modified, or the model needs code that was not passed.
    """
    index = _read_index(os.path.join(folder, _INDEX))
    if _ENCODER not in index["files"]:
        raise ArtifactError(f"{folder!r} holds a model that was saved before it was trained; train it first")
    paths = {}
    for name, digest in index["files"].items():
        path = paths[name] = os.path.join(folder, os.path.basename(name))
        if not os.path.isfile(path):
            raise ArtifactError(f"{path!r} is missing, though {_INDEX} lists it: copy the whole folder, or train again")
        if _digest(path) != digest:
            raise ArtifactError(
                f"{path!r} is corrupt or was modified: its digest is not the one in {_INDEX}; train again"
            )
    head = load_keras(paths[_HEAD], custom_objects) if _HEAD in paths else None
    optimizer = _load_optimizer(paths[_OPTIMIZER], index) if _OPTIMIZER in paths else None
    return SavedModel(load_keras(paths[_ENCODER], custom_objects), head, index["extra"], optimizer)


def is_saved_model(folder: str) -> bool:
    """Tell whether `save_model` wrote a folder."""
    return os.path.isfile(os.path.join(folder, _INDEX))


def foreign_files(folder: str) -> list[str]:
    """Return the names in a folder that `save_model` did not write; all of them if it holds no saved model."""
    names = sorted(os.listdir(folder))
    try:
        ours = {_INDEX, *_read_index(os.path.join(folder, _INDEX))["files"]}
    except ArtifactError:
        return names
    return [name for name in names if name not in ours]


def is_trained(folder: str) -> bool:
    """Tell whether a saved model has a network; one saved before it was trained has only facts.

    Raises: ArtifactError: if the folder holds no saved model.
    """
    return _ENCODER in _read_index(os.path.join(folder, _INDEX))["files"]


def load_extra(folder: str) -> dict[str, Any]:
    """Return the caller's own facts of a saved model.

    Raises: ArtifactError: if the folder holds no saved model.
    """
    extra: dict[str, Any] = _read_index(os.path.join(folder, _INDEX))["extra"]
    return extra


def _load_optimizer(path: str, index: dict[str, Any]) -> SavedOptimizer:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            state = [arrays[f"arr_{position}"] for position in range(len(arrays.files))]
        return SavedOptimizer(index["optimizer"]["name"], index["optimizer"]["config"], state)
    except UNREADABLE as err:
        raise ArtifactError(f"{path!r} cannot be read ({err}): it is corrupt; train again") from err


def _read_index(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
    except FileNotFoundError as err:
        raise ArtifactError(f"{path!r} is missing: the folder holds no saved model; pass one, or train first") from err
    except UNREADABLE as err:
        raise ArtifactError(f"{path!r} cannot be read ({err}): it is corrupt; train again") from err
    newer = isinstance(index, dict) and isinstance(index.get("format"), int) and index["format"] > _FORMAT
    if newer:
        raise ArtifactError(f"{path!r} has format {index['format']}; this version reads {_FORMAT}: update ivis_spark")
    try:
        if check_fields(index, format=int, files=dict, extra=dict)["format"] != _FORMAT:
            raise ValueError(f"its format is {index['format']}")
        check_list(list(index["files"].values()), str, "files")
        if "optimizer" in index:
            check_fields(index["optimizer"], name=str, config=dict)
    except ValueError as err:
        raise ArtifactError(
            f"{path!r} is not of format {_FORMAT} ({err}): it was written by another version; train again"
        ) from err
    return dict(index)


def load_keras(path: str, custom_objects: Mapping[str, Any] | None = None) -> keras.Model:
    """Read a `.keras` file without running or importing anything that it names, save what the caller passes.

    Runs on: driver, executor, each rank.

    Raises:
        ArtifactError: if the file is corrupt, or needs code that was not passed.
    """
    check_code(path, custom_objects or {})
    try:
        return keras.saving.load_model(path, custom_objects=dict(custom_objects or {}), compile=False, safe_mode=True)
    except (ValueError, TypeError) as err:
        raise ArtifactError(
            f"{path!r} cannot be loaded by Keras {keras.__version__}: {err}; pass the layers of a custom backbone in "
            "custom_objects (code inside a file is never run)"
        ) from err


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
