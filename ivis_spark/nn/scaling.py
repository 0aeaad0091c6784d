"""Scaling inside a network, so that a model takes rows as the user has them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ivis_spark.core.scaling import Scaler
from ivis_spark.nn.distances import Tensor


@keras.saving.register_keras_serializable(package="ivis_spark")
class RowScaling(keras.layers.Layer):  # type: ignore[misc]
    """Maps rows x to (x - offset) * factor as `core.scaling.Scaler` does, to the same bits: float64 to float32.

    With a projection, scaled rows are projected too, as far as float32 goes to the same numbers.
    """

    def __init__(self, scaler: str, **options: Any) -> None:
        """Keep what `Scaler.to_text` gives."""
        super().__init__(trainable=False, **{**options, "dtype": "float64"})
        self.scaler = Scaler.from_text(scaler)

    def call(self, inputs: Tensor) -> Tensor:
        """Scale rows, shape (b, d), and project them."""
        scaled, projection = (inputs - self.scaler.offset) * self.scaler.factor, self.scaler.projection
        if projection is None:
            return keras.ops.cast(scaled, "float32")
        centred = keras.ops.cast(scaled - projection.mean, "float32")
        return keras.ops.matmul(centred, keras.ops.cast(projection.axes, "float32"))

    def get_config(self) -> dict[str, Any]:
        """Return what the layer is made of."""
        kept = {name: value for name, value in super().get_config().items() if name != "trainable"}
        return {**kept, "scaler": self.scaler.to_text()}


def with_scaling(encoder: keras.Model, scaler: Scaler) -> keras.Model:
    """Return the encoder behind a layer that scales."""
    rows = keras.Input((len(scaler.offset),), dtype=np.float64)
    return keras.Model(rows, encoder(RowScaling(scaler.to_text(), name="scaling")(rows)))


def split_scaling(encoder: keras.Model) -> tuple[keras.Model, Scaler | None]:
    """Return the encoder that `with_scaling` was given, and its scaler; any other encoder as it is, and None."""
    layers = list(encoder.layers)
    if len(layers) == 3 and isinstance(layers[1], RowScaling) and isinstance(layers[2], keras.Model):
        return layers[2], layers[1].scaler
    return encoder, None
