"""The triplet model: the one training step of every backend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ivis_spark.nn.distances import Tensor
from ivis_spark.nn.losses import global_loss, row_loss
from ivis_spark.nn.optimizer import FusedAdam
from ivis_spark.nn.reducer import Reducer
from ivis_spark.nn.supervision import Metric, keras_loss, make_supervised_loss_fn

Batch = Mapping[str, Tensor]
# A figure of each step beside those in `metric_names`: the anchors' mean squared distance from the origin.
SQUARED_RADIUS = "squared_radius"


class TripletModel(keras.Model):  # type: ignore[misc]
    """Trains an encoder on triplets, and with it a supervised head when there is one.

    Calling it embeds: shape (b, ...) -> (b, e).
    """

    def __init__(
        self,
        encoder: keras.Model,
        loss: Any,
        *,
        head: keras.Model | None = None,
        supervision_metric: Metric | None = None,
        supervision_weight: float = 0.0,
        global_weight: float = 0.0,
        gather_negatives: bool = False,
        optimizer: Any | None = None,
        learning_rate: float = 0.001,
        reducer: Reducer | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            encoder: The network that embeds.
            loss: Triplet loss `(y_true, y_pred)`, see `nn.losses`.
            head: Network from the embedding to the labels; without it labels are not looked at.
            supervision_metric: Keras loss of the head.
            supervision_weight: Weight of the head's loss; the triplet loss gets the rest. In [0, 1].
            global_weight: Weight of the global term, see `nn.losses.global_loss`, which is added to the others.
            gather_negatives: Whether a loss with the negatives of a batch looks at the rows of all ranks.
            optimizer: Any Keras optimizer; None is Adam with `learning_rate`.
            learning_rate: Of Adam.
            reducer: Joins the ranks that train together; None trains alone.
        """
        super().__init__(name="triplet_model")
        self.encoder = encoder
        self.head = head
        self.supervision_weight = supervision_weight if head is not None else 0.0
        self.reducer = reducer or Reducer()
        self.global_weight = global_weight
        self._in_batch = getattr(loss, "in_batch", False)
        gather = self.reducer.gather if gather_negatives else tf.identity
        # Early exaggeration, which the loop sets; only losses with the negatives of a batch know it.
        self.exaggeration = tf.Variable(1.0, trainable=False)
        options = {"gather": gather, "exaggeration": self.exaggeration}
        self._row_loss = functools.partial(row_loss(loss), **(options if self._in_batch else {}))
        self._sees_batch = self._in_batch or not hasattr(loss, "rows")
        self._supervised_loss = None if supervision_metric is None else make_supervised_loss_fn(supervision_metric)
        self.compile(optimizer=optimizer or FusedAdam(learning_rate), jit_compile=False)
        row = tuple(encoder.input_shape[1:])
        self._triplet = [keras.layers.InputLayer(row, name=name) for name in ("anchor", "positive", "negative")]
        # Where users of ivis look for them; the step takes the losses of rows above.
        self.loss: Any = loss
        if head is not None and supervision_metric is not None:
            self.loss = {"stacked_triplets": loss, "supervised": keras_loss(supervision_metric)}
            for layer in head.layers:
                layer.output_shape = tuple(layer.output.shape)  # as layers of Keras 2 have it
        self.built = True

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """Three inputs, then the encoder, as in ivis; with supervision the head too, whose output layer is the last."""
        return [*self._triplet, self.encoder, *([] if self.head is None else self.head.layers)]

    def count_negatives(self, wanted: int) -> int:
        """Return the negatives of each anchor that batches should hold.

        A loss that looks at the whole batch is shown every row once, so it gets one; infonce needs none.
        """
        if self._in_batch:
            return 0
        return 1 if self._sees_batch else wanted

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the figures that `train_step` returns."""
        parts = ["supervised_loss"] * (self.head is not None) + ["global_loss"] * (self.global_weight > 0)
        return ("loss", "triplet_loss", *parts) if parts else ("loss",)

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """Embed rows."""
        return self.encoder(inputs, training=training)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the weights with one batch.

        Args:
            batch: `stacked`: anchors, then positives, then negatives, float32 (3b, ...), so that they pass the encoder
                without a copy. Or anchors and positives alone, (2b, ...), with `negative`, int (b, r): which of the
                anchors are the r negatives of each; their losses are averaged; rows with -1 have none, and no triplet
                loss. Or without any, where the loss takes those of the batch. Optionally `weight` (b,) (rows of weight
                0 are padding) and `label`, (b,) or (b, c).

        Returns:
            `metric_names` and `SQUARED_RADIUS`, each this rank's share of the weighted mean over the rows of all
            ranks, so that the shares add up to it (alone: the mean), and `weight`, the sum of the weights over all
            ranks.
        """
        variables = self.trainable_variables
        with tf.GradientTape() as tape:
            sums, weights = self._sums(batch)
            penalty = [each / self.reducer.n_ranks for each in self.losses]
            # A message holds a step up. Where the loss is divided by one total, that can be done to the gradients, and
            # the weights travel with them. Else they are summed first, while the forward pass runs.
            together = self._has_one_total and not penalty
            totals = [tf.ones_like(each) for each in weights] if together else self.reducer.sum_values(weights)
            figures = self._figures(sums, totals)
            objective = tf.add_n([figures["loss"], *penalty]) if penalty else figures["loss"]
        gradients = tape.gradient(objective, variables)
        if together:
            *gradients, joined = self.reducer.sum_gradients([*gradients, tf.stack(weights)])
            totals = tf.unstack(joined)
            gradients = [None if each is None else tf.math.divide_no_nan(each, totals[1]) for each in gradients]
            figures = self._figures(sums, totals)
        else:
            gradients = self.reducer.sum_gradients(gradients)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return figures

    @property
    def _has_one_total(self) -> bool:
        """Whether the whole loss of several ranks is divided by the weight of the rows that are compared."""
        alone = self.head is None and (self._in_batch or not self.global_weight)
        return alone and self.reducer.n_ranks > 1 and self.reducer.exact_gradients

    def _sums(self, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return this rank's weighted sums, and its weights: of all rows, of those compared, of those with a label."""
        pairs = self._in_batch or "negative" in batch
        embeddings = tf.split(self.encoder(batch["stacked"], training=True), 2 if pairs else 3)
        anchor = embeddings[0]
        weight = batch["weight"] if "weight" in batch else tf.ones([tf.shape(anchor)[0]])
        compared = weight
        if pairs and not self._in_batch:
            embeddings.append(tf.gather(anchor, tf.maximum(batch["negative"], 0)))
            compared *= tf.cast(batch["negative"][:, 0] >= 0, weight.dtype)
        rows = self._rows_of(embeddings, tf.where(compared > 0))
        weights = [tf.reduce_sum(weight), tf.reduce_sum(compared)]
        sums = {"triplet_loss": tf.reduce_sum(rows * compared)}
        if self.head is not None and self._supervised_loss is not None:
            values, labelled = self._supervised_loss(batch["label"], self.head(anchor, training=True))
            labelled *= weight
            weights.append(tf.reduce_sum(labelled))
            sums["supervised_loss"] = tf.reduce_sum(values * labelled)
        if self.global_weight:
            real = tf.where(weight > 0)
            rows_in = batch["stacked"][: tf.shape(anchor)[0]]
            term = global_loss(tf.gather_nd(rows_in, real), tf.gather_nd(anchor, real))
            sums["global_loss"] = tf.reduce_sum(term * weights[0])
        squares = tf.reduce_sum(tf.square(tf.stop_gradient(anchor)), axis=1)
        sums[SQUARED_RADIUS] = tf.reduce_sum(tf.cast(squares, weight.dtype) * weight)
        return sums, weights

    def _figures(self, sums: dict[str, Tensor], totals: list[Tensor]) -> dict[str, Tensor]:
        """Return what these sums add to the means over rows whose weights add up to the totals."""
        total, compared, *labelled = totals
        over = {"triplet_loss": compared, "supervised_loss": labelled[0] if labelled else total}
        figures = {name: tf.math.divide_no_nan(value, over.get(name, total)) for name, value in sums.items()}
        loss = figures["triplet_loss"]
        if "supervised_loss" in sums:
            supervised = self.supervision_weight * figures["supervised_loss"]
            loss = (1 - self.supervision_weight) * loss + supervised
        if "global_loss" in sums:
            loss += self.global_weight * figures["global_loss"]
        return {"loss": loss, **figures, "weight": total}

    def _rows_of(self, embeddings: list[Tensor], compared: Tensor) -> Tensor:
        """Return the loss of each row; a loss that looks at the whole batch is shown those to be compared alone.

        Negatives have shape (b, e), or (b, r, e) where there are r of each.
        """
        if not self._sees_batch:
            return self._loss_of(embeddings)
        values = self._loss_of([tf.gather_nd(each, compared) for each in embeddings])
        return tf.scatter_nd(compared, values, [tf.shape(embeddings[0], out_type=tf.int64)[0]])

    def _loss_of(self, embeddings: list[Tensor]) -> Tensor:
        *pair, last = embeddings
        if last.shape.rank == 2:
            return self._row_loss(*embeddings)
        draws = last.shape[1]
        repeated = [tf.repeat(each, draws, axis=0) for each in pair]
        values = self._row_loss(*repeated, tf.reshape(last, [-1, last.shape[2]]))
        return tf.reduce_mean(tf.reshape(values, [-1, draws]), axis=1)


def restorer(model: TripletModel) -> Callable[[], None]:
    """Return what gives a model, which training changes in place, all the values back that it has now."""
    values = {name: np.array(each) for name, each in variables_of(model).items()}
    rate = float(model.optimizer.learning_rate)

    def restore() -> None:
        for name, variable in variables_of(model).items():
            if name in values:
                variable.assign(values[name])
        model.optimizer.learning_rate = rate

    return restore


def variables_of(model: TripletModel) -> dict[str, Any]:
    """Return all that training changes, by name: weights, random states of layers, optimizer slots."""
    parts = {"encoder": model.encoder, "head": model.head, "optimizer": model.optimizer}
    return {
        f"{part}/{number}": variable
        for part, owner in parts.items()
        if owner is not None
        for number, variable in enumerate(owner.variables)
    }
