"""The forward pass in NumPy, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ivis_spark.core.dense import ACTIVATIONS, DenseLayer, DenseNetwork
from ivis_spark.errors import ArtifactError, InputError


def network(activation: str = "selu") -> DenseNetwork:
    rng = np.random.default_rng(0)
    return DenseNetwork(
        (
            DenseLayer.of(rng.normal(size=(3, 700)), rng.normal(size=700), activation),
            DenseLayer.of(rng.normal(size=(700, 2)) / 700, None, "linear"),
        )
    )


def test_by_hand() -> None:
    """(1, -2) @ [[1, 0], [0, 1]] + (1, 0) = (2, -2); relu gives (2, 0); @ (3, 5) gives 6."""
    layers = (
        DenseLayer.of(np.eye(2), np.array([1, 0]), "relu"),
        DenseLayer.of(np.array([[3], [5]]), None, "linear"),
    )
    np.testing.assert_array_equal(DenseNetwork(layers)(np.array([[1, -2]])), [[6]])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    x = np.array([[-30.0, -1, 0, 2, 30]])
    oracle = {
        "linear": x,
        "relu": np.maximum(x, 0),
        "selu": 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        "elu": np.where(x > 0, x, np.expm1(x)),
        "tanh": np.tanh(x),
        "sigmoid": 1 / (1 + np.exp(-x)),
        "softmax": np.exp(x) / np.exp(x).sum(),
    }[name]
    layer = DenseLayer.of(np.eye(5), None, name)
    np.testing.assert_allclose(DenseNetwork((layer,))(x), oracle, atol=1e-6, rtol=1e-6)


def test_chunks_do_not_show_and_input_is_left_alone() -> None:
    X = np.random.default_rng(1).normal(size=(2000, 3)).astype(np.float32)
    kept = X.copy()
    whole = network()(X)
    np.testing.assert_allclose(np.concatenate([network()(X[:7]), network()(X[7:])]), whole, atol=1e-6)
    np.testing.assert_array_equal(X, kept)
    assert whole.dtype == np.float32
    assert network()(X[:0]).shape == (0, 2)


def test_linear_first_layer_does_not_write_into_the_input() -> None:
    X = np.ones((4, 3), np.float32)
    network("softmax")(X)
    np.testing.assert_array_equal(X, 1)


def test_bytes_and_refusals() -> None:
    whole, X = network(), np.ones((3, 3), np.float32)
    np.testing.assert_array_equal(DenseNetwork.from_bytes(whole.to_bytes())(X), whole(X))
    with pytest.raises(ArtifactError, match="corrupt"):
        DenseNetwork.from_bytes(whole.to_bytes()[:200])
    with pytest.raises(InputError, match=r"\(3, 4\).*3 features"):
        whole(np.ones((3, 4)))
