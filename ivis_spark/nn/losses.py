"""Triplet losses, InfoNCE of pairs, and the global term that can be added to any.

Triplet losses have two formulas, hinge and softmax ratio, each with or without the pn term, over four distances.

A loss is called with ivis's signature `(y_true, y_pred)`, where `y_pred` stacks embeddings of anchors, positives and
negatives in shape (3, b, e). The package's own losses also have `rows(anchor, positive, negative) -> (b,)`, the loss of
each triplet, which row weights need. A loss whose negatives are the other rows of the batch declares `in_batch = True`:
instead of negatives it gets `gather`, which collects the rows of all ranks, and `exaggeration`.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar, overload

import tensorflow as tf

from ivis_spark.config import LOSSES, TrainConfig, did_you_mean
from ivis_spark.config.imports import import_named
from ivis_spark.errors import ConfigError
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

    It may branch and loop over tensors, as in a `tf.function`.

    Args:
        loss_fn: The loss. A class is instantiated with the name as argument `name`.
        name: Key of the loss; by default the name of the function or class.

    Returns:
        `loss_fn` itself, or a decorator if it is omitted.

    Example:
        >>> from ivis_spark.nn.losses import register_loss, triplet_loss
        >>> @register_loss(name="squared_hinge_of_mine")
        ... def squared_hinge(y_true, y_pred):
        ...     anchor, positive, negative = y_pred[0], y_pred[1], y_pred[2]
        ...     return ((anchor - positive) ** 2 - (anchor - negative) ** 2 + 1) ** 2
        >>> triplet_loss("squared_hinge_of_mine") is squared_hinge
        True
    """
    if loss_fn is None:
        return functools.partial(register_loss, name=name)
    key = name or loss_fn.__name__
    loss_dict[key] = loss_fn(name=key) if isinstance(loss_fn, type) else loss_fn
    LOSSES[key] = getattr(loss_fn, "in_batch", False)
    return loss_fn


def triplet_loss(
    distance: str | Loss = TrainConfig.distance,
    margin: float = TrainConfig.margin,
    temperature: float = TrainConfig.temperature,
    clip: float | None = TrainConfig.clip,
    shared_negatives: int | None = TrainConfig.shared_negatives,
) -> Loss:
    """Return the loss registered as `distance`, or named `package.module:function`; a callable is returned as it is.

    The other arguments are passed to a registered loss if it accepts them.

    Raises: ConfigError: if no loss of that name is registered.
    """
    if callable(distance):
        return distance
    if ":" in distance:
        function = import_named(distance, "distance")
        return function() if isinstance(function, type) else function
    if distance not in loss_dict:
        raise ConfigError(
            f"distance={distance!r} is not one of: {', '.join(loss_dict)}"
            f"{did_you_mean(distance, loss_dict)}; add yours with ivis_spark.nn.losses.register_loss"
        )
    loss = loss_dict[distance]
    if isinstance(loss, HingeLoss):
        return type(loss)(margin, loss.__name__)
    if isinstance(loss, InfoNCELoss):
        return type(loss)(temperature, clip, loss.__name__, shared_negatives)
    return loss


get_loss = triplet_loss


def with_autograph(function: Callable[..., Any], owner: Any) -> Callable[..., Any]:
    """Return a function with its `if` and `for` over tensors converted, if its owner is neither ours nor Keras's.

    Training is traced without AutoGraph, which takes a second and which ours do not need.
    """
    module = str(getattr(owner, "__module__", ""))
    return function if module.partition(".")[0] in ("ivis_spark", "keras") else tf.function(function)


