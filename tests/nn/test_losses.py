"""Losses: ivis's numbers, rows on their own, usable gradients, registration."""

from __future__ import annotations

import numpy as np
import pytest

from ivis_spark.config import LOSSES, TrainConfig
from ivis_spark.errors import ConfigError

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from ivis_spark.nn import losses  # noqa: E402
from ivis_spark.nn.distances import DISTANCES  # noqa: E402

# ivis 2.0.11 on the batch below, but for its cosine losses, which add up the distances of the whole batch.
IVIS = {
    "pn": 0.8784890174865723,
    "euclidean": 0.6806215643882751,
    "manhattan_pn": 0.9492525458335876,
    "manhattan": 0.6731086373329163,
    "chebyshev_pn": 0.8932375311851501,
    "chebyshev": 0.7382960319519043,
    "softmax_ratio_pn": 0.5201307535171509,
    "softmax_ratio": 0.3978555202484131,
}
NAMES = [*IVIS, "cosine", "cosine_pn"]


def batch() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(3, 16, 4)).astype(np.float32)


@pytest.mark.parametrize("name", IVIS)
def test_same_numbers_as_ivis(name: str) -> None:
    assert float(losses.triplet_loss(name)(None, batch())) == pytest.approx(IVIS[name], abs=1e-6)


def test_cosine_is_one_minus_cosine_of_each_row() -> None:
    x, y, _ = batch()
    expected = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(DISTANCES["cosine"](x, y)[:, 0], expected, atol=1e-6)


def test_cosine_pn_by_hand() -> None:
    """Anchor (1,0), positive (1,0), negative (0,1): distances 0, 1, 1; the margin of 1.5 leaves 0.5."""
    triplet = np.array([[[1, 0]], [[1, 0]], [[0, 1]]], np.float32)
    assert float(losses.triplet_loss("cosine_pn", margin=1.5)(None, triplet)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_the_others_of_the_batch(name: str) -> None:
    rows = losses.row_loss(losses.triplet_loss(name))
    whole = rows(*batch()).numpy()
    assert whole.shape == (16,)
    np.testing.assert_allclose(rows(*batch()[:, 3:4]), whole[3:4], atol=1e-6)
    assert float(losses.triplet_loss(name)(None, batch())) == pytest.approx(whole.mean(), abs=1e-6)


@pytest.mark.parametrize("name", [*NAMES, "infonce"])
def test_gradient_is_finite_when_all_points_coincide(name: str) -> None:
    embeddings = tf.Variable(tf.zeros([3, 4, 2]))
    with tf.GradientTape() as tape:
        loss = losses.triplet_loss(name)(None, embeddings)
    assert np.isfinite(tape.gradient(loss, embeddings).numpy()).all()


def cauchy_infonce(anchor: np.ndarray, positive: np.ndarray, temperature: float) -> list[float]:
    """-log of the share of the positive among all rows of the batch but the anchor."""
    found = []
    for i in range(len(anchor)):
        others = np.concatenate([np.delete(anchor, i, axis=0), positive])
        kernel = (1 / (1 + ((anchor[i] - others) ** 2).sum(axis=1))) ** (1 / temperature)
        found.append(-np.log(kernel[len(anchor) - 1 + i] / kernel.sum()))
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_infonce_is_its_formula(temperature: float) -> None:
    anchor, positive, _ = batch()
    loss = losses.triplet_loss("infonce", temperature=temperature)
    expected = cauchy_infonce(anchor.astype(float), positive.astype(float), temperature)
    np.testing.assert_allclose(loss.rows(anchor, positive), expected, atol=1e-4)
    assert float(loss(None, batch())) == pytest.approx(np.mean(expected), abs=1e-4)
    clip = float(np.median(expected))
    clipped = losses.triplet_loss("infonce", temperature=temperature, clip=clip).rows(anchor, positive)
    np.testing.assert_allclose(clipped, np.minimum(expected, clip), atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("shared", [1, 5, 40])
def test_infonce_with_shared_negatives_is_its_formula(shared: int, temperature: float) -> None:
    """An anchor's own positive counts once, whether or not it is among the shared."""
    anchor, positive, _ = batch()
    loss = losses.triplet_loss("infonce", temperature=temperature, shared_negatives=shared)
    expected = []
    for i in range(16):
        squares = ((anchor[i] - positive) ** 2).sum(axis=1)
        kernel = (1 / (1 + squares.astype(float))) ** (1 / temperature)
        others = np.delete(kernel[:shared], i) if i < shared else kernel[:shared]
        expected.append(-np.log(kernel[i] / (kernel[i] + others.sum())))
    np.testing.assert_allclose(loss.rows(anchor, positive), expected, atol=1e-4)


@pytest.mark.parametrize("shared", [None, 5])
def test_exaggeration_divides_repulsion_alone_and_leaves_the_value(shared: int | None) -> None:
    anchor, positive, _ = map(tf.Variable, batch())
    loss = losses.triplet_loss("infonce", shared_negatives=shared)

    def gradient(rows):
        with tf.GradientTape() as tape:
            values = rows()
        return values.numpy(), tape.gradient(values, anchor).numpy()

    def attraction():
        return tf.math.log1p(tf.reduce_sum(tf.square(anchor - positive), axis=1))

    plain, whole = gradient(lambda: loss.rows(anchor, positive))
    value, exaggerated = gradient(lambda: loss.rows(anchor, positive, exaggeration=tf.constant(4.0)))
    _, pull = gradient(attraction)
    np.testing.assert_allclose(value, plain, atol=1e-6)
    np.testing.assert_allclose(exaggerated, pull + (whole - pull) / 4, atol=1e-5)


@pytest.mark.parametrize(("shared", "temperature"), [(None, 1.0), (4, 1.0), (4, 2.0)])
def test_infonce_holds_back_maps_that_only_grow(shared: int | None, temperature: float) -> None:
    """From 30 radii on the gradient points inwards, where without that the loss is the same at any scale."""
    loss = losses.triplet_loss("infonce", temperature=temperature, shared_negatives=shared)
    rng = np.random.default_rng(0)
    anchor, positive = rng.normal(size=(2, 16, 2)).astype(np.float32)
    unit = loss.radius(shared or 32) / np.sqrt((anchor**2).sum(axis=1).mean())

    def at(times: float) -> tuple[float, float]:
        scale = tf.Variable(np.float32(times * unit))
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss.rows(scale * anchor, scale * positive))
        return float(value), float(tape.gradient(value, scale) * scale)

    assert at(20.0)[0] == pytest.approx(at(29.0)[0], abs=0.01) and abs(at(29.0)[1]) < 0.05
    assert at(31.0)[1] > 1 and at(300.0)[0] == pytest.approx(at(29.0)[0] + 99, abs=0.5)


def test_infonce_looks_at_rows_of_other_ranks() -> None:
    anchor, positive, _ = batch()
    loss = losses.triplet_loss("infonce")
    whole = loss.rows(anchor, positive)
    gathered = iter([np.roll(anchor, -4, axis=0), np.roll(positive, -4, axis=0)])
    mine = loss.rows(anchor[4:9], positive[4:9], gather=lambda rows: next(gathered))
    np.testing.assert_allclose(mine, whole[4:9], atol=1e-5)


def test_global_loss_is_its_formula() -> None:
    x, z, _ = batch()
    lengths = [np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1) for points in (x, z[:, :2])]
    assert float(losses.global_loss(x, z[:, :2])) == pytest.approx(1 - np.corrcoef(*lengths)[0, 1], abs=1e-5)
    assert float(losses.global_loss(x.reshape(16, 2, 2), 3 * x)) == pytest.approx(0, abs=1e-5)
    scaled_inside = losses.global_loss(x.astype(np.float64) + 1e6, z.astype(np.float32)[:, :2])
    assert float(scaled_inside) == pytest.approx(1 - np.corrcoef(*lengths)[0, 1], abs=1e-5)


