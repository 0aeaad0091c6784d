"""Backbones that are not chains of dense layers: loaded once, padded, the same numbers; hostile files are refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

from ivis_spark.errors import ArtifactError, InputError  # noqa: E402
from ivis_spark.nn.networks import base_networks, build_encoder, dense_network  # noqa: E402
from ivis_spark.nn.persistence import load_keras  # noqa: E402
from ivis_spark.nn.supervision import build_head  # noqa: E402
from ivis_spark.serving import encoder as encoder_module  # noqa: E402
from ivis_spark.serving.encoder import KerasNetwork  # noqa: E402

X = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)


def content(model: keras.Model, path: Path) -> bytes:
    model.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("name", list(base_networks))
def test_networks_agree_with_keras(name: str) -> None:
    model = build_encoder(name, (64,), 4, 1)
    dense = dense_network(model)
    assert dense is not None
    np.testing.assert_allclose(dense(X), model.predict(X, verbose=0), atol=1e-4)  # float32 sums of up to 2,000 products


@pytest.mark.parametrize("metric", ["sparse_categorical_crossentropy", "binary_crossentropy", "mae", "hinge"])
def test_heads_agree_with_keras(metric: str) -> None:
    head = build_head(metric, 3, 64, seed=0)
    dense = dense_network(head)
    assert dense is not None
    np.testing.assert_allclose(dense(X), head.predict(X, verbose=0), atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "relu", "selu", "elu", "tanh", "sigmoid", "softmax"])
def test_activations_agree_with_keras(name: str) -> None:
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(9, activation=name), keras.layers.Dense(2)])
    dense = dense_network(model)
    assert dense is not None
    np.testing.assert_allclose(dense(X), model.predict(X, verbose=0), atol=1e-5)


def test_convolutions_are_loaded_once_and_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential(image)
    network = KerasNetwork(content(model, tmp_path / "m.keras"), input_shape=(8, 8, 1), n_outputs=3)
    loads: list[int] = []
    original = KerasNetwork._load

    def load(self: KerasNetwork) -> object:
        loads.append(1)
        return original(self)

    monkeypatch.setattr(KerasNetwork, "_load", load)
    monkeypatch.setattr(encoder_module, "_loaded", {})
    expected = model.predict(X.reshape(-1, 8, 8, 1), verbose=0)
    for rows in (300, 1, 7, 256, 0):
        np.testing.assert_allclose(network(X[:rows]), expected[:rows], atol=1e-5)
    assert loads == [1]
    with pytest.raises(InputError, match=r"shape \(300, 63\).* rows of 64 features"):
        network(X[:, :63])


def rewritten(path: Path, change: dict[str, object]) -> None:
    """Put another layer into the configuration of a Keras file."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    config["config"]["layers"][1] = change
    files["config.json"] = json.dumps(config).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, value in files.items():
            archive.writestr(name, value)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("keras.layers", "Lambda"), ("keras.layers", "TFSMLayer"), ("attacker.code", "Layer")],
)
def test_files_that_name_other_code_are_refused(tmp_path: Path, module: str, name: str) -> None:
    path = tmp_path / "hostile.keras"
    content(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), path)
    rewritten(path, {"module": module, "class_name": name, "config": {}, "registered_name": None})
    with pytest.raises(ArtifactError, match=rf"needs '{name}' of '{module}'"):
        load_keras(str(path))


def test_torn_file(tmp_path: Path) -> None:
    (tmp_path / "torn.keras").write_bytes(b"PK\x03\x04")
    with pytest.raises(ArtifactError, match="is not a Keras file"):
        load_keras(str(tmp_path / "torn.keras"))


class Doubling(keras.layers.Layer):  # type: ignore[misc]
    def call(self, inputs: object) -> object:
        return inputs * 2  # type: ignore[operator]


def test_custom_layers_come_only_from_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "custom.keras"
    model = keras.Sequential([keras.Input((4,)), Doubling(), keras.layers.Dense(2)])
    content(model, path)
    with pytest.raises(ArtifactError, match=r"needs 'Doubling' of"):
        load_keras(str(path))
    loaded = load_keras(str(path), {"Doubling": Doubling})
    np.testing.assert_allclose(loaded.predict(X[:, :4], verbose=0), model.predict(X[:, :4], verbose=0), atol=1e-6)
