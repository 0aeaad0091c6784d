"""Saved models: round trip, altered files, and code that is not run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ivis_spark.errors import ArtifactError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

from ivis_spark.nn.networks import build_encoder  # noqa: E402
from ivis_spark.nn.persistence import load_model, save_model  # noqa: E402
from ivis_spark.nn.supervision import build_head  # noqa: E402


def test_round_trip(tmp_path: Path) -> None:
    encoder, head = build_encoder("szubert", (4,), 2, 1), build_head("mae", 1, 2, seed=2)
    save_model(str(tmp_path), encoder, head=head, extra={"epochs": 3})
    loaded = load_model(str(tmp_path))
    X = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    np.testing.assert_array_equal(encoder.predict(X, verbose=0), loaded.encoder.predict(X, verbose=0))
    np.testing.assert_array_equal(head.get_weights()[0], loaded.head.get_weights()[0])
    assert loaded.extra == {"epochs": 3}


def test_altered_torn_missing_and_foreign_files(tmp_path: Path) -> None:
    save_model(str(tmp_path), build_encoder("szubert", (4,), 2, 1))
    path = tmp_path / "encoder.keras"
    build_encoder("szubert", (4,), 2, 2).save(path)  # a whole model, but another one
    with pytest.raises(ArtifactError, match=r"encoder\.keras.*digest"):
        load_model(str(tmp_path))
    os.remove(path)
    with pytest.raises(ArtifactError, match=r"encoder\.keras.*missing"):
        load_model(str(tmp_path))
    for number, message in ((99, "update ivis_spark"), (0, "another version")):
        (tmp_path / "model.json").write_text(json.dumps({"format": number}))
        with pytest.raises(ArtifactError, match=message):
            load_model(str(tmp_path))
    with pytest.raises(ArtifactError, match="no saved model"):
        load_model(str(tmp_path / "nowhere"))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2, output_shape=(4,))])
    save_model(str(tmp_path), model)
    with pytest.raises(ArtifactError, match="Lambda"):
        load_model(str(tmp_path))


def test_custom_layers_only_by_name(tmp_path: Path) -> None:
    class Twice(keras.layers.Layer):
        def call(self, x):
            return x * 2

    save_model(str(tmp_path), keras.Sequential([keras.Input((4,)), Twice()]))
    with pytest.raises(ArtifactError, match="custom_objects"):
        load_model(str(tmp_path))
    loaded = load_model(str(tmp_path), custom_objects={"Twice": Twice})
    np.testing.assert_array_equal(loaded.encoder(np.ones((1, 4), np.float32)), np.full((1, 4), 2.0))
