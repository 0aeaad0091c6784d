"""A model folder made by hand, without TensorFlow."""

from __future__ import annotations

import json

import numpy as np

from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.core.scaling import Scaler
from ivis_spark.serving.folder import ModelFolder


def small_model(width: int = 6) -> ModelFolder:
    """One hidden layer, two dimensions, a head of three classes; rows are scaled."""
    rng = np.random.default_rng(0)
    layers = (
        DenseLayer.of(rng.normal(size=(width, 8)), rng.normal(size=8), "selu"),
        DenseLayer.of(rng.normal(size=(8, 2)), None, "linear"),
    )
    scaler = Scaler("minmax", np.full(width, -1, np.float32), np.full(width, 0.5, np.float32))
    serving = {"format": 1, "input_shape": [width], "n_outputs": 2, "features": ["features"]}
    files = {
        "serving.json": json.dumps(serving).encode(),
        "scaler.npz": scaler.to_bytes(),
        "dense.npz": DenseNetwork(layers).to_bytes(),
        "head.npz": DenseNetwork((DenseLayer.of(rng.normal(size=(2, 3)), None, "softmax"),)).to_bytes(),
    }
    return ModelFolder({"config": {}, "inputs": {}}, {"loss": [1.0], "epochs": 1}, files)
