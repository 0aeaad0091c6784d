"""A projection as the first layer of a network, so that a model takes rows as the user has them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ivis_spark.core.projection import Projection

_NAME = "projection"


def with_projection(encoder: keras.Model, projection: Projection | None) -> keras.Model:
    """Return an encoder of projected rows behind a linear layer that projects and is not trained."""
    if projection is None:
        return encoder
    rows = keras.Input((len(projection.mean),), dtype=np.float32)
    layer = keras.layers.Dense(projection.axes.shape[1], trainable=False, name=_NAME, dtype="float32")
    network = keras.Model(rows, encoder(layer(rows)))
    layer.set_weights([projection.axes, -projection.mean @ projection.axes])
    return network


def split_projection(encoder: keras.Model | None) -> tuple[Any, Projection | None]:
    """Return the encoder and the projection that `with_projection` was given; any other encoder as it is, and None."""
    layers = [] if encoder is None else list(encoder.layers)
    if len(layers) != 3 or layers[1].name != _NAME or not isinstance(layers[2], keras.Model):
        return encoder, None
    axes, bias = (np.asarray(weight, dtype=np.float64) for weight in layers[1].get_weights())
    # The mean along the axes is all that matters, but for angles, which a model that was trained needs no more.
    mean = -axes @ bias / max(float(axes[:, 0] @ axes[:, 0]), 1e-300)
    return layers[2], Projection(mean, axes, np.empty(0))
