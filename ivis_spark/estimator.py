"""Ivis: the local estimator. It validates and calls; the work is done in core, nn, data and train."""

from __future__ import annotations

import inspect
import os
import shutil
import warnings
from collections.abc import Iterable
from typing import Any, cast

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.config import Config, Metric, NeighboursConfig, TrainConfig
from ivis_spark.core.neighbours import all_neighbours
from ivis_spark.data.arrays import check_neighbours, check_rows
from ivis_spark.data.sequence import triplet_dataset
from ivis_spark.errors import ConfigError, InputError, NotFittedError
from ivis_spark.nn import persistence
from ivis_spark.nn.callbacks import ProgressLogger
from ivis_spark.nn.losses import triplet_loss
from ivis_spark.nn.model import TripletModel
from ivis_spark.nn.networks import build_encoder, dense_network
from ivis_spark.nn.supervision import build_head, count_outputs
from ivis_spark.train.loop import fit as fit_model

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Parameters that hold objects: not saved with a model.
_UNSAVED = ("callbacks", "neighbour_matrix")


class Ivis:
    """Reduces dimensionality with a Siamese network trained on triplets; parameters are those of ivis.

    Args:
        embedding_dims: Dimensions of the embedding.
        k: Neighbours of each row; at most the number of rows minus 2.
        distance: Name of a triplet loss, or a function `(y_true, y_pred)` of triplets stacked as (3, b, e).
        batch_size: Triplets of a training step.
        epochs: Most passes over the rows.
        n_epochs_without_progress: Epochs without a lower loss after which training stops.
        n_trees: Trees of an Annoy index.
        ntrees: Deprecated name of `n_trees`.
        knn_distance_metric: Distance of the neighbours: angular, euclidean, manhattan, hamming or dot.
        search_k: Nodes Annoy inspects a query; -1 is n_trees * k.
        precompute: Kept for ivis's sake; neighbours are always computed before training.
        model: Name of a base network, or a Keras model, to which an embedding layer is added.
        supervision_metric: Keras loss of the labels.
        supervision_weight: Weight of the labels' loss against the triplet loss, in [0, 1].
        annoy_index_path: Not supported yet: must be None.
        callbacks: Keras callbacks.
        build_index_on_disk: Kept for ivis's sake.
        neighbour_matrix: Row numbers of each row's neighbours, shape (n, k); searched when None.
        verbose: 0 logs no progress.
        random_state: Seed of neighbours, triplets, weights and dropout.
        learning_rate: Of Adam.
        margin: Of the triplet loss.
    """

    def __init__(
        self,
        embedding_dims: int = TrainConfig.embedding_dims,
        *,
        k: int = 150,
        distance: Any = TrainConfig.distance,
        batch_size: int = TrainConfig.batch_size,
        epochs: int = TrainConfig.epochs,
        n_epochs_without_progress: int = 20,
        n_trees: int = NeighboursConfig.n_trees,
        ntrees: int | None = None,
        knn_distance_metric: str = "angular",
        search_k: int = NeighboursConfig.search_k,
        precompute: bool = True,
        model: Any = TrainConfig.model,
        supervision_metric: Any = "sparse_categorical_crossentropy",
        supervision_weight: float = TrainConfig.supervision_weight,
        annoy_index_path: str | None = None,
        callbacks: Iterable[keras.callbacks.Callback] | None = None,
        build_index_on_disk: bool = True,
        neighbour_matrix: ArrayLike | None = None,
        verbose: int = 1,
        random_state: int = Config.random_state,
        learning_rate: float = TrainConfig.learning_rate,
        margin: float = TrainConfig.margin,
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

        self.loss_history_: list[float] = []
        self.model_: TripletModel | None = None
        self.encoder_: keras.Model | None = None
        self.head_: keras.Model | None = None
        self.supervised_model_: keras.Model | None = None
        self.neighbour_matrix_: Ints | None = None
        self.n_classes_: int | None = None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name."""
        del deep
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Ivis:
        """Set parameters by name.

        Raises: ConfigError: if one is unknown.
        """
        valid = self._parameter_names()
        unknown = sorted(set(params) - set(valid))
        if unknown:
            raise ConfigError(f"Ivis has no parameter {', '.join(unknown)}; valid: {', '.join(valid)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """Tell scikit-learn whether this can transform."""
        return self.encoder_ is not None

    def __sklearn_tags__(self) -> Any:
        """Describe this to scikit-learn, which alone asks."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(None, TargetTags(required=False), TransformerTags(), input_tags=InputTags())

    def fit(self, X: ArrayLike, Y: ArrayLike | None = None, shuffle_mode: bool | str = True) -> Ivis:
        """Train on rows, and on their labels when given. A model that was trained or loaded is trained further.

        Args:
            X: Rows, shape (n, d), or (n, ...) with a backbone that takes it.
            Y: Labels, shape (n,) or (n, c). -1 is a missing class with sparse_categorical_crossentropy.
            shuffle_mode: Kept for ivis's sake; the order of rows is always random.

        Raises:
            InputError: if rows or labels cannot be used.
            ConfigError: if a parameter is not allowed.
            TrainingError: if the loss diverges.
        """
        del shuffle_mode
        config = self._train_config()
        rows = check_rows(X)
        labels = None if Y is None else self._check_labels(np.asarray(Y), len(rows))
        self.neighbour_matrix_ = neighbours = self._find_neighbours(rows)
        model = self.model_
        if model is None or (labels is not None) != (self.head_ is not None):
            model = self._build(rows.shape[1:], labels)
        self._check_width(rows)
        dataset, steps = triplet_dataset(
            rows, neighbours, labels=labels, batch_size=config.batch_size, random_state=self.random_state
        )
        callbacks = list(self.callbacks or ())
        if self.verbose:
            callbacks.append(ProgressLogger(len(rows), min_interval_s=1.0))
        history = fit_model(model, dataset, steps_per_epoch=steps, config=config, callbacks=callbacks)
        self.loss_history_ = [*self.loss_history_, *history["loss"]]
        return self

    def fit_transform(self, X: ArrayLike, Y: ArrayLike | None = None, shuffle_mode: bool | str = True) -> Floats:
        """Train on rows and embed them, see `fit` and `transform`."""
        return self.fit(X, Y, shuffle_mode).transform(X)

    def transform(self, X: ArrayLike) -> Floats:
        """Embed rows, shape (n, d) -> (n, embedding_dims).

        Raises:
            NotFittedError: before `fit` or `load_model`.
            InputError: if the rows cannot be used.
        """
        return self._predict(self.encoder_, X)

    def score_samples(self, X: ArrayLike) -> Floats:
        """Predict labels: class probabilities, or values; shape (n, d) -> (n, c).

        Raises:
            NotFittedError: if the model was not trained with labels.
            InputError: if the rows cannot be used.
        """
        if self.encoder_ is not None and self.supervised_model_ is None:
            raise NotFittedError("Model was not trained in classification mode: pass labels to fit")
        return self._predict(self.supervised_model_, X)

    def save_model(self, folder_path: str, save_format: str = "keras", overwrite: bool = False) -> None:
        """Save into a new folder.

        Args:
            folder_path: Local path.
            save_format: Kept for ivis's sake; Keras files are written.
            overwrite: Replace the folder if it exists.

        Raises:
            NotFittedError: before `fit` or `load_model`.
            InputError: if the folder exists.
        """
        del save_format
        if self.encoder_ is None:
            raise NotFittedError("Model was not fitted yet. Call `fit` before calling `save_model`.")
        if os.path.exists(folder_path):
            if not overwrite:
                raise InputError(f"{folder_path!r} exists; pass overwrite=True to replace it, or another path")
            shutil.rmtree(folder_path)
        saved = {name: value for name, value in self.get_params().items() if name not in _UNSAVED}
        saved["model"] = saved["model"] if isinstance(saved["model"], str) else None
        for name in ("distance", "supervision_metric"):
            if callable(saved[name]):
                saved[name] = getattr(saved[name], "__name__", type(saved[name]).__name__)
        extra = {"params": saved, "loss_history": self.loss_history_, "n_classes": self.n_classes_}
        persistence.save_model(folder_path, self.encoder_, head=self.head_, extra=extra)

    def load_model(self, folder_path: str) -> Ivis:
        """Load what `save_model` wrote, parameters included. A custom `distance` given before is kept.

        Raises: ArtifactError: if the folder is torn, altered or no model.
        """
        loaded = persistence.load_model(folder_path)
        params = loaded.extra["params"]
        for name in ("distance", "supervision_metric"):
            if callable(getattr(self, name)):
                params[name] = getattr(self, name)
        self.set_params(**params)
        self.loss_history_, self.n_classes_ = loaded.extra["loss_history"], loaded.extra["n_classes"]
        self._assemble(loaded.encoder, loaded.head)
        return self

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls).parameters]

    def _train_config(self) -> TrainConfig:
        if self.annoy_index_path is not None:
            raise ConfigError(f"annoy_index_path={self.annoy_index_path!r} is not supported yet: pass neighbour_matrix")
        return TrainConfig(
            embedding_dims=self.embedding_dims,
            margin=self.margin,
            epochs=self.epochs,
            patience=self.n_epochs_without_progress,
            cooldown_epochs=0,  # ivis has none, and its users count the epochs
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            supervision_weight=self.supervision_weight,
        )

    def _find_neighbours(self, rows: Floats) -> Ints:
        if self.neighbour_matrix is not None:
            return check_neighbours(np.asarray(self.neighbour_matrix), len(rows))
        if self.ntrees is not None:
            warnings.warn("ntrees is deprecated; use n_trees", FutureWarning, stacklevel=3)
        if self.k > len(rows) - 2:
            raise InputError(
                f"k={self.k} must be at most n_rows - 2 = {len(rows) - 2}, so that each row has a negative outside its "
                "neighbours; lower k or pass more rows"
            )
        config = NeighboursConfig(
            k=self.k,
            metric=cast("Metric", self.knn_distance_metric),
            n_trees=self.n_trees if self.ntrees is None else self.ntrees,
            search_k=self.search_k,
        )
        return all_neighbours(rows.reshape(len(rows), -1), config, random_state=self.random_state)[0]

    def _check_labels(self, labels: NDArray[Any], n_rows: int) -> NDArray[Any]:
        if len(labels) != n_rows:
            raise InputError(f"Y has {len(labels)} labels for {n_rows} rows of X; pass one label a row")
        self.n_classes_ = count_outputs(self.supervision_metric, labels)
        return labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)

    def _build(self, input_shape: tuple[int, ...], labels: NDArray[Any] | None) -> TripletModel:
        encoder, head = self.encoder_, None
        if encoder is None:
            encoder = build_encoder(self.model, input_shape, self.embedding_dims, self.random_state)
        if labels is not None:
            units = count_outputs(self.supervision_metric, labels)
            head = build_head(self.supervision_metric, units, encoder.output_shape[-1], seed=self.random_state)
        return self._assemble(encoder, head)

    def _assemble(self, encoder: keras.Model, head: keras.Model | None) -> TripletModel:
        self.encoder_, self.head_ = encoder, head
        self.supervised_model_ = None if head is None else keras.Model(encoder.inputs[0], head(encoder.outputs[0]))
        self.model_ = TripletModel(
            encoder,
            triplet_loss(self.distance, self.margin),
            head=head,
            supervision_metric=self.supervision_metric,
            supervision_weight=self.supervision_weight,
            learning_rate=self.learning_rate,
        )
        return self.model_

    def _check_width(self, rows: Floats) -> None:
        if self.encoder_ is None:
            raise NotFittedError("Model was not fitted yet. Call `fit` before calling `transform`.")
        wanted = tuple(self.encoder_.input_shape[1:])
        if len(wanted) != rows.ndim - 1 or any(w not in (None, g) for w, g in zip(wanted, rows.shape[1:], strict=True)):
            raise InputError(
                f"rows of X have shape {rows.shape[1:]}; the model takes {wanted}: pass rows of that shape"
            )

    def _predict(self, network: keras.Model, X: ArrayLike) -> Floats:
        rows = check_rows(X)
        self._check_width(rows)
        dense = dense_network(network)
        output: Floats = dense(rows) if dense else network.predict(rows, batch_size=self.batch_size, verbose=0)
        return output
