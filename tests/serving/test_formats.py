"""A trained model in other products' forms gives the same numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from ivis_spark.core.dense import ACTIVATIONS, DenseLayer, DenseNetwork
from ivis_spark.core.projection import Projection
from ivis_spark.core.scaling import FeatureStatistics, Scaler
from ivis_spark.errors import ArtifactError, ExistsError, InputError
from ivis_spark.serving.encoder import Encoder
from ivis_spark.serving.folder import ModelFolder, read_model, write_model
from ivis_spark.serving.pyfunc import PyfuncModel

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(50, 6)) * 5 + 100).astype(np.float32)


def folder(activation: str = "selu", *, scaled: bool = True, head: str | None = "softmax") -> ModelFolder:
    layers = (
        DenseLayer.of(RNG.normal(size=(6, 8)) / 3, RNG.normal(size=8), activation),
        DenseLayer.of(RNG.normal(size=(8, 3)) / 3, None, "linear"),
    )
    files = {
        "serving.json": b'{"format": 1, "input_shape": [6], "n_outputs": 3, "features": ["features"]}',
        "dense.npz": DenseNetwork(layers).to_bytes(),
    }
    if scaled:
        scaler = Scaler("minmax", X.min(axis=0), 1 / np.ptp(X, axis=0))
        files["scaler.npz"] = scaler.to_bytes()
    if head is not None:
        files["head.npz"] = DenseNetwork((DenseLayer.of(RNG.normal(size=(3, 4)), None, head),)).to_bytes()
    return ModelFolder({"config": {}, "inputs": {}}, {}, files)


def test_folder_round_trip_and_refusals(tmp_path: Path) -> None:
    model = folder()
    write_model(str(tmp_path), model)
    again = read_model(str(tmp_path))
    assert again.files == model.files
    np.testing.assert_array_equal(again.encoder()(X), model.encoder()(X))
    assert again.n_inputs == 6
    with pytest.raises(ArtifactError, match="has no 'model'; make it first: ivis-spark train"):
        read_model(str(tmp_path / "nothing"))
    newer = ModelFolder(model.spec, {}, {**model.files, "serving.json": b'{"format": 2}'})
    write_model(str(tmp_path / "newer"), newer)
    with pytest.raises(ArtifactError, match="has format 2; this version reads format 1: update ivis_spark"):
        read_model(str(tmp_path / "newer"))


def projected() -> ModelFolder:
    """A model on 4 components of 9 features; its network takes components."""
    rows = RNG.normal(size=(50, 9)) * 5 + 100
    plain = Scaler.fit("minmax", FeatureStatistics.of(rows))
    projection = Projection.fit((rows - plain.offset) * plain.factor, 4, seed=0)
    layers = (
        DenseLayer.of(RNG.normal(size=(4, 8)), None, "selu"),
        DenseLayer.of(RNG.normal(size=(8, 2)), None, "linear"),
    )
    files = {
        "serving.json": b'{"format": 1, "input_shape": [4], "n_outputs": 2, "features": ["features"]}',
        "dense.npz": DenseNetwork(layers).to_bytes(),
        "scaler.npz": dataclasses.replace(plain, projection=projection).to_bytes(),
    }
    return ModelFolder({"config": {}, "inputs": {}}, {}, files)


def test_a_model_on_components_takes_the_features(tmp_path: Path) -> None:
    """In every form, the numbers are those of projecting first."""
    model, rows = projected(), RNG.normal(size=(30, 9)) * 5 + 100
    encoder, scaler = model.encoder(), model.scaler()
    assert model.n_inputs == encoder.n_inputs == 9 and scaler is not None and scaler.projection is not None
    components = ((rows - scaler.offset) * scaler.factor - scaler.projection.mean) @ scaler.projection.axes
    expected = model.encoder(scaled=True)(components.astype(np.float32))
    np.testing.assert_allclose(encoder(rows), expected, atol=1e-4)
    np.testing.assert_allclose(encoder(csr_matrix(rows)), expected, atol=1e-4)
    np.testing.assert_allclose(PyfuncModel(encoder, ["features"]).predict(rows), expected, atol=1e-4)
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from ivis_spark.serving.export import export_onnx

    export_onnx(model, str(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["embedding"], {"features": rows})[0], expected, atol=1e-4)


@pytest.mark.parametrize("scaled", [False, True])
def test_sparse_rows_without_components(scaled: bool) -> None:
    encoder = folder(scaled=scaled).encoder()
    np.testing.assert_allclose(encoder(csr_matrix(X)), encoder(X), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_onnx_agrees(tmp_path: Path, activation: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from ivis_spark.serving.export import export_onnx

    path = str(tmp_path / "model.onnx")
    model = folder(activation, head="sigmoid" if activation == "relu" else "softmax")
    export_onnx(model, path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    embedding, scores = session.run(["embedding", "scores"], {"features": X.astype(np.float64)})
    encoder = model.encoder()
    np.testing.assert_allclose(embedding, encoder(X), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(scores, encoder.score(encoder(X)), atol=1e-5, rtol=1e-5)


def far(model: ModelFolder) -> tuple[np.ndarray, ModelFolder, np.ndarray]:
    """Rows in seconds since 1970, a model that scales them, and where the scaled rows lie."""
    seconds = 1.7e9 + RNG.permutation(300).reshape(50, 6)
    scaler = Scaler.fit("minmax", FeatureStatistics.of(seconds))
    files = {**model.files, "scaler.npz": scaler.to_bytes()}
    scaled = ((seconds - seconds.min(axis=0)) / np.ptp(seconds, axis=0)).astype(np.float32)
    return seconds, ModelFolder(model.spec, model.info, files), model.encoder(scaled=True)(scaled)


def test_every_form_scales_with_all_digits(tmp_path: Path) -> None:
    seconds, model, expected = far(folder())
    np.testing.assert_allclose(model.encoder()(seconds), expected, atol=1e-5)
    np.testing.assert_allclose(PyfuncModel(model.encoder(), list("abcdef")).predict(seconds), expected, atol=1e-5)
    np.testing.assert_allclose(
        PyfuncModel(model.encoder(), list("abcdef")).predict(pd.DataFrame(seconds)), expected, atol=1e-5
    )
    runtime = pytest.importorskip("onnxruntime")
    from ivis_spark.serving.export import export_onnx

    export_onnx(model, str(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["embedding"], {"features": seconds})[0], expected, atol=1e-5)


def test_rows_beyond_float32_are_refused_and_not_infinite() -> None:
    encoder = Encoder(folder().encoder().network, Scaler("minmax", np.zeros(6), np.full(6, 100.0)))
    rows = X.astype(np.float64)
    rows[3] = 3e38
    with pytest.raises(InputError, match=r"1 of 50 rows, the first 3, are so far from the training data"):
        encoder(rows)
    assert np.isfinite(encoder.embed(rows)).all(axis=1).sum() == 49


def test_onnx_without_scaling_and_head(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    from ivis_spark.serving.export import export_onnx

    model = folder(scaled=False, head=None)
    with pytest.raises(InputError, match=r"cannot export a str: pass an IvisModel, .* IvisModel\.from_local\(ivis\)"):
        export_onnx("m", str(tmp_path / "m.onnx"))  # type: ignore[arg-type]
    export_onnx(model, str(tmp_path / "m.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["embedding"]
    small = X / 100
    found = session.run(None, {"features": small[:1]})[0]
    np.testing.assert_allclose(found, model.encoder()(small[:1]), atol=1e-5)


def test_mlflow_loads_without_pickle(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    import mlflow.pyfunc

    from ivis_spark.serving.pyfunc import save_pyfunc

    model = folder()
    path = tmp_path / "pyfunc"
    save_pyfunc(model, str(path))
    with pytest.raises(ExistsError, match=r"pyfunc' exists: pass overwrite=True"):
        save_pyfunc(folder(), str(path))
    save_pyfunc(model, str(path), overwrite=True)
    with pytest.raises(ExistsError, match="exists and is not a model of MLflow: choose another path"):
        save_pyfunc(model, str(tmp_path), overwrite=True)
    assert not [file for file in path.rglob("*") if file.suffix in (".pkl", ".pickle")]
    loaded = mlflow.pyfunc.load_model(str(path))
    expected = model.encoder()(X)
    np.testing.assert_array_equal(loaded.predict(pd.DataFrame({"features": list(X)})), expected)
    with pytest.raises(mlflow.exceptions.MlflowException, match="missing inputs"):
        loaded.predict(pd.DataFrame(X))
    with pytest.raises(InputError, match=r"rows have \[5, 6\] features"):
        loaded.predict(pd.DataFrame({"features": [X[0], X[0, :5]]}))
    with pytest.raises(InputError, match="1 of 1 rows hold null, NaN or infinity"):
        loaded.predict(pd.DataFrame({"features": [np.full(6, np.nan)]}))
    file = next(path.rglob("dense.npz"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"dense\.npz was modified"):
        mlflow.pyfunc.load_model(str(path))


def test_mlflow_finds_columns_by_name(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    import mlflow.pyfunc
    import pandas as pd

    from ivis_spark.serving.pyfunc import save_pyfunc

    names = [f"x{i}" for i in range(6)]
    model = folder()
    model.files["serving.json"] = json.dumps({**model.serving, "features": names}).encode()
    expected = model.encoder()(X)
    frame = pd.DataFrame(X.astype(np.float64), columns=names)
    other = frame[names[::-1]].assign(more=1.0)
    save_pyfunc(model, str(tmp_path / "signed"))
    save_pyfunc(model, str(tmp_path / "plain"), signature=None)
    for name in ("signed", "plain"):
        loaded = mlflow.pyfunc.load_model(str(tmp_path / name))
        np.testing.assert_allclose(loaded.predict(other), expected, rtol=1e-6)
        np.testing.assert_allclose(loaded.predict(other.astype({"x0": np.float32})), expected, rtol=1e-6)
    assert loaded.metadata.signature is None
    with pytest.raises(InputError, match=r"lacks 'x5' of the 6 features .* it has: x0, x1, x2, x3, x4, width"):
        loaded.predict(frame.rename(columns={"x5": "width"}))
    np.testing.assert_allclose(loaded.predict(pd.DataFrame(X)), expected, rtol=1e-6)
    signature = mlflow.pyfunc.load_model(str(tmp_path / "signed")).metadata.signature
    assert signature.inputs.input_names() == names and signature.outputs.inputs[0].shape == (-1, 3)


@pytest.mark.spark
def test_mlflow_spark_udf(spark: object, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    import mlflow.pyfunc

    from ivis_spark.serving.pyfunc import save_pyfunc

    model = folder()
    save_pyfunc(model, str(tmp_path / "pyfunc"))
    udf = mlflow.pyfunc.spark_udf(spark, str(tmp_path / "pyfunc"), result_type="array<float>", env_manager="local")
    frame = spark.createDataFrame(  # type: ignore[attr-defined]
        [(i, row.tolist()) for i, row in enumerate(X)], "id long, features array<float>"
    )
    rows = frame.withColumn("embedding", udf("features")).orderBy("id").collect()
    np.testing.assert_allclose([row["embedding"] for row in rows], model.encoder()(X), atol=1e-5)
