"""Supervision: output layers as in ivis, labels checked, missing labels masked."""

from __future__ import annotations

import numpy as np
import pytest

from ivis_spark.errors import ConfigError, InputError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

from ivis_spark.nn.supervision import build_head, count_outputs, make_supervised_loss_fn  # noqa: E402

CLASSES, ONE_HOT, REAL = np.array([0, 2, 1, -1, 2]), np.eye(3)[[0, 1, 2, 2]], np.array([0.5, -3.0])


@pytest.mark.parametrize(
    ("metric", "labels", "units", "activation", "penalty"),
    [
        ("sparse_categorical_crossentropy", CLASSES, 3, "softmax", False),
        ("categorical_crossentropy", ONE_HOT, 3, "softmax", False),
        ("categorical_hinge", ONE_HOT, 3, "linear", True),
        ("hinge", np.array([-1, 1]), 1, "linear", True),
        ("squared_hinge", np.array([-1, 1]), 1, "linear", True),
        ("binary_crossentropy", np.array([0, 1]), 1, "sigmoid", False),
        ("binary_crossentropy", np.array([[0, 1], [1, 1]]), 2, "sigmoid", False),
        ("mae", REAL, 1, "linear", False),
        ("MeanSquaredError", np.ones((4, 2)), 2, "linear", False),
        ("logcosh", REAL, 1, "linear", False),
    ],
)
def test_head_fits_the_metric(metric: str, labels: np.ndarray, units: int, activation: str, penalty: bool) -> None:
    head = build_head(metric, count_outputs(metric, labels), 2)
    layer = head.layers[-1]
    assert (layer.units, layer.activation.__name__, layer.kernel_regularizer is not None) == (
        units,
        activation,
        penalty,
    )
    values, mask = make_supervised_loss_fn(metric)(labels, head(np.ones((len(labels), 2), np.float32)))
    assert values.shape == mask.shape == (len(labels),)
    assert np.isfinite(values.numpy()).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([1, 2, 3]), "start at 1.*zero-indexed"),
        (np.array([0, 1, 3]), "2 is missing.*consecutively"),
        (np.array([0.5, 1.0]), "0.5"),
        (np.array([-1, -1]), "no row has a label"),
        (np.array(["a", "b"]), "Unknown label type"),
        (np.ones((3, 2)), "one integer per row"),
    ],
)
def test_wrong_classes_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        count_outputs("sparse_categorical_crossentropy", labels)


def test_one_column_a_class_is_wanted_and_unknown_metric_refused() -> None:
    with pytest.raises(InputError, match="one-hot"):
        count_outputs("categorical_hinge", CLASSES)
    with pytest.raises(ConfigError, match="nonsense"):
        count_outputs("nonsense", CLASSES)


def test_values_by_hand_and_missing_labels_masked() -> None:
    loss = make_supervised_loss_fn("sparse_categorical_crossentropy")
    values, mask = loss(np.array([1, -1]), np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
    assert float(values[0]) == pytest.approx(-np.log(0.75), abs=1e-6)
    np.testing.assert_array_equal(mask, [1, 0])
    values, mask = loss(np.array([1, np.nan], np.float32), np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
    assert float(values[0]) == pytest.approx(-np.log(0.75), abs=1e-6) and np.isfinite(values).all()
    np.testing.assert_array_equal(mask, [1, 0])
    values, mask = make_supervised_loss_fn("mae")(np.array([1.0, np.nan, -1.0]), np.zeros((3, 1), np.float32))
    np.testing.assert_allclose(values, [1, 0, 1])
    np.testing.assert_array_equal(mask, [1, 0, 1])
