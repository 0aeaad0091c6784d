"""Networks with ivis's names."""

from __future__ import annotations

import numpy as np
import pytest

from ivis_spark.errors import ConfigError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

from ivis_spark.nn import network  # noqa: E402


@pytest.mark.parametrize("dims", [3, None])
def test_three_heads_share_one_encoder(dims: int | None) -> None:
    base = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8)])
    model, embeddings = network.triplet_network(base, embedding_dims=dims, embedding_l2=0.1)
    rows = [np.random.default_rng(seed).random((7, 5)).astype(np.float32) for seed in range(3)]
    stacked = model.predict(rows, verbose=0)
    assert stacked.shape == (3, 7, dims or 8)
    assert len(embeddings) == 3
    for found, given in zip(stacked, rows, strict=True):
        np.testing.assert_allclose(found, model.layers[3].predict(given, verbose=0), atol=1e-6)
    assert len(model.losses) == (0 if dims is None else 1)


def test_networks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivis_spark.nn.networks.base_networks", dict(network.base_networks))
    monkeypatch.setattr("ivis_spark.nn.network.base_networks", dict(network.base_networks))

    @network.register_network
    def mine(input_shape):
        return keras.Sequential([keras.Input(input_shape), keras.layers.Dense(3)])

    assert network.base_network("mine", (4,)).output_shape == (None, 3)
    assert network.base_network("hinton", (4,)).output_shape == (None, 500)
    assert {"szubert", "hinton", "maaten", "mine"} <= set(network.get_base_networks())
    with pytest.raises(ConfigError, match="nonsense"):
        network.base_network("nonsense", (4,))
    with pytest.raises(ConfigError, match="vector per row"):
        network.triplet_network(keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 2)]))
