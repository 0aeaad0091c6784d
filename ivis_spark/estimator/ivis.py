"""Ivis, the local estimator. It validates input and delegates to core, nn, data and train."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import warnings
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin

from ivis_spark.config import AUTO, Config, NeighboursConfig, TrainConfig
from ivis_spark.core.seeds import to_seed
from ivis_spark.data.arrays import warn_of_other_order
from ivis_spark.data.neighbour_retrieval.search import Neighbours, find_neighbours, read_neighbours
from ivis_spark.data.rows import Rows, as_rows, learn_projection, project
from ivis_spark.data.triplets import triplet_dataset
from ivis_spark.errors import ConfigError, InputError
from ivis_spark.estimator.arguments import OF_HEAD, OF_OPTIMIZER, changed, check_network, naming_arguments
from ivis_spark.estimator.labels import labels_for
from ivis_spark.estimator.names import check_kind, in_order, names_of
from ivis_spark.estimator.predicting import (
    check_components,
    check_width,
    embed_fitted,
    predict,
    rows_to_search,
    warn_of_components,
    warn_of_rows,
)
from ivis_spark.estimator.saving import NotFitted, Saving
from ivis_spark.estimator.settings import params_of
from ivis_spark.nn.callbacks import FitProgress
from ivis_spark.nn.model import TripletModel, restorer
from ivis_spark.nn.networks import build_encoder
from ivis_spark.nn.optimizer import make_optimizer
from ivis_spark.nn.projection import split_projection
from ivis_spark.nn.scaling import split_scaling
from ivis_spark.nn.supervision import build_head
from ivis_spark.progress import say
from ivis_spark.train.loop import fit as fit_model

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

_LEAST_ROWS = 3


class Ivis(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Saving):  # type: ignore[misc]
    """Reduces dimensionality with a Siamese network trained on triplets; parameters are those of ivis.

    A scikit-learn transformer: `fit` starts from scratch each time, unless `warm_start` is set or the model was loaded.

    Data may be an array of any numeric type and of more than two dimensions, a data frame, a SciPy sparse matrix, an
    HDF5 dataset, a memory map, an `ivis_spark.data.sequence.IndexableDataset`, or anything else with `shape` that
    returns a row by index. Data that is not in memory is read a batch at a time. Columns of data frames are matched by
    name.

    Parameters that default to "preset" have the values of the preset, which are given as [ivis; fast]. Any other value
    is kept, whatever the preset is.

    Args:
        embedding_dims: Dimensions of the embedding.
        k: Neighbours of each row, without the row itself [150; 15]; at most the number of rows minus 2 (one more, which
            ivis allows, is lowered with a warning). "auto", here as for `epochs`, `n_epochs_without_progress`,
            `batch_size`, `learning_rate` and `model`, chooses a value that suits the number of rows.
        distance: Loss [pn; infonce]: pn, euclidean, manhattan_pn, manhattan, chebyshev_pn, chebyshev, cosine_pn,
            cosine, softmax_ratio_pn, softmax_ratio, infonce or a registered name; or a function `(y_true, y_pred)` of
            triplets stacked as (3, b, e). With another loss, fast has learning_rate 0.004 and schedule constant.
        batch_size: Triplets per training step [128; auto].
        epochs: Maximum number of passes over the rows [1000; auto].
        n_epochs_without_progress: Epochs without a lower loss before training stops [20; 5, which cosine ignores].
        n_trees: Trees of an Annoy index.
        ntrees: Deprecated name of `n_trees`.
        knn_distance_metric: Distance of the neighbours [angular; euclidean]: angular or cosine, euclidean, manhattan,
            hamming or dot.
        search_k: Nodes that Annoy inspects per query; -1 is n_trees * k.
        precompute: Search all neighbours before training and keep them in memory; otherwise when a batch needs them.
        model: Base network: szubert (layers of 128, 128 and 128 units), hinton (2000, 1000, 500), maaten (500, 500,
            2000), auto or a registered name; or a Keras model. An embedding layer is added.
        supervision_metric: Keras loss of the labels.
        supervision_weight: Weight of the supervised loss against the triplet loss, in [0, 1]. With 0, labels that do
            not fit `supervision_metric` are ignored.
        annoy_index_path: An Annoy index of the rows, used instead of building one.
        callbacks: Keras callbacks.
        build_index_on_disk: Build an Annoy index in its file instead of in memory.
        neighbour_matrix: Numbers of each row's neighbours: an array (n, k), or a sequence with a list for each row, of
            any length; searched when None.
        verbose: 0 shows no progress.
        random_state: Seed of neighbours, triplets, weights and dropout: an integer, or as in scikit-learn a
            `numpy.random.RandomState` or `Generator`, from which each fit draws a seed, or None for NumPy's global
            state.
        learning_rate: Of the optimizer [0.001; auto].
        margin: Of the triplet losses.
        n_jobs: Threads of Annoy; -1 is one per core. With more than one, its index differs between runs.
        temperature: Of infonce: lower values focus on the nearest rows and spread the embedding.
        clip: Maximum infonce loss of a pair, so that pairs further apart are not attracted; None disables it.
        shared_negatives: Negatives of infonce, shared by a batch: its first positives [None; 128]; None: all rows of
            the batch.
        exaggeration: Factor on infonce's attraction early in a cosine schedule [1.0; 4.0]; 1 disables it.
        exaggeration_share: Share of the epochs with exaggeration, in [0, 1].
        global_weight: Weight of 1 - the correlation of distances between random rows before and after embedding
            [0.0; 0.1].
        dropout: Rate in the named networks [0.1; 0.0], at most 0.9.
        compute_precision: "float32", or "mixed_bfloat16" for hardware that has it.
        optimizer: "adam", "adamw" or "sgd".
        schedule: "constant" learning rate until the loss stops falling, or "cosine", which falls over all epochs
            [constant; cosine].
        warmup_epochs: First epochs, in which the learning rate rises from 0 [0; auto].
        cooldown_epochs: Last epochs, in which a constant learning rate falls to 0 [0; 8].
        clipnorm: Maximum norm of the gradients of a layer's weights [None; 4.0]; None disables it.
        negatives: Negatives per anchor of the triplet losses.
        n_components: Principal components, learnt on 32 MiB of rows (wide ones: up to 1 GiB), that replace features in
            search and training, for example 50; the size of the embedding is `embedding_dims`. None: no projection.
            The encoder takes rows as they are; sparse rows are never densified.
        preset: "ivis", whose values are those of ivis, or "fast", the default of pipelines.
        warm_start: Whether `fit` resumes training the existing model, instead of starting again. Parameters that were
            changed in between are followed; ConfigError for those that need another network.

    Attributes:
        encoder_: The Keras model that embeds.
        model_, supervised_model_: The Keras models that are trained, and that predicts labels.
        loss_history_: Loss of each epoch.
        embedding_: float32 (n, embedding_dims), of the rows of the last fit; None for data that is not in memory, for
            networks with other than dense layers, and after `load_model`. A pickle keeps it.
        neighbour_matrix_: The neighbours that the last fit used.
        classes_: Labels in the order of the columns of `score_samples`, if labels are classes; otherwise None.
        n_classes_: Outputs of the supervised model; None without one.
        output_names_: Names of the columns of Y, if it was a data frame of several; otherwise None.
        n_features_in_: Size of a row's first axis: the features.
        feature_names_in_: Names of the columns, if X was a data frame.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from ivis_spark import Ivis
        >>> X, y = load_iris(return_X_y=True)
        >>> names = load_iris().target_names[y]
        >>> ivis = Ivis(k=15, epochs=2, verbose=0).fit(X, names)
        >>> ivis.transform(X[:3]).shape
        (3, 2)
        >>> ivis.classes_, ivis.score_samples(X[:3]).shape
        (array(['setosa', 'versicolor', 'virginica'], dtype='<U10'), (3, 3))
    """

    _seed = Config.random_state
    embedding_: Floats | None = None
    neighbour_matrix_: Neighbours | None = None

    def __sklearn_tags__(self) -> Any:
        """Describe this to scikit-learn: sparse rows are taken, and the embedding is float32."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @classmethod
    def from_config(cls, config: Config, **params: Any) -> Ivis:
        """Return an Ivis with the settings of a pipeline; arguments passed here override them.

        `Ivis.from_config(Config(preset="fast"))` trains as pipelines do.
        """
        return cls(**{**params_of(config), **params})

    def fit(
        self, X: Any, Y: ArrayLike | None = None, shuffle_mode: bool | str = True, *, y: ArrayLike | None = None
    ) -> Ivis:
        """Train on rows, and on their labels when given.

        Training resumes for a loaded model, and with `warm_start` for any model; classes are then matched by name. A
        fit that fails leaves the model as it was. One that is interrupted while it trains (Ctrl-C, or a notebook's stop
        button) keeps what was learnt so far, with a warning; before the end of the first epoch, what there was.

        Args:
            X: Rows, shape (n, d), or (n, ...) with a backbone that accepts it.
            Y: Labels, shape (n,) or (n, c). With sparse_categorical_crossentropy: integers 0, 1, 2, ..., and -1 for
                unlabelled; or text, booleans or dates, and None or NaN for unlabelled.
            y: Alias of Y.
            shuffle_mode: True draws a fresh order of the rows in each epoch; "batch" a fresh order of batches of
                adjacent rows, which files read faster; False keeps the order.

        Raises:
            InputError: if rows or labels cannot be used.
            ConfigError: if a parameter is not allowed.
            TrainingError: if the loss diverges.
        """
        if Y is not None and y is not None:
            raise ConfigError("Y and y are two names for the labels: pass one of them")
        if shuffle_mode not in (True, False, "batch"):
            raise ConfigError(f"shuffle_mode={shuffle_mode!r} is not known; use True, False or 'batch'")
        before, history = dict(vars(self)), list(self.loss_history_)
        restore = restorer(self.model_) if self.model_ is not None and (self.warm_start or self._loaded) else None
        try:
            self._fit(X, y if Y is None else Y, shuffle_mode)
        except BaseException as err:
            resumed = self.loss_history_ is before.get("loss_history_")
            epochs = len(self.loss_history_) - (len(history) if resumed else 0)
            if isinstance(err, KeyboardInterrupt) and epochs:
                log.warning("interrupted after %d epochs: the model keeps what it learnt in them", epochs)
            else:
                self.__dict__ = {**before, "loss_history_": history} if resumed else before
                if restore:
                    restore()
            raise
        return self

    def _fit(self, X: Any, Y: ArrayLike | None, shuffle_mode: bool | str) -> None:
        settings = self._config()
        self._loss()  # refuses an unknown one before the neighbours are searched
        self._seed = to_seed(self.random_state)
        goes_on = self.encoder_ is not None and (self.warm_start or self._loaded)
        if goes_on:
            check_network(self._made_with, self._followed(), loaded=self._loaded)
        check_kind(X)
        warn_of_other_order(X, Y, "labels")
        names = names_of(X)
        rows = self._rows_to_embed(X) if goes_on else as_rows(X)
        searched = all(each is None for each in (self.neighbour_matrix, self.annoy_index_path, self.n_components))
        warn_of_rows(rows, getattr(self, "feature_names_in_", None) if goes_on else names, searched=searched)
        if len(rows) < _LEAST_ROWS:
            raise InputError(
                f"X has n_samples = {len(rows)}; at least {_LEAST_ROWS} rows are needed for a triplet: pass more"
            )
        settings = settings.for_rows(len(rows))
        config = settings.train
        check_components(self.n_components, settings.neighbours.metric, searched=self.neighbour_matrix is None)
        resumed = self.classes_ if goes_on and self.head_ is not None else None
        read = labels_for(Y, len(rows), self.supervision_metric, config.supervision_weight, resumed)
        if read is None and goes_on and self.head_ is not None:
            raise InputError(
                "training resumes a model that was trained on labels, which it would lose without them: pass y (with "
                "-1, None or NaN for rows without), or fit a new model, sklearn.base.clone(model).fit(X)"
            )
        if not goes_on:
            self._forget()
            self.n_features_in_ = rows.shape[1]
            if names is not None:
                self.feature_names_in_ = names
        labels, self.classes_, self.n_classes_ = read or (None, None, None)
        self.output_names_ = names_of(Y) if labels is not None and labels.ndim == 2 else None
        if self.n_components is not None and not goes_on:
            self.projection_ = learn_projection(rows, self.n_components, seed=self._seed)
            warn_of_components(self.n_components, self.projection_, config.embedding_dims, len(rows))
        start, given, rows = time.monotonic(), rows, project(rows, self.projection_)
        self.neighbour_matrix_ = neighbours = self._find_neighbours(given, rows, settings.neighbours)
        if self.verbose and self.neighbour_matrix is None:
            say(f"neighbours of {len(rows):,} rows: {time.monotonic() - start:.1f} s")
        model = self._model_for(rows, labels, config)
        done = len(self.loss_history_)
        dataset, steps = triplet_dataset(
            rows,
            neighbours,
            labels=labels,
            batch_size=config.batch_size,
            random_state=(self._seed, done) if done else self._seed,
            shuffle=shuffle_mode,
            negatives=model.count_negatives(config.negatives),
        )
        with contextlib.ExitStack() as ending:
            listeners = self._listeners(len(rows), ending)
            ending.enter_context(naming_arguments())
            if self.n_classes_ == 1:  # of which `labels_for` warns
                ending.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", "You are using a softmax over axis")
            self.embedding_ = None  # until the end, of what the network was
            fit_model(model, dataset, steps_per_epoch=steps, config=config, callbacks=listeners)
        self.embedding_ = embed_fitted(model.encoder, rows)

    def fit_transform(
        self, X: Any, Y: ArrayLike | None = None, shuffle_mode: bool | str = True, *, y: ArrayLike | None = None
    ) -> Floats:
        """Train on rows and embed them, see `fit` and `transform`."""
        self.fit(X, Y, shuffle_mode, y=y)
        return self.transform(X) if self.embedding_ is None else self.embedding_.copy()

    def transform(self, X: Any) -> Floats:
        """Embed rows, shape (n, d) -> float32 (n, embedding_dims); or a data frame, see `set_output`.

        Raises:
            NotFittedError: before `fit` or `load_model`; it is scikit-learn's NotFittedError too.
            InputError: if the rows cannot be used.
        """
        return predict(self.encoder_, self._rows_to_embed(X), self.projection_)

    def score_samples(self, X: Any) -> Floats:
        """Predict labels: probabilities of `classes_`, or values; shape (n, d) -> float32 (n, c).

        Raises:
            NotFittedError: if the model was not trained with labels.
            InputError: if the rows cannot be used.
        """
        rows = self._rows_to_embed(X)
        if self.head_ is None:
            raise NotFitted("Model was not trained in classification mode: pass labels to fit")
        return predict(self.head_, predict(self.encoder_, rows, self.projection_))

    def _find_neighbours(self, given: Rows, rows: Rows, config: NeighboursConfig) -> Neighbours:
        """Return the neighbours of rows as they were given, searched among projected ones where that keeps them."""
        if self.neighbour_matrix is not None:
            return read_neighbours(self.neighbour_matrix, len(rows))
        if self.annoy_index_path is None:
            given = rows_to_search(given, rows, self.projection_, config.metric)
        if self.ntrees is not None:
            warnings.warn("ntrees is deprecated; use n_trees", FutureWarning, stacklevel=3)
        if config.k == len(rows) - 1 > 1:  # ivis counts the row itself among its neighbours, and so allows one more
            config = dataclasses.replace(config, k=config.k - 1)
            warnings.warn(
                f"k={config.k + 1} was lowered to {config.k}, the most for {len(rows)} rows (rows minus 2)",
                UserWarning,
                stacklevel=3,
            )
        return find_neighbours(
            given,
            config,
            random_state=self._seed,
            precompute=self.precompute,
            index_path=self.annoy_index_path,
            index_on_disk=self.build_index_on_disk,
            n_jobs=self.n_jobs,
        )

    def _model_for(self, rows: Rows, labels: NDArray[Any] | None, config: TrainConfig) -> TripletModel:
        """Return the model to train: the one there is, or a new one if there is none or the arguments changed."""
        encoder, head = split_projection(self.encoder_)[0], self.head_
        units = None if labels is None else self.n_classes_
        others = changed(self._made_with, self._followed())
        same_head = units == (None if head is None else head.output_shape[-1]) and not set(others) & set(OF_HEAD)
        if self.model_ is not None and same_head and not others:
            return self.model_
        if encoder is None:
            encoder = build_encoder(
                config.model if self.model == AUTO else self.model,
                rows.shape[1:],
                config.embedding_dims,
                self._seed,
                dropout=config.dropout,
                precision=config.compute_precision,
            )
        optimizer = None
        if self.model_ is not None and same_head and not set(others) & set(OF_OPTIMIZER):
            optimizer = self.model_.optimizer  # what it learnt is of the same weights
        elif not same_head or self.model_ is None:
            head = None
            if units is not None:
                head = build_head(self.supervision_metric, units, encoder.output_shape[-1], seed=self._seed)
        check_width(encoder, rows.shape)
        self._assemble(encoder, head, optimizer or make_optimizer(config, encoder))
        self._made_with = self._followed()
        model: TripletModel = self.model_
        return model

    def _listeners(self, n_rows: int, ending: contextlib.ExitStack) -> list[keras.callbacks.Callback]:
        """Return the callbacks of a fit; the first keeps the history, so that it outlives an interruption."""
        done = len(self.loss_history_)
        history = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: self.loss_history_.__delitem__(slice(done, None)),  # training may start again
            on_epoch_end=lambda epoch, logs: self.loss_history_.append(float(logs["loss"])),
        )
        listeners = [history, *(self.callbacks or ())]
        for listener in listeners:
            if hasattr(listener, "register_ivis_model"):
                listener.register_ivis_model(self)
        if self.verbose:
            listeners.append(progress := FitProgress(n_rows))
            ending.callback(progress.close)
        return listeners

    def _rows_to_embed(self, X: Any) -> Rows:
        check_kind(X)
        if self.encoder_ is not None:
            X = in_order(X, getattr(self, "feature_names_in_", None))
        # scaling inside the network starts from all digits
        scales = self.encoder_ is not None and split_scaling(self.encoder_)[1] is not None
        rows = as_rows(X, np.float64 if scales else np.float32)
        check_width(self.encoder_, rows.shape)
        return rows
