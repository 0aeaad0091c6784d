"""Networks: shapes of ivis, seeds, custom backbones, the pooled dropout, and NumPy parity."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ivis_spark.config import NETWORK_UNITS, TrainConfig
from ivis_spark.errors import ConfigError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

from ivis_spark.nn import networks  # noqa: E402
from ivis_spark.nn.dropout import PooledAlphaDropout  # noqa: E402


@pytest.mark.parametrize(
    ("name", "units"), [("szubert", (128, 128, 128)), ("hinton", (2000, 1000, 500)), ("maaten", (500, 500, 2000))]
)
def test_base_networks_are_those_of_ivis(name: str, units: tuple[int, ...]) -> None:
    layers = networks.base_networks[name]((20,)).layers
    dense = [layer for layer in layers if isinstance(layer, keras.layers.Dense)]
    assert tuple(layer.units for layer in dense) == units
    assert {layer.activation.__name__ for layer in dense} == {"selu"}
    assert {type(layer.kernel_initializer).__name__ for layer in dense} == {"LecunNormal"}
    assert [layer.rate for layer in layers if isinstance(layer, keras.layers.AlphaDropout)] == [0.1, 0.1]
    assert isinstance(layers[-1], keras.layers.Dense)


def test_same_seed_same_weights_and_random_state_untouched() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    one, two, other = (networks.build_encoder("szubert", (6,), 3, seed) for seed in (5, 5, 6))
    assert random.random() == expected
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.get_weights()[0], other.get_weights()[0])


def test_custom_backbone_gets_an_embedding_layer() -> None:
    image = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()])
    encoder = networks.build_encoder(image, (), 5)
    assert encoder.output_shape == (None, 5)
    assert networks.build_encoder(image, (), None) is image
    assert networks.dense_network(encoder) is None


def test_backbone_without_a_vector_a_row_and_unknown_name() -> None:
    with pytest.raises(ConfigError, match="Flatten"):
        networks.build_encoder(keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3)]), (), 2)
    with pytest.raises(ConfigError, match="szubert"):
        networks.build_encoder("resnet", (3,), 2)


def test_registered_network_is_built_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "base_networks", dict(networks.base_networks))
    with pytest.raises(ConfigError, match=r"train\.model='tiny' is not one of: szubert"):
        TrainConfig(model="tiny")
    monkeypatch.setitem(NETWORK_UNITS, "tiny", ())  # taken away after the test

    @networks.register_network(name="tiny")
    def build(input_shape):
        return keras.Sequential([keras.Input(input_shape), keras.layers.Dense(3)])

    assert TrainConfig(model="tiny").model == "tiny"
    assert "tiny" in networks.get_base_networks()
    assert networks.build_encoder("tiny", (4,), 2).count_params() == 4 * 3 + 3 + 3 * 2 + 2


def test_dropout_and_precision_are_those_asked_for() -> None:
    encoder = networks.build_encoder("szubert", (6,), 2, 1, dropout=0.3, precision="mixed_bfloat16")
    base = encoder.layers[:-1]
    assert [layer.rate for layer in base if isinstance(layer, PooledAlphaDropout)] == [0.3, 0.3]
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    assert {layer.compute_dtype for layer in base if isinstance(layer, keras.layers.Dense)} == {"bfloat16"}
    assert encoder(x, training=True).dtype == "float32"
    assert {weight.dtype for weight in encoder.trainable_weights} == {"float32"}
    np.testing.assert_allclose(networks.dense_network(encoder)(x), encoder(x), atol=0.15)
    assert keras.config.dtype_policy().name == "float32"
    plain = networks.build_encoder("szubert", (6,), 2, 1, dropout=0.0)
    np.testing.assert_array_equal(plain(x, training=True), plain(x))


def test_numpy_forward_pass_equals_keras() -> None:
    encoder = networks.build_encoder("szubert", (30,), 2, 3)
    X = np.random.default_rng(0).normal(size=(5000, 30)).astype(np.float32) * 3
    dense = networks.dense_network(encoder)
    np.testing.assert_allclose(dense(X), encoder.predict(X, verbose=0), atol=1e-5, rtol=1e-5)


def test_numpy_forward_pass_of_nested_models_and_activation_layers() -> None:
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Activation("tanh")])
    outer = keras.Sequential([keras.Input((6,)), inner, keras.layers.Dropout(0.5), keras.layers.Dense(3, "softmax")])
    X = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    np.testing.assert_allclose(networks.dense_network(outer)(X), outer.predict(X, verbose=0), atol=1e-6)


def test_networks_with_branches_have_no_dense_form() -> None:
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4)(inputs)
    model = keras.Model(inputs, keras.layers.Add()([hidden, keras.layers.Dense(4)(inputs)]))
    assert networks.dense_network(model) is None


def test_pooled_dropout_is_distributed_as_that_of_keras() -> None:
    """Kept units become what Keras makes of them, dropped ones too, and as many are dropped."""
    x = np.random.default_rng(1).normal(size=(384, 128)).clip(-1.5).astype(np.float32)
    layer, oracle = PooledAlphaDropout(0.1, seed=3), keras.layers.AlphaDropout(0.1, seed=4)
    theirs = oracle(x, training=True).numpy()
    dropped = theirs.min()
    their_kept = theirs > dropped + 1e-4
    slope, intercept = np.polyfit(x[their_kept], theirs[their_kept], 1)
    shares = []
    for _ in range(20):
        ours = layer(x, training=True).numpy()
        kept = ours > dropped + 1e-4
        shares.append(kept.mean())
        np.testing.assert_allclose(ours[~kept], dropped, atol=1e-5)
        np.testing.assert_allclose(ours[kept], slope * x[kept] + intercept, atol=1e-4)
    assert np.mean(shares) == pytest.approx(0.9, abs=0.002)
    np.testing.assert_array_equal(layer(x, training=False), x)


def test_pooled_dropout_masks_differ_from_step_to_step_and_between_rows() -> None:
    layer, x = PooledAlphaDropout(0.5, seed=3), np.ones((200, 16), np.float32)
    one, two = layer(x, training=True).numpy(), layer(x, training=True).numpy()
    assert 0.4 < (one != two).mean() < 0.6
    assert len(np.unique(one, axis=0)) > 190
