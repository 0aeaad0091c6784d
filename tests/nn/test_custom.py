"""Backbones and losses of one's own by name."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from ivis_spark.config import TrainConfig
from ivis_spark.errors import ConfigError

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.tf, pytest.mark.compiled]

from ivis_spark.nn.losses import triplet_loss  # noqa: E402
from ivis_spark.nn.model import TripletModel  # noqa: E402
from ivis_spark.nn.networks import build_encoder  # noqa: E402
from ivis_spark.nn.supervision import build_head, make_supervised_loss_fn  # noqa: E402

MODULE = """
import keras
import tensorflow as tf

def network(input_shape):
    layers = keras.layers
    rows = [keras.Input(input_shape), layers.Reshape((3, 4, 1)), layers.Conv2D(2, 2), layers.GlobalMaxPooling2D()]
    return keras.Sequential(rows)

def loss(y_true, y_pred):
    return tf.reduce_mean(tf.abs(y_pred[0] - y_pred[1]))

class Loss:
    def __call__(self, y_true, y_pred):
        return tf.constant(3.0)

def double_error(y_true, y_pred):
    return 2 * tf.reduce_mean(tf.abs(y_true - y_pred), axis=-1)

def branching(y_true, y_pred):
    total = 0 * tf.reduce_sum(y_pred)
    if tf.reduce_all(y_pred < 1e9):
        for _ in tf.range(4):
            total += 2
    return total

def branching_error(y_true, y_pred):
    return 0 * y_pred + branching(y_true, y_pred) / 2

class Branching:
    def __call__(self, y_true, y_pred):
        return branching(y_true, y_pred)

class Rows(Branching):
    def rows(self, anchor, positive, negative):
        return 0 * anchor[:, 0] + branching(None, anchor)

class InBatch(Branching):
    in_batch = True

    def rows(self, anchor, positive, gather, exaggeration):
        return 0 * anchor[:, 0] + branching(None, gather(anchor)) * exaggeration
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "code_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "code_of_mine"


def test_names_are_imported(module: str) -> None:
    config = TrainConfig(model=f"{module}:network", distance=f"{module}:loss")
    encoder = build_encoder(config.model, (12,), 2, seed=1)
    assert (encoder.input_shape, encoder.output_shape) == ((None, 12), (None, 2))
    batch = np.ones((3, 5, 2), np.float32) * np.array([0, 2, 0], np.float32)[:, None, None]
    assert float(triplet_loss(config.distance)(None, batch)) == 2
    assert float(triplet_loss(f"{module}:Loss")(None, batch)) == 3
    values, mask = make_supervised_loss_fn(f"{module}:double_error")(np.zeros(4), np.ones((4, 1), np.float32))
    np.testing.assert_array_equal(values, np.full(4, 2))
    np.testing.assert_array_equal(mask, np.ones(4))
    assert build_head(f"{module}:double_error", 1, 2).layers[-1].activation.__name__ == "linear"


@pytest.mark.parametrize("name", ["branching", "Branching", "Rows", "InBatch"])
def test_losses_may_branch_and_loop_over_tensors(module: str, name: str) -> None:
    """As AutoGraph allows, without which the step is traced: with an `if` on a tensor, and its gradient."""
    encoder = build_encoder("szubert", (12,), 2, seed=1)
    head, metric = build_head("mae", 1, 2), f"{module}:branching_error"
    loss = triplet_loss(f"{module}:{name}")
    model = TripletModel(encoder, loss, head=head, supervision_metric=metric, supervision_weight=0.5)
    step = tf.function(functools.partial(model.train_step), autograph=False)
    rows = np.ones((10 if name == "InBatch" else 15, 12), np.float32)
    figures = step({"stacked": tf.constant(rows), "label": tf.zeros(5)})
    assert float(figures["triplet_loss"]) == 8 and float(figures["supervised_loss"]) == 4
    assert model.loss["stacked_triplets"] is loss


def test_keras_trains_without_autograph_too() -> None:
    model = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
    model.compile("sgd", lambda truth, found: found if tf.reduce_sum(truth) > 0 else truth)
    with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
        model.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0)


@pytest.mark.parametrize("name", ["no_such_module_here:f", "json:no_such_function"])
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(ConfigError, match=f"distance='{name}' cannot be imported"):
        triplet_loss(name)
    with pytest.raises(ConfigError, match=f"model='{name}' cannot be imported"):
        build_encoder(name, (12,), 2)


@pytest.mark.parametrize("value", ["nonsense", "a b:c", ":f", "m:"])
def test_other_texts_are_still_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="is not one of: szubert"):
        TrainConfig(model=value)
