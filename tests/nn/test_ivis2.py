"""Models of ivis 2, in both of its formats, as Keras 2.15 and TensorFlow 2.15 write them."""

from __future__ import annotations

import base64
import json
import marshal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ivis_spark.errors import ArtifactError

tf = pytest.importorskip("tensorflow")
h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.tf

from ivis_spark import Ivis  # noqa: E402

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
WEIGHTS = {
    name: [
        np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32),
        np.full(columns, 0.5, np.float32),
    ]
    for seed, (name, rows, columns) in enumerate([("dense", 3, 4), ("dense_1", 4, 2), ("supervised", 2, 3)])
}
PARAMS = {
    "embedding_dims": 2, "k": 7, "distance": "pn", "batch_size": 8, "epochs": 2, "n_epochs_without_progress": 20,
    "n_trees": 50, "ntrees": None, "knn_distance_metric": "angular", "search_k": -1, "precompute": True,
    "model": "szubert", "supervision_metric": "sparse_categorical_crossentropy", "supervision_weight": 0.5,
    "loss_history_": [1.5, 1.25], "annoy_index_path": None, "callbacks": [], "build_index_on_disk": True,
    "neighbour_matrix": None, "verbose": 0, "callbacks_": [], "encoder_": None, "model_": None, "n_classes_": 3,
    "neighbour_matrix_": None, "supervised_model_": None,
}  # fmt: skip


def dense(name: str, units: int, activation: str, source: str) -> dict:
    config = {"name": name, "trainable": True, "dtype": "float32", "units": units, "activation": activation}
    config |= {"use_bias": True, "kernel_initializer": {"class_name": "LecunNormal", "config": {"seed": None}}}
    return {"class_name": "Dense", "config": config, "name": name, "inbound_nodes": [[[source, 0, 0, {}]]]}


def functional(name: str, layers: list[dict]) -> dict:
    shape = {"class_name": "__tuple__", "items": [None, 3]} if name.endswith("tf") else [None, 3]
    first = {"batch_input_shape": shape, "dtype": "float32", "sparse": False, "ragged": False, "name": "input"}
    layers = [{"class_name": "InputLayer", "config": first, "name": "input", "inbound_nodes": []}, *layers]
    ends = {"input_layers": [["input", 0, 0]], "output_layers": [[layers[-1]["name"], 0, 0]]}
    return {"class_name": "Functional", "config": {"name": name, "trainable": True, "layers": layers, **ends}}


def networks(suffix: str) -> dict[str, tuple[dict, list]]:
    """Return the encoder and, around it, the supervised model, each with its tree of weights."""
    encoder = functional(
        f"encoder{suffix}", [dense("dense", 4, "selu", "input"), dense("dense_1", 2, "linear", "dense")]
    )
    inner = {**encoder, "name": encoder["config"]["name"], "inbound_nodes": [[["input", 0, 0, {}]]]}
    head = dense("supervised", 3, "softmax", inner["name"])
    head["inbound_nodes"][0][0][1] = 1  # the encoder is called in the triplet network too
    tree = ["dense", "dense_1"]
    return {
        "ivis_model": (encoder, tree),
        "supervised_model": (functional(f"model{suffix}", [inner, head]), [(inner["name"], tree), "supervised"]),
    }


def write_h5(folder: Path) -> None:
    for name, (config, tree) in networks("").items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.attrs.update(keras_version="2.15.0", backend="tensorflow", model_config=json.dumps(config))
            group = file.create_group("model_weights")
            names = [part if isinstance(part, str) else part[0] for part in tree]
            group.attrs["layer_names"] = [each.encode() for each in ["input", *names]]
            group.create_group("input").attrs["weight_names"] = np.array([], dtype="S1")
            for part, layer in zip(tree, names, strict=True):
                inner, stored = group.create_group(layer), []
                for each in [part] if isinstance(part, str) else part[1]:
                    for kind, value in zip(("kernel", "bias"), WEIGHTS[each], strict=True):
                        inner[f"{each}/{kind}:0"] = value
                        stored.append(f"{each}/{kind}:0".encode())
                inner.attrs["weight_names"] = stored


def write_tf(folder: Path) -> None:
    def tracked(tree: list) -> tf.train.Checkpoint:
        parts = {}
        for number, part in enumerate(tree):
            key = f"layer_with_weights-{number}"
            if isinstance(part, str):
                kernel, bias = (tf.Variable(value) for value in WEIGHTS[part])
                parts[key] = tf.train.Checkpoint(kernel=kernel, bias=bias)
            else:
                parts[key] = tracked(part[1])
        return tf.train.Checkpoint(**parts)

    for name, (config, tree) in networks("tf").items():
        (folder / name / "variables").mkdir(parents=True)
        tracked(tree).write(str(folder / name / "variables" / "variables"))
        metadata = json.dumps({"name": config["config"]["name"], **config}).encode()
        (folder / name / "keras_metadata.pb").write_bytes(b"\n\x87<\x1a\x04root" + metadata + b'\n{"name": "input"}')


