"""SELU made of ELU: values and gradients of Keras's own."""

from __future__ import annotations

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from ivis_spark.nn.activations import SELU_FLOOR, selu  # noqa: E402


def test_values_and_gradients_are_those_of_keras() -> None:
    x = tf.constant(np.concatenate([np.linspace(-20, 20, 401), [1e-30, -1e-30]]).astype(np.float32))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        ours, theirs = selu(x), keras.activations.selu(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    not_zero = np.abs(x) > 0.05  # the slope jumps at 0, and which side 0 is on is anybody's choice
    np.testing.assert_allclose(
        tape.gradient(ours, x)[not_zero], tape.gradient(theirs, x)[not_zero], rtol=1e-5, atol=1e-7
    )
    assert float(selu(tf.constant(-100.0))) == pytest.approx(SELU_FLOOR)


def test_layer_with_it_is_saved_by_name() -> None:
    layer = keras.layers.Dense(8, activation=selu)
    layer.build((None, 4))
    assert layer.activation.__name__ == "selu"  # what the NumPy forward pass goes by
    assert keras.layers.Dense.from_config(layer.get_config()).activation is selu
