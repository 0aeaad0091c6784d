"""Parameters of `Ivis` that are settings of pipelines, and what a preset makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ivis_spark.config import OTHER_LOSS, PRESETS, Config

# Default of the parameters whose values a preset decides. Any other value, also one that a preset has, is kept.
PRESET = "preset"
# Those that are settings `train.*` of pipelines, with their names there.
TRAIN_SETTINGS = {
    "n_epochs_without_progress": "patience",
    **{
        name: name
        for name in (
            "embedding_dims",
            "epochs",
            "batch_size",
            "supervision_weight",
            "learning_rate",
            "margin",
            "temperature",
            "clip",
            "shared_negatives",
            "exaggeration",
            "exaggeration_share",
            "global_weight",
            "dropout",
            "compute_precision",
            "optimizer",
            "schedule",
            "warmup_epochs",
            "cooldown_epochs",
            "clipnorm",
            "negatives",
        )
    },
}


def with_preset(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of an `Ivis`, with the values of its preset where they are "preset".

    A loss other than the preset's own gets another learning rate and schedule, as in pipelines.

    Raises: ConfigError: if there is no such preset.
    """
    name, distance = params["preset"], params["distance"]
    preset = params_of(Config(preset=name))
    if "distance" in PRESETS[name]["train"] and distance not in (PRESET, preset["distance"]):
        preset |= OTHER_LOSS
    return {name: preset.get(name, PRESET) if _is_preset(value) else value for name, value in params.items()}


def params_of(config: Config) -> dict[str, Any]:
    """Return the parameters that a pipeline's configuration stands for."""
    train, near = config.train, config.neighbours
    params = {name: getattr(train, setting) for name, setting in TRAIN_SETTINGS.items()}
    params |= {"distance": train.distance, "model": train.model, "random_state": config.random_state}
    params |= {"k": near.k, "knn_distance_metric": near.metric, "n_trees": near.n_trees, "search_k": near.search_k}
    if train.supervision_metric is not None:
        params["supervision_metric"] = train.supervision_metric
    return params


def _is_preset(value: Any) -> bool:
    return isinstance(value, str) and value == PRESET