def expected() -> tuple[np.ndarray, np.ndarray]:
    (k0, b0), (k1, b1), (k2, b2) = WEIGHTS.values()
    hidden = X @ k0 + b0
    hidden = 1.0507009873554805 * np.where(hidden > 0, hidden, 1.6732632423543772 * np.expm1(np.minimum(hidden, 0)))
    Z = hidden @ k1 + b1
    scores = np.exp(Z @ k2 + b2)
    return Z, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("write", [write_h5, write_tf])
def test_networks_parameters_and_history_come_over(write, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "ivis_params.json").write_text(json.dumps(PARAMS))
    (tmp_path / "optimizer.pkl").write_bytes(b"never read")
    model = Ivis().load_model(str(tmp_path))
    Z, scores = expected()
    np.testing.assert_allclose(model.transform(X), Z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.score_samples(X), scores, rtol=1e-4, atol=1e-5)
    assert (model.k, model.batch_size, model.verbose, model.n_classes_) == (7, 8, 0, 3)
    assert model.loss_history_ == [1.5, 1.25]
    assert len(model.fit(X, np.arange(20) % 3).loss_history_) == 4
    model.save_model(str(tmp_path / "new"))
    np.testing.assert_array_equal(Ivis().load_model(str(tmp_path / "new")).transform(X), model.transform(X))


@pytest.mark.parametrize("write", [write_h5, write_tf])
def test_code_in_a_network_is_refused_before_keras_reads_it(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras before 3.11.3 runs a Lambda of an h5 file whatever safe_mode says."""
    ran = tmp_path / "ran"
    code = marshal.dumps(compile(f"lambda x: [x, open({str(ran)!r}, 'w')][0]", "file", "eval").co_consts[0])
    function = [base64.b64encode(code).decode(), None, None]
    real = functional

    def hostile(name: str, layers: list[dict]) -> dict:
        config = {"name": "dense", "function": function, "function_type": "lambda", "arguments": {}}
        foreign = {"class_name": "Lambda", "config": config, "name": "dense"}
        return real(name, [foreign | {"inbound_nodes": layers[0]["inbound_nodes"]}, *layers[1:]])

    monkeypatch.setitem(globals(), "functional", hostile)
    write(tmp_path)
    (tmp_path / "ivis_params.json").write_text(json.dumps(PARAMS))
    with pytest.raises(ArtifactError, match=r"ivis_model.* needs 'Lambda'.*custom_objects"):
        Ivis().load_model(str(tmp_path))
    assert not ran.exists()


def test_untrained_and_torn(tmp_path: Path) -> None:
    (tmp_path / "ivis_params.json").write_text(json.dumps(PARAMS))
    assert Ivis().load_model(str(tmp_path)).encoder_ is None
    (tmp_path / "ivis_model.h5").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"ivis_model.*Keras 2.*save it again"):
        Ivis().load_model(str(tmp_path))
    (tmp_path / "ivis_params.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"ivis_params\.json"):
        Ivis().load_model(str(tmp_path))


PROGRAM = """
import sys
import numpy as np
from ivis import Ivis
X = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
model = Ivis(k=15, batch_size=32, epochs=2, verbose=0, model=sys.argv[1]).fit(X, np.arange(200) % 3)
for form in ("h5", "tf"):
    model.save_model(sys.argv[2] + "/" + form, save_format=form)
np.savez(sys.argv[2] + "/expected.npz", X=X, Z=model.transform(X), scores=model.score_samples(X))
"""


@pytest.mark.slow
@pytest.mark.parametrize("network", ["szubert", "maaten"])
def test_real_models_of_ivis(network: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = request.config.getoption("--ivis-python")
    if not python:
        pytest.skip("--ivis-python names no environment with ivis 2")
    subprocess.run([python, "-c", PROGRAM, network, str(tmp_path)], check=True, capture_output=True)
    with np.load(tmp_path / "expected.npz") as made:
        for form in ("h5", "tf"):
            model = Ivis().load_model(str(tmp_path / form))
            np.testing.assert_allclose(model.transform(made["X"]), made["Z"], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(model.score_samples(made["X"]), made["scores"], rtol=1e-4, atol=1e-5)
