"""AlphaDropout at a fraction of its cost."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ivis_spark.nn.activations import SELU_FLOOR
from ivis_spark.nn.distances import Tensor
from ivis_spark.nn.seeds import draw_seed

_POOL_VALUES = 1 << 22
_MIN_POOL_ROWS = 8192


@keras.saving.register_keras_serializable(package="ivis_spark")
class PooledAlphaDropout(keras.layers.AlphaDropout):  # type: ignore[misc]
    """AlphaDropout whose masks are windows, at random places, of a pool of masks drawn once.

    A mask is distributed as that of Keras within a batch; only over thousands of batches do rows of masks come again.
    Drawing every mask afresh, with a dozen operations on it, costs a third of a training step of the szubert network
    on a CPU; this costs a few per cent.
    """

    def __init__(self, rate: float, seed: int | None = None, **options: Any) -> None:
        """Set the share of units dropped, and the seed of the masks; without one it is drawn, as other layers do."""
        super().__init__(rate, seed=draw_seed() if seed is None else seed, **options)
        self._pool: Any = None

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """Set some units of rows, shape (b, units), to `SELU_FLOOR` in training; else give the inputs back."""
        if not training or self.rate == 0:
            return inputs
        if len(inputs.shape) != 2 or self.noise_shape is not None:
            return super().call(inputs, training=training)
        pool = self._mask_pool(int(inputs.shape[-1]))
        start = tf.cast(keras.random.randint((), 0, len(pool), seed=self.seed_generator), tf.int32)
        scale = ((1 - self.rate) * (1 + self.rate * SELU_FLOOR**2)) ** -0.5
        mask = tf.gather(pool, (start + tf.range(tf.shape(inputs)[0])) % len(pool))  # 0 or scale
        mask = tf.cast(mask, inputs.dtype)
        # (x - floor) * mask + scale * floor + shift, with the shift that keeps the mean
        offset = scale * SELU_FLOOR * (1 - self.rate)

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def drop(x: Tensor) -> tuple[Tensor, Any]:
            return (x - SELU_FLOOR) * mask + offset, lambda upstream: upstream * mask

        return drop(inputs)

    def _mask_pool(self, units: int) -> Tensor:
        if self._pool is None:
            rows = max(_POOL_VALUES // units, _MIN_POOL_ROWS)
            scale = ((1 - self.rate) * (1 + self.rate * SELU_FLOOR**2)) ** -0.5
            kept = np.random.default_rng(self.seed).random((rows, units), dtype=np.float32) >= self.rate
            with tf.init_scope():
                self._pool = tf.constant(kept * np.float32(scale), dtype=tf.float32)
        return self._pool
