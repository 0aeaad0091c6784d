"""The parameters of `Ivis`, and what they mean as settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from ivis_spark.config import (
    AUTO,
    IVIS_SUPERVISION,
    Config,
    NeighboursConfig,
    TrainConfig,
)
from ivis_spark.core.seeds import RandomState
from ivis_spark.estimator.arguments import FOLLOWED, naming_arguments, with_hints
from ivis_spark.estimator.settings import PRESET, TRAIN_SETTINGS, with_preset
from ivis_spark.nn.losses import Loss, triplet_loss


class Parameters(BaseEstimator):  # type: ignore[misc]
    """The parameters of `Ivis`, documented there."""

    @with_hints
    def __init__(
        self,
        embedding_dims: int = TrainConfig.embedding_dims,
        k: int | str = PRESET,
        distance: Any = PRESET,
        batch_size: int | str = PRESET,
        epochs: int | str = PRESET,
        n_epochs_without_progress: int | str = PRESET,
        n_trees: int = NeighboursConfig.n_trees,
        ntrees: int | None = None,
        knn_distance_metric: str = PRESET,
        search_k: int = NeighboursConfig.search_k,
        precompute: bool = True,
        model: Any = TrainConfig.model,
        supervision_metric: Any = IVIS_SUPERVISION,
        supervision_weight: float = TrainConfig.supervision_weight,
        annoy_index_path: str | None = None,
        callbacks: Iterable[keras.callbacks.Callback] | None = None,
        build_index_on_disk: bool = True,
        neighbour_matrix: Sequence[Any] | NDArray[Any] | None = None,
        verbose: int = 1,
        *,
        random_state: RandomState = Config.random_state,
        learning_rate: float | str = PRESET,
        margin: float = TrainConfig.margin,
        n_jobs: int = -1,
        temperature: float = TrainConfig.temperature,
        clip: float | None = TrainConfig.clip,
        shared_negatives: int | str | None = PRESET,
        exaggeration: float | str = PRESET,
        exaggeration_share: float = TrainConfig.exaggeration_share,
        global_weight: float | str = PRESET,
        dropout: float | str = PRESET,
        compute_precision: str = TrainConfig.compute_precision,
        optimizer: str = TrainConfig.optimizer,
        schedule: str = PRESET,
        warmup_epochs: int | str = PRESET,
        cooldown_epochs: int | str = PRESET,
        clipnorm: float | str | None = PRESET,
        negatives: int = TrainConfig.negatives,
        preset: str = "ivis",
        warm_start: bool = False,
        n_components: int | None = None,
    ) -> None:
        """Keep the parameters; they are checked by `fit`."""
        self.embedding_dims = embedding_dims
        self.k = k
        self.distance = distance
        self.batch_size = batch_size
        self.epochs = epochs
        self.n_epochs_without_progress = n_epochs_without_progress
        self.n_trees = n_trees
        self.ntrees = ntrees
        self.knn_distance_metric = knn_distance_metric
        self.search_k = search_k
        self.precompute = precompute
        self.model = model
        self.supervision_metric = supervision_metric
        self.supervision_weight = supervision_weight
        self.annoy_index_path = annoy_index_path
        self.callbacks = callbacks
        self.build_index_on_disk = build_index_on_disk
        self.neighbour_matrix = neighbour_matrix
        self.verbose = verbose
        self.random_state = random_state
        self.learning_rate = learning_rate
        self.margin = margin
        self.n_jobs = n_jobs
        self.temperature = temperature
        self.clip = clip
        self.shared_negatives = shared_negatives
        self.exaggeration = exaggeration
        self.exaggeration_share = exaggeration_share
        self.global_weight = global_weight
        self.dropout = dropout
        self.compute_precision = compute_precision
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_epochs = warmup_epochs
        self.cooldown_epochs = cooldown_epochs
        self.clipnorm = clipnorm
        self.negatives = negatives
        self.preset = preset
        self.warm_start = warm_start
        self.n_components = n_components

    def _config(self) -> Config:
        values = with_preset(self.get_params(deep=False))
        train = {setting: values[name] for name, setting in TRAIN_SETTINGS.items()}
        auto: Any = AUTO  # the network is built by name here
        with naming_arguments():
            near = NeighboursConfig(
                k=values["k"],
                metric=values["knn_distance_metric"],
                n_trees=self.n_trees if self.ntrees is None else self.ntrees,
                search_k=self.search_k,
            )
            return Config(preset="ivis", neighbours=near, train=TrainConfig(**train, model=auto))

    def _followed(self) -> dict[str, Any]:
        """Return the arguments that a model was made with, or should follow."""
        values = with_preset(self.get_params(deep=False))
        return {name: values[name] for name in FOLLOWED}

    def _loss(self) -> Loss:
        values = with_preset(self.get_params(deep=False))
        names = ("distance", "margin", "temperature", "clip", "shared_negatives")
        with naming_arguments():
            return triplet_loss(*(values[name] for name in names))
