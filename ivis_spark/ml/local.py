"""The model of Spark ML as an `Ivis`, and back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.config import Config, setting_names
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import NotFittedError
from ivis_spark.ml.params import settings
from ivis_spark.serving.folder import ModelFolder, add_serving_files, load_folder

if TYPE_CHECKING:
    import keras

    from ivis_spark.estimator import Ivis

_UNKNOWN_ROWS = 10_000  # of a model that came from elsewhere, for settings that follow the rows
# What an `Ivis` has of the section `neighbours`, kept in the model for it.
NEIGHBOURS = ("k", "metric", "n_trees", "search_k")


def to_local(folder: ModelFolder, encoder: keras.Model, head: keras.Model | None, *, rows: int | None) -> Ivis:
    """Return an `Ivis` with the networks of a model and the settings of its fit.

    Its `preset` is `ivis`: all that another preset chose stands in the parameters.

    Args:
        folder: The model.
        encoder: Its network, scaling included.
        head: Its supervised head.
        rows: Rows that it was trained on, if known.
    """
    from ivis_spark.estimator import Ivis

    fitted = {name: value for name, value in folder.spec["config"].items() if name in ("train", "random_state")}
    fitted |= {"neighbours": folder.info["neighbours"]} if "neighbours" in folder.info else {}
    config = Config.from_mapping({**fitted, "preset": "ivis"}).for_rows(rows or _UNKNOWN_ROWS)
    local = Ivis.from_config(config)
    local._assemble(encoder, head)
    local._loaded, local._made_with = True, local._followed()
    names = folder.serving["features"]
    if len(names) == folder.n_inputs > 1:
        local.feature_names_in_ = np.array(names, dtype=object)
    local.n_features_in_ = int(encoder.input_shape[1])
    local.n_classes_ = None if head is None else int(head.output_shape[-1])
    local.classes_ = local_classes(folder.classes)
    return local


def fitted_settings(folder: ModelFolder, *, rows: int | None) -> dict[str, Any]:
    """Return the settings of the fit that a model knows, by the names of Params.

    Args:
        folder: The model.
        rows: Rows that it was trained on, which decide what `auto` was; None leaves it.
    """
    fitted: dict[str, Any] = {"neighbours": folder.info.get("neighbours", {}), **folder.info.get("fitted", {})}
    fitted |= folder.spec["config"]
    if rows is not None:
        names, valid = ("neighbours", "triplets", "train"), setting_names()  # older versions had others
        known = {
            name: {key: value for key, value in fitted.get(name, {}).items() if f"{name}.{key}" in valid}
            for name in names
        }
        resolved = Config.from_mapping({**known, "preset": "ivis"}).for_rows(rows, anchors=folder.info.get("anchors"))
        sections = resolved.to_mapping()
        fitted |= {name: {key: sections[name][key] for key in known[name]} for name in names}
    if "preset" in folder.info:
        fitted["preset"] = folder.info["preset"]
    found = {}
    for name, setting in settings().items():
        section = fitted.get(setting.section, {}) if setting.section else fitted
        if setting.name in section:
            found[name] = section[setting.name]
    return found


def from_local(local: Ivis, info: dict[str, Any]) -> ModelFolder:
    """Return the files of the model of a fitted `Ivis`.

    Args:
        local: The model.
        info: Figures to keep with it.

    Raises:
        NotFittedError: if it is not fitted.
    """
    from ivis_spark.estimator.settings import TRAIN_SETTINGS, with_preset
    from ivis_spark.nn.persistence import save_model
    from ivis_spark.nn.projection import split_projection
    from ivis_spark.nn.scaling import split_scaling

    if local.encoder_ is None:
        raise NotFittedError("the Ivis is not fitted: call fit before from_local")
    encoder, scaler = split_scaling(local.encoder_)
    if local.projection_ is not None:  # it has more digits than the network's first layer, and takes sparse rows
        encoder, scaler = split_projection(local.encoder_)[0], Scaler.of_projection(local.projection_)
    params = with_preset(local.get_params(deep=False))
    train = {setting: params[name] for name, setting in TRAIN_SETTINGS.items()}
    train |= {"distance": params["distance"]} if isinstance(params["distance"], str) else {}
    train |= {"supervision_metric": params["supervision_metric"]} if local.head_ is not None else {}
    near = local._config().neighbours
    info = {**info, "neighbours": {name: getattr(near, name) for name in NEIGHBOURS}}
    with tempfile.TemporaryDirectory(prefix="ivis-spark-") as folder:
        save_model(folder, encoder, head=local.head_)
        names = [str(name) for name in getattr(local, "feature_names_in_", ())]
        names = names if len(names) > 1 else []  # a single name would be that of an array of features
        add_serving_files(folder, features=names, scaler=scaler, classes=_spark_classes(local.classes_))
        seed = params["random_state"] if isinstance(params["random_state"], int) else local._seed
        spec = {"config": {"train": train, "random_state": seed}, "inputs": {}}
        return load_folder(folder, spec=spec, info=info)


def _spark_classes(classes: NDArray[Any] | None) -> dict[str, Any] | None:
    """Return the classes of an `Ivis` as a model folder has them, with the type of Spark's column."""
    if classes is None:
        return None
    kinds = {"b": "boolean", "i": "bigint", "u": "bigint", "M": "timestamp"}
    days = classes.dtype.kind == "M" and bool((classes == classes.astype("datetime64[D]")).all())
    kind = "date" if days else kinds.get(classes.dtype.kind, "string")
    values = classes.astype("datetime64[D]") if days else classes
    if kind == "bigint":
        return {"values": values.tolist(), "type": kind}
    texts = [str(value).replace("T", " ") if kind == "timestamp" else str(value) for value in values]
    return {"values": [text.lower() for text in texts] if kind == "boolean" else texts, "type": kind}


def local_classes(classes: Mapping[str, Any]) -> NDArray[Any] | None:
    """Return the classes of a model folder as an `Ivis` has them."""
    if not classes:
        return None
    values, kind = classes["values"], classes["type"]
    if kind == "boolean":
        return np.array([value == "true" for value in values])
    return np.array(values, dtype="datetime64" if kind in ("date", "timestamp") else None)