def test_gradient_of_global_loss_is_finite_when_all_points_coincide() -> None:
    embeddings = tf.Variable(tf.zeros([4, 2]))
    with tf.GradientTape() as tape:
        loss = losses.global_loss(batch()[0][:4], embeddings)
    assert np.isfinite(tape.gradient(loss, embeddings).numpy()).all()


def test_configuration_knows_the_losses_that_need_no_negatives() -> None:
    for name in losses.loss_dict:
        in_batch = getattr(losses.triplet_loss(name), "in_batch", False)
        assert TrainConfig(distance=name).needs_negatives != in_batch


def test_margin_makes_another_loss_and_leaves_the_registered_one() -> None:
    assert losses.triplet_loss("pn", margin=3).margin == 3
    assert losses.triplet_loss("pn").margin == 1
    assert losses.EuclideanPnLoss(margin=2).margin == 2


def test_register_function_and_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "loss_dict", dict(losses.loss_dict))
    with pytest.raises(ConfigError, match=r"train\.distance='my_loss' is not one of: pn"):
        TrainConfig(distance="my_loss")
    for name in ("my_loss", "named"):  # taken away after the test
        monkeypatch.setitem(LOSSES, name, False)

    @losses.register_loss
    def my_loss(y_true, y_pred):
        return tf.reduce_sum(y_pred)

    @losses.register_loss(name="named")
    class Mine:
        def __init__(self, name=None):
            self.__name__ = name

        in_batch = True

        def __call__(self, y_true, y_pred):
            return tf.constant(7.0)

    assert TrainConfig(distance="my_loss").needs_negatives and not TrainConfig(distance="named").needs_negatives
    assert losses.triplet_loss("my_loss") is my_loss
    assert losses.triplet_loss(my_loss) is my_loss
    assert isinstance(losses.triplet_loss("named"), Mine)
    assert losses.triplet_loss("named").__name__ == "named"
    np.testing.assert_allclose(losses.row_loss(losses.triplet_loss("named"))(*batch()), np.full(16, 7.0))


def test_unknown_loss_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="chebyshev_pn"):
        losses.triplet_loss("nonsense")


def test_semi_supervised_loss_masks_missing_labels() -> None:
    import keras

    loss = losses.semi_supervised_loss(keras.losses.sparse_categorical_crossentropy)
    predictions = tf.constant([[0.5, 0.5], [0.9, 0.1]])
    np.testing.assert_allclose(loss(tf.constant([0, -1]), predictions), [np.log(2), 0], atol=1e-6)
    assert loss.__name__ == "sparse_categorical_crossentropy"