def row_loss(loss: Loss) -> RowLoss:
    """Return the loss of each triplet, `(anchor, positive, negative) -> (b,)`, of any loss `(y_true, y_pred)`.

    A loss that returns a single number for the batch counts as that number for each row.
    """
    if hasattr(loss, "rows"):
        return with_autograph(loss.rows, loss)
    compiled = with_autograph(loss, loss)

    def rows(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        batch = tf.shape(anchor)[0]
        values = compiled(tf.zeros([batch]), tf.stack([anchor, positive, negative]))
        if values.shape.rank == 0:
            return tf.fill([batch], values)
        return tf.reduce_mean(tf.reshape(values, [batch, -1]), axis=1)

    return rows


class TripletLoss(ABC):
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

    @abstractmethod
    def compare(self, near: Tensor, far: list[Tensor]) -> Tensor:
        """Return the loss of each triplet from its distances, shape (b, 1) each."""

    def __call__(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the mean loss of triplets stacked in shape (3, b, e); `y_true` is ignored."""
        return tf.reduce_mean(self.rows(*tf.unstack(y_pred, num=3)))


class HingeLoss(TripletLoss):
    """Requires the positive to be closer than the negative by a margin; pn: also as seen from the positive."""

    def __init__(self, margin: float = 1, name: str | None = None) -> None:
        """Set the margin, in units of the distance."""
        super().__init__(name)
        self.margin = margin

    def compare(self, near: Tensor, far: list[Tensor]) -> Tensor:
        """Return the hinge, averaged over the distances to the negative."""
        return tf.add_n([tf.nn.relu(near - each + self.margin) for each in far]) / len(far)


class SoftmaxRatioLoss(TripletLoss):
    """Requires the share of the positive in the softmax of both distances to be 0; pn: against the closer negative."""

    def compare(self, near: Tensor, far: list[Tensor]) -> Tensor:
        """Return the mean difference of softmax([near, far]) from [0, 1], which is a sigmoid of near - far."""
        return tf.sigmoid(near - functools.reduce(tf.minimum, far))


# ivis's losses: key, class, formula, distance, and whether the distance from the positive to the negative counts too.
_TRIPLET_LOSSES: tuple[tuple[str, str, type[TripletLoss], str, bool], ...] = (
    ("pn", "EuclideanPnLoss", HingeLoss, "euclidean", True),
    ("euclidean", "EuclideanTripletLoss", HingeLoss, "euclidean", False),
    ("manhattan_pn", "ManhattanPnLoss", HingeLoss, "manhattan", True),
    ("manhattan", "ManhattanTripletLoss", HingeLoss, "manhattan", False),
    ("chebyshev_pn", "ChebyshevPnLoss", HingeLoss, "chebyshev", True),
    ("chebyshev", "ChebyshevTripletLoss", HingeLoss, "chebyshev", False),
    ("cosine_pn", "CosinePnLoss", HingeLoss, "cosine", True),
    ("cosine", "CosineTripletLoss", HingeLoss, "cosine", False),
    ("softmax_ratio_pn", "EuclideanSoftmaxRatioPnLoss", SoftmaxRatioLoss, "euclidean", True),
    ("softmax_ratio", "EuclideanSoftmaxRatioLoss", SoftmaxRatioLoss, "euclidean", False),
)
for _key, _name, _formula, _distance, _pn in _TRIPLET_LOSSES:
    _doc = f"{_formula.__name__} over {_distance} distances{', pn' if _pn else ''}."
    _body = {"distance": _distance, "pn": _pn, "__doc__": _doc, "__module__": __name__}
    globals()[_name] = register_loss(type(_name, (_formula,), _body), name=_key)


# Radii of good maps are 3 to 10 times `InfoNCELoss.radius`, of ruins 300 and more. Where rows have no structure in two
# dimensions, steps only add noise from there on, which grows until distances are beyond float32: so larger maps are
# held back.
_LARGE = 30.0


@register_loss(name="infonce")
class InfoNCELoss:
    """InfoNCE over the Cauchy kernel 1 / (1 + d^2): a positive must stand out among other rows of the batch.

    The loss of a pair is -log(q(anchor, positive) / sum of q(anchor, other)), over the positive itself and the
    negatives: the first `shared` positives of the batch, or, without that, all other anchors and all positives.
    It is InfoNC-t-SNE of Damrich, Boehm, Hamprecht and Kobak, "From t-SNE to UMAP with contrastive learning" (ICLR
    2023), with the negatives of a batch as in van den Oord, Li and Vinyals, "Representation learning with contrastive
    predictive coding" (2018), and with the early exaggeration of van der Maaten and Hinton, "Visualizing data using
    t-SNE" (2008). Maps that only grow are held back by a penalty beyond 30 times `radius`.
    """

    in_batch = True

    def __init__(
        self,
        temperature: float = TrainConfig.temperature,
        clip: float | None = TrainConfig.clip,
        name: str | None = None,
        shared: int | None = TrainConfig.shared_negatives,
    ) -> None:
        """Set up.

        Args:
            temperature: Divides the logarithm of the kernel.
            clip: Maximum loss of a pair; None disables it.
            name: Without one it is called as its class.
            shared: Positives of the batch that are the negatives of all its anchors; None takes all rows.
        """
        self.temperature, self.clip, self.shared = temperature, clip, shared
        self.__name__ = name or type(self).__name__

    def rows(
        self,
        anchor: Tensor,
        positive: Tensor,
        gather: Callable[[Tensor], Tensor] = tf.identity,
        exaggeration: Tensor | float = 1.0,
    ) -> Tensor:
        """Return the loss of each pair.

        Args:
            anchor: Embeddings, shape (b, e).
            positive: Embeddings, shape (b, e).
            gather: Returns the rows of all ranks, this rank's own first.
            exaggeration: Divides the gradient of the repulsion; the value of the loss does not change.

        Returns:
            Shape (b,).
        """
        near = self._log_kernel(tf.reduce_sum(tf.square(anchor - positive), axis=1))
        if self.shared is None:
            others = tf.concat([gather(anchor), gather(positive)], axis=0)
            negatives = tf.shape(others)[0]
            total = self._log_sum(squared_distances(anchor, others))
        else:
            negatives = self.shared
            total = self._log_sum(squared_distances(anchor, gather(positive[: self.shared])), near)
        # The value is that of `total`, whatever the exaggeration, so that losses of all epochs compare.
        weighted = total / exaggeration
        loss = weighted + tf.stop_gradient(total - weighted) - near
        loss = loss if self.clip is None else tf.minimum(loss, self.clip)
        squares = tf.reduce_mean(tf.reduce_sum(tf.square(anchor), axis=1))
        limit = (_LARGE * self.radius(tf.cast(negatives, squares.dtype))) ** 2
        return loss + tf.nn.relu(squares / limit - 1.0)

    def radius(self, negatives: Any) -> Any:
        """Return the radius of an embedding, in root mean square, beyond which nothing is won by growing.

        There the kernel falls like a power of the distance, and the loss is the same at any scale.
        """
        return negatives ** (max(1.0, self.temperature) / 2)

    def _log_kernel(self, squares: Tensor) -> Tensor:
        return -tf.math.log1p(squares) / self.temperature

    def _log_sum(self, squares: Tensor, near: Tensor | None = None) -> Tensor:
        """Return the logarithm of the summed kernel of squared distances (b, c), without the diagonal, and of `near`.

        The diagonal is an anchor with itself, or with its own positive, which `near` has.
        """
        diagonal = tf.minimum(tf.shape(squares)[0], tf.shape(squares)[1])
        if self.temperature == 1.0:  # two passes over the matrix instead of a dozen
            kernel = tf.linalg.set_diag(tf.math.reciprocal(1.0 + squares), tf.zeros([diagonal], squares.dtype))
            total = tf.reduce_sum(kernel, axis=1)
            return tf.math.log(total if near is None else total + tf.exp(near))
        scores = tf.linalg.set_diag(self._log_kernel(squares), tf.fill([diagonal], squares.dtype.min))
        return tf.reduce_logsumexp(scores if near is None else tf.concat([scores, near[:, None]], axis=1), axis=1)

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
        centred = tf.math.l2_normalize(distances - tf.reduce_mean(distances))
        lengths.append(tf.cast(centred, z.dtype))  # rows may have more digits than their embeddings
    return 1.0 - tf.reduce_sum(lengths[0] * lengths[1])


def semi_supervised_loss(loss_function: Loss) -> Loss:
    """Wrap a supervised loss of rows so that rows labelled -1 (missing) count as 0."""

    @functools.wraps(loss_function)
    def masked(y_true: Tensor, y_pred: Tensor) -> Tensor:
        mask = tf.cast(tf.not_equal(y_true, -1), tf.float32)
        return loss_function(tf.nn.relu(y_true), y_pred) * mask

    return masked
