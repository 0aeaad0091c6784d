"""Losses of triplets, InfoNCE of pairs, and the global term that can be added to any.

Triplets have two formulas, hinge and softmax ratio, each with or without the pn term, over four distances.

A loss is called with ivis's signature `(y_true, y_pred)`, where `y_pred` stacks embeddings of anchors, positives and
negatives in shape (3, b, e). The package's own losses also have `rows(anchor, positive, negative) -> (b,)`, the loss of
each triplet, which weights of rows need. A loss whose negatives are the other rows of the batch says so with
`in_batch = True`: it is given no negatives but, as `gather`, what brings the rows of all ranks together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

import tensorflow as tf

from ivis_spark.config import TrainConfig
from ivis_spark.errors import ConfigError
from ivis_spark.nn.custom import import_named
from ivis_spark.nn.distances import DISTANCES, Tensor, euclidean_distance, squared_distances

Loss = Callable[[Tensor, Tensor], Tensor]
RowLoss = Callable[..., Tensor]

_L = TypeVar("_L", bound=Callable[..., Any])

loss_dict: dict[str, Loss] = {}


@overload
def register_loss(loss_fn: _L, *, name: str | None = None) -> _L: ...
@overload
def register_loss(loss_fn: None = None, *, name: str | None = None) -> Callable[[_L], _L]: ...
def register_loss(loss_fn: Any = None, *, name: str | None = None) -> Any:
    """Register a function, or a class whose instances are one, as a loss `(y_true, y_pred)`; also a decorator.

    Args:
        loss_fn: The loss. Of a class an instance is made, with the name as argument `name`.
        name: Key of the loss; without it the name of the function or class.

    Returns:
        `loss_fn` itself, or a decorator when it is not given.
    """
    if loss_fn is None:
        return functools.partial(register_loss, name=name)
    key = name or loss_fn.__name__
    loss_dict[key] = loss_fn(name=key) if isinstance(loss_fn, type) else loss_fn
    return loss_fn


def triplet_loss(
    distance: str | Loss = TrainConfig.distance,
    margin: float = TrainConfig.margin,
    temperature: float = TrainConfig.temperature,
    clip: float | None = TrainConfig.clip,
) -> Loss:
    """Return the loss registered as `distance`, or named `package.module:function`; a callable is returned as it is.

    Of the other arguments a registered loss takes those that it has.

    Raises: ConfigError: if no loss of that name is registered.
    """
    if callable(distance):
        return distance
    if ":" in distance:
        found = import_named(distance, "distance")
        return found() if isinstance(found, type) else found
    if distance not in loss_dict:
        raise ConfigError(
            f"Loss function {distance} not registered: it must be one of {', '.join(loss_dict)}; "
            "add yours with ivis_spark.nn.losses.register_loss"
        )
    loss = loss_dict[distance]
    if isinstance(loss, HingeLoss):
        return type(loss)(margin, loss.__name__)
    if isinstance(loss, InfoNCELoss):
        return type(loss)(temperature, clip, loss.__name__)
    return loss


get_loss = triplet_loss


def row_loss(loss: Loss) -> RowLoss:
    """Return the loss of each triplet, `(anchor, positive, negative) -> (b,)`, of any loss `(y_true, y_pred)`.

    A loss that only gives one number for the batch counts as that number for each of its rows.
    """
    if hasattr(loss, "rows"):
        return loss.rows

    def rows(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        batch = tf.shape(anchor)[0]
        values = loss(tf.zeros([batch]), tf.stack([anchor, positive, negative]))
        if values.shape.rank == 0:
            return tf.fill([batch], values)
        return tf.reduce_mean(tf.reshape(values, [batch, -1]), axis=1)

    return rows


class TripletLoss:
    """Base of the losses that compare anchor-positive distances with distances to the negative."""

    distance: str
    pn: bool = False

    def __init__(self, name: str | None = None) -> None:
        """Name the loss; without a name it is called as its class."""
        self.__name__ = name or type(self).__name__

    def rows(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the loss of each triplet, shapes (b, e), (b, e), (b, e) -> (b,)."""
        measure = DISTANCES[self.distance]
        far = [measure(anchor, negative)]
        if self.pn:
            far.append(measure(positive, negative))
        return tf.squeeze(self.compare(measure(anchor, positive), far), axis=-1)

    def compare(self, near: Tensor, far: list[Tensor]) -> Tensor:
        """Return the loss of each triplet from its distances, shape (b, 1) each."""
        raise NotImplementedError

    def __call__(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the mean loss of triplets stacked in shape (3, b, e); `y_true` is not looked at."""
        return tf.reduce_mean(self.rows(*tf.unstack(y_pred, num=3)))


class HingeLoss(TripletLoss):
    """Asks that the positive be nearer than the negative, by a margin; pn: also as seen from the positive."""

    def __init__(self, margin: float = 1, name: str | None = None) -> None:
        """Set the margin, in units of the distance."""
        super().__init__(name)
        self.margin = margin

    def compare(self, near: Tensor, far: list[Tensor]) -> Tensor:
        """Return the hinge, averaged over the distances to the negative."""
        return tf.add_n([tf.nn.relu(near - each + self.margin) for each in far]) / len(far)


class SoftmaxRatioLoss(TripletLoss):
    """Asks that the share of the positive in the softmax of both distances be 0; pn: against the nearer negative."""

    def compare(self, near: Tensor, far: list[Tensor]) -> Tensor:
        """Return the mean difference of softmax([near, far]) from [0, 1], which is a sigmoid of near - far."""
        return tf.sigmoid(near - functools.reduce(tf.minimum, far))


@register_loss(name="pn")
class EuclideanPnLoss(HingeLoss):
    """The pn hinge over Euclidean distances."""

    distance, pn = "euclidean", True


@register_loss(name="euclidean")
class EuclideanTripletLoss(HingeLoss):
    """The triplet hinge over Euclidean distances."""

    distance = "euclidean"


@register_loss(name="manhattan_pn")
class ManhattanPnLoss(HingeLoss):
    """The pn hinge over Manhattan distances."""

    distance, pn = "manhattan", True


@register_loss(name="manhattan")
class ManhattanTripletLoss(HingeLoss):
    """The triplet hinge over Manhattan distances."""

    distance = "manhattan"


@register_loss(name="chebyshev_pn")
class ChebyshevPnLoss(HingeLoss):
    """The pn hinge over Chebyshev distances."""

    distance, pn = "chebyshev", True


@register_loss(name="chebyshev")
class ChebyshevTripletLoss(HingeLoss):
    """The triplet hinge over Chebyshev distances."""

    distance = "chebyshev"


@register_loss(name="cosine_pn")
class CosinePnLoss(HingeLoss):
    """The pn hinge over cosine distances."""

    distance, pn = "cosine", True


@register_loss(name="cosine")
class CosineTripletLoss(HingeLoss):
    """The triplet hinge over cosine distances."""

    distance = "cosine"


@register_loss(name="softmax_ratio_pn")
class EuclideanSoftmaxRatioPnLoss(SoftmaxRatioLoss):
    """The pn softmax ratio over Euclidean distances."""

    distance, pn = "euclidean", True


@register_loss(name="softmax_ratio")
class EuclideanSoftmaxRatioLoss(SoftmaxRatioLoss):
    """The softmax ratio over Euclidean distances."""

    distance = "euclidean"


@register_loss(name="infonce")
class InfoNCELoss:
    """InfoNCE over the Cauchy kernel 1 / (1 + d^2): a positive must stand out among all other rows of the batch.

    The loss of a pair is -log(q(anchor, positive) / sum of q(anchor, other)), over the other anchors and all positives.
    It is InfoNC-t-SNE of Damrich, Boehm, Hamprecht and Kobak, "From t-SNE to UMAP with contrastive learning" (ICLR
    2023), with the negatives of a batch as in van den Oord, Li and Vinyals, "Representation learning with contrastive
    predictive coding" (2018).
    """

    in_batch = True

    def __init__(
        self,
        temperature: float = TrainConfig.temperature,
        clip: float | None = TrainConfig.clip,
        name: str | None = None,
    ) -> None:
        """Set up.

        Args:
            temperature: Divides the logarithm of the kernel.
            clip: Largest loss of a pair; None is no limit.
            name: Without one it is called as its class.
        """
        self.temperature, self.clip = temperature, clip
        self.__name__ = name or type(self).__name__

    def rows(self, anchor: Tensor, positive: Tensor, gather: Callable[[Tensor], Tensor] = tf.identity) -> Tensor:
        """Return the loss of each pair, shapes (b, e), (b, e) -> (b,); `gather` gives more rows, b's own first."""
        others = tf.concat([gather(anchor), gather(positive)], axis=0)
        scores = self._scores(squared_distances(anchor, others))
        scores = tf.linalg.set_diag(scores, tf.fill(tf.shape(anchor)[:1], scores.dtype.min))  # not with itself
        near = self._scores(tf.reduce_sum(tf.square(anchor - positive), axis=1))
        loss = tf.reduce_logsumexp(scores, axis=1) - near
        return loss if self.clip is None else tf.minimum(loss, self.clip)

    def _scores(self, squares: Tensor) -> Tensor:
        return -tf.math.log1p(squares) / self.temperature

    def __call__(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the mean loss of anchors and positives, the first two of a stack (2 or 3, b, e)."""
        return tf.reduce_mean(self.rows(y_pred[0], y_pred[1]))


def global_loss(x: Tensor, z: Tensor) -> Tensor:
    """Return 1 - Pearson's correlation of distances between random rows, before and after embedding: in [0, 2].

    Rows of a batch stand in random order, so each is compared with the next. The idea, a global objective beside a
    local loss, is that of "Preserving clusters and correlations" (arXiv 2503.07609).

    Args:
        x: Rows, shape (b, ...).
        z: Their embeddings, shape (b, e).
    """
    lengths = []
    for points in (tf.reshape(x, [tf.shape(x)[0], -1]), z):
        distances = euclidean_distance(points, tf.roll(points, 1, axis=0))[:, 0]
        lengths.append(tf.math.l2_normalize(distances - tf.reduce_mean(distances)))
    return 1.0 - tf.reduce_sum(lengths[0] * lengths[1])


def semi_supervised_loss(loss_function: Loss) -> Loss:
    """Wrap a supervised loss of rows so that rows labelled -1 (missing) count as 0."""

    @functools.wraps(loss_function)
    def masked(y_true: Tensor, y_pred: Tensor) -> Tensor:
        mask = tf.cast(tf.not_equal(y_true, -1), tf.float32)
        return loss_function(tf.nn.relu(y_true), y_pred) * mask

    return masked
