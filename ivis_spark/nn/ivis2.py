"""Models that ivis 2 saved: their networks and parameters, read without running any code in them.

ivis 2 writes Keras 2 models as .h5 files or TensorFlow SavedModels, and pickles the optimizer state, which is therefore
not loaded: networks are restored completely, and training resumes with a new optimizer.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping
from typing import Any

import h5py  # which Keras itself needs
import keras
import numpy as np
import tensorflow as tf

from ivis_spark.errors import UNREADABLE, ArtifactError
from ivis_spark.manifest import check_fields
from ivis_spark.nn.persistence import SavedModel, is_saved_model
from ivis_spark.nn.safety import check_config
from ivis_spark.nn.supervision import build_head

_PARAMETERS = "ivis_params.json"
_ENCODER = "ivis_model"
_SUPERVISED = "supervised_model"
_HEAD_LAYER = "supervised"
_VARIABLE = "{}/.ATTRIBUTES/VARIABLE_VALUE"
_REMEDY = 'save it again in ivis with save_format="h5", or pass the layers of a custom backbone in custom_objects'


def is_ivis2_folder(folder: str) -> bool:
    """Tell whether ivis 2 wrote a folder."""
    return os.path.isfile(os.path.join(folder, _PARAMETERS)) and not is_saved_model(folder)


def load_ivis2_folder(folder: str, *, custom_objects: Mapping[str, Any] | None = None) -> SavedModel:
    """Read what `save_model` of ivis 2 wrote.

    Args:
        folder: Local path.
        custom_objects: Layers and functions of a custom backbone by name.

    Returns:
        The encoder (None if the model was saved before it was trained), the supervised head if there is one, and
        `params`, `loss_history` and `n_classes`.

    Raises:
        ArtifactError: if a file is corrupt, or holds layers that were not passed.
    """
    path = os.path.join(folder, _PARAMETERS)
    try:
        with open(path, encoding="utf-8") as file:
            facts = check_fields(json.load(file))
    except UNREADABLE as err:
        raise ArtifactError(f"{path!r} cannot be read ({err}): it is corrupt; save the model again") from err
    params = {name: value for name, value in facts.items() if not name.endswith("_")}
    params.update(callbacks=None, neighbour_matrix=None)
    extra = {"params": params, "loss_history": facts.get("loss_history_", []), "n_classes": facts.get("n_classes_")}
    encoder = _load_network(folder, _ENCODER, custom_objects)
    weights = None if encoder is None else _load_head(os.path.join(folder, _SUPERVISED))
    head = None
    if weights is not None:
        head = build_head(params["supervision_metric"], weights[1].size, weights[0].shape[0])
        head.set_weights(weights)
    return SavedModel(encoder, head, extra)


def _load_network(folder: str, name: str, custom_objects: Mapping[str, Any] | None) -> keras.Model | None:
    path = os.path.join(folder, name)
    try:
        if os.path.isfile(f"{path}.h5"):
            with h5py.File(f"{path}.h5", "r") as file:
                described = json.loads(file.attrs["model_config"])
            # Keras looks for code in such files from 3.11.3 on.
            check_config(described, f"{path}.h5", custom_objects or {})
            return keras.saving.load_model(f"{path}.h5", custom_objects=dict(custom_objects or {}), compile=False)
        if os.path.isdir(path):
            return _load_saved_model(path, custom_objects)
    except (OSError, ValueError, TypeError, KeyError, tf.errors.OpError) as err:
        raise ArtifactError(f"{path!r} cannot be read as a network of Keras 2 ({err}): {_REMEDY}") from err
    return None


def _load_head(path: str) -> list[Any] | None:
    """Return kernel (e, c) and bias (c,) of the supervised layer, the last of the supervised model, if there is one.

    The model around it also holds the encoder, in a form that Keras 3 does not read.
    """
    try:
        if os.path.isfile(f"{path}.h5"):
            head_parts: dict[str, Any] = {}
            with h5py.File(f"{path}.h5", "r") as file:
                group = file["model_weights"][_HEAD_LAYER]
                group.visititems(lambda name, item: head_parts.update({posixpath.basename(name): item}))
                return [np.asarray(head_parts["kernel:0"]), np.asarray(head_parts["bias:0"])]
        if os.path.isdir(path):
            variables = tf.train.load_checkpoint(os.path.join(path, "variables", "variables"))
            keys = [_VARIABLE.format(f"layer_with_weights-1/{name}") for name in ("kernel", "bias")]
            return [variables.get_tensor(key) for key in keys]
    except (OSError, KeyError, tf.errors.OpError) as err:
        raise ArtifactError(f"{path!r} cannot be read as a supervised model of ivis 2 ({err}): {_REMEDY}") from err
    return None


def _load_saved_model(path: str, custom_objects: Mapping[str, Any] | None) -> keras.Model:
    """Build the network that a SavedModel's Keras metadata describes and give it the variables; no graph is run."""
    with open(os.path.join(path, "keras_metadata.pb"), "rb") as file:
        text = file.read().decode("utf-8", errors="replace")
    described, _ = json.JSONDecoder().raw_decode(text, text.index("{"))  # the first node is the whole network
    check_config(described, path, custom_objects or {})
    network = keras.Model.from_config(_without_tuples(described["config"]), custom_objects=dict(custom_objects or {}))
    variables = tf.train.load_checkpoint(os.path.join(path, "variables", "variables"))
    _assign(network, variables, prefix="")
    return network


def _without_tuples(config: Any) -> Any:
    """Return JSON in which Keras 2's marked tuples are lists."""
    if isinstance(config, list):
        return [_without_tuples(item) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "__tuple__":
        return _without_tuples(config["items"])
    return {key: _without_tuples(value) for key, value in config.items()}


def _assign(network: keras.Model, variables: Any, prefix: str) -> None:
    """Give every layer its variables; layers that have any are numbered in order."""
    weighted = [layer for layer in network.layers if layer.weights]
    for number, layer in enumerate(weighted):
        at = f"{prefix}layer_with_weights-{number}/"
        if isinstance(layer, keras.Model):
            _assign(layer, variables, at)
            continue
        for weight in layer.weights:
            key = _VARIABLE.format(f"{at}{weight.name}")
            if not variables.has_tensor(key):
                raise KeyError(f"there is no variable {weight.name!r} of layer {layer.name!r}")
            weight.assign(variables.get_tensor(key))
