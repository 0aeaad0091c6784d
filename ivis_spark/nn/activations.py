"""SELU at the price of ELU."""

from __future__ import annotations

import keras
import tensorflow as tf

from ivis_spark.nn.distances import Tensor

_SCALE = 1.0507009873554805
_ALPHA = 1.6732632423543772
SELU_FLOOR = -_SCALE * _ALPHA  # SELU at minus infinity


@keras.saving.register_keras_serializable(package="ivis_spark")  # type: ignore[untyped-decorator]
def selu(x: Tensor) -> Tensor:
    """Return SELU of any shape (Klambauer et al., "Self-normalizing neural networks"), to rounding that of Keras.

    TensorFlow joins an ELU, but not a SELU, to the matrix product before it, and its SELU alone takes as long as a
    product of 128 columns. Below zero SELU is 1.67 ELU and above it ELU, both times 1.05: a leaky ReLU of slope 1.67.
    """
    return _SCALE * tf.nn.leaky_relu(tf.nn.elu(x), alpha=_ALPHA)
