"""Saving and loading a model: Keras files and JSON, with digests; nothing that runs on loading."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from ivis_spark.errors import ArtifactError
from ivis_spark.nn.safety import check_code

_FORMAT = 1
_INDEX = "model.json"
_ENCODER = "encoder.keras"
_HEAD = "head.keras"


@dataclass(frozen=True)
class SavedModel:
    """What a folder held: the encoder, the supervised head if there was one, and the caller's own facts."""

    encoder: keras.Model
    head: keras.Model | None
    extra: dict[str, Any]


def save_model(
    folder: str, encoder: keras.Model, *, head: keras.Model | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a model into a local folder, which is made when it does not exist.

    Runs on: driver, or rank 0.

    Args:
        folder: Local path.
        encoder: The network that embeds.
        head: The network from the embedding to labels.
        extra: Facts to keep with the model; anything JSON can hold.
    """
    os.makedirs(folder, exist_ok=True)
    models = {_ENCODER: encoder, **({_HEAD: head} if head is not None else {})}
    digests = {}
    for name, model in models.items():
        path = os.path.join(folder, name)
        model.save(path)
        digests[name] = _digest(path)
    index = {"format": _FORMAT, "keras": keras.__version__, "files": digests, "extra": dict(extra or {})}
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
        ArtifactError: if a file is missing, torn or altered, or the model has code that was not passed.
    """
    index = _read_index(os.path.join(folder, _INDEX))
    models: dict[str, keras.Model] = {}
    for name, digest in index["files"].items():
        path = os.path.join(folder, os.path.basename(name))
        if not os.path.isfile(path):
            raise ArtifactError(f"{path!r} is missing, though {_INDEX} lists it: copy the whole folder, or train again")
        if _digest(path) != digest:
            raise ArtifactError(f"{path!r} is torn or was altered: its digest is not the one in {_INDEX}; train again")
        models[name] = load_keras(path, custom_objects)
    return SavedModel(models[_ENCODER], models.get(_HEAD), index["extra"])


def _read_index(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            index: dict[str, Any] = json.load(file)
    except FileNotFoundError as err:
        raise ArtifactError(f"{path!r} is missing: the folder holds no saved model; pass one, or train first") from err
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path!r} cannot be read ({err}): it is torn; train again") from err
    newer = isinstance(index, dict) and isinstance(index.get("format"), int) and index["format"] > _FORMAT
    if newer:
        raise ArtifactError(f"{path!r} has format {index['format']}; this version reads {_FORMAT}: update ivis_spark")
    if not isinstance(index, dict) or index.get("format") != _FORMAT or _ENCODER not in index.get("files", {}):
        raise ArtifactError(f"{path!r} is not of format {_FORMAT}: it was written by another version; train again")
    return index


def load_keras(path: str, custom_objects: Mapping[str, Any] | None = None) -> keras.Model:
    """Read a `.keras` file without running or importing anything that it names, save what the caller passes.

    Runs on: driver, executor, each rank.

    Raises:
        ArtifactError: if the file is torn, or needs code that was not passed.
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
