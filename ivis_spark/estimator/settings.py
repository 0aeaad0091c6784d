"""Parameters of `Ivis` that are settings of pipelines, and what a preset makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ivis_spark.config import AUTO, Config, NeighboursConfig, TrainConfig
from ivis_spark.nn.losses import Loss, triplet_loss

# Those that are settings `train.*` of pipelines, with their names there.
TRAIN_SETTINGS = {"n_epochs_without_progress": "patience"} | {
    name: name
    for name in (
        "embedding_dims epochs batch_size supervision_weight learning_rate margin temperature clip shared_negatives "
        "exaggeration exaggeration_share global_weight dropout compute_precision optimizer schedule warmup_epochs "
        "cooldown_epochs clipnorm negatives"
    ).split()
}


def with_preset(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of an `Ivis`, those left at their defaults as its preset has them.

    Raises: ConfigError: if there is no such preset.
    """
    defaults, preset = (params_of(Config(preset=name)) for name in ("ivis", params["preset"]))
    return {**params, **{name: preset[name] for name, value in defaults.items() if _same(params[name], value)}}


def params_of(config: Config) -> dict[str, Any]:
    """Return the parameters that a pipeline's configuration stands for."""
    train, neighbours = config.train, config.neighbours
    params = {name: getattr(train, setting) for name, setting in TRAIN_SETTINGS.items()}
    params |= {"distance": train.distance, "model": train.model, "random_state": config.random_state}
    params |= {"k": neighbours.k, "knn_distance_metric": neighbours.metric}
    params |= {"n_trees": neighbours.n_trees, "search_k": neighbours.search_k}
    if train.supervision_metric is not None:
        params["supervision_metric"] = train.supervision_metric
    return params


def config_of(params: Mapping[str, Any]) -> Config:
    """Return the settings of pipelines that the parameters of an `Ivis` stand for; the network is built by name."""
    values = with_preset(params)
    train = {setting: values[name] for name, setting in TRAIN_SETTINGS.items()}
    neighbours = NeighboursConfig(
        k=values["k"],
        metric=values["knn_distance_metric"],
        n_trees=values["n_trees"] if values["ntrees"] is None else values["ntrees"],
        search_k=values["search_k"],
    )
    auto: Any = AUTO
    return Config(preset="ivis", neighbours=neighbours, train=TrainConfig(**train, model=auto))


def loss_of(params: Mapping[str, Any]) -> Loss:
    """Return the loss of the triplets.

    Raises: ConfigError: if there is none of that name.
    """
    values = with_preset(params)
    names = ("distance", "margin", "temperature", "clip", "shared_negatives")
    return triplet_loss(*(values[name] for name in names))


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, type(default)) and bool(value == default))
