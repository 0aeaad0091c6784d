"""The training step: weights, supervision, the reducer and the optimizer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from ivis_spark.nn.losses import global_loss, triplet_loss  # noqa: E402
from ivis_spark.nn.model import TripletModel  # noqa: E402
from ivis_spark.nn.optimizer import FusedAdam  # noqa: E402
from ivis_spark.nn.reducer import Reducer  # noqa: E402
from ivis_spark.nn.supervision import build_head  # noqa: E402


def linear_encoder(seed: int = 1) -> keras.Model:
    """No dropout, so that a step can be computed twice."""
    kernel = keras.initializers.GlorotUniform(seed=seed)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, kernel_initializer=kernel)])


def batch(n: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"stacked": rng.normal(size=(3 * n, 5)).astype(np.float32)}


def padded_batch() -> dict[str, np.ndarray]:
    """The same triplets and three more of weight 0."""
    triplets, padding = batch()["stacked"].reshape(3, 6, 5), np.full((3, 3, 5), 99, np.float32)
    weight = np.array([1] * 6 + [0] * 3, np.float32)
    return {"stacked": np.concatenate([triplets, padding], axis=1).reshape(27, 5), "weight": weight}


def embed(encoder: keras.Model, triplets: dict[str, np.ndarray]) -> list[np.ndarray]:
    return np.split(encoder(triplets["stacked"]).numpy(), 3)


def test_padding_changes_nothing() -> None:
    one, two = TripletModel(linear_encoder(), triplet_loss()), TripletModel(linear_encoder(), triplet_loss())
    first, second = one.train_step(batch()), two.train_step(padded_batch())
    assert float(first["loss"]) == pytest.approx(float(second["loss"]), abs=1e-6)
    assert float(second["weight"]) == 6
    # kernels only: no distance depends on the bias, so Adam scales up what rounding leaves of its gradient
    np.testing.assert_allclose(one.get_weights()[0], two.get_weights()[0], atol=1e-6)


def test_padding_changes_nothing_for_losses_that_see_the_batch() -> None:
    """Pairs, with rows that pad them between those that count."""
    plain = {"stacked": batch()["stacked"][:12]}
    padded = np.insert(plain["stacked"].reshape(2, 6, 5), 2, 99, axis=1)
    weight = np.array([1, 1, 0, 1, 1, 1, 1], np.float32)
    models = [TripletModel(linear_encoder(), triplet_loss("infonce"), global_weight=0.5) for _ in range(2)]
    first = models[0].train_step(plain)
    second = models[1].train_step({"stacked": padded.reshape(14, 5), "weight": weight})
    for name in models[0].metric_names:
        assert float(first[name]) == pytest.approx(float(second[name]), abs=1e-5)
    np.testing.assert_allclose(models[0].get_weights()[0], models[1].get_weights()[0], atol=1e-5)


def test_global_term_is_added_to_any_loss() -> None:
    model = TripletModel(linear_encoder(), triplet_loss(), global_weight=0.5)
    anchors, triplets = batch()["stacked"][:6], embed(model.encoder, batch())
    term = float(global_loss(anchors, triplets[0]))
    figures = model.train_step(batch())
    assert float(figures["global_loss"]) == pytest.approx(term, abs=1e-5)
    assert float(figures["loss"]) == pytest.approx(float(triplet_loss()(None, triplets)) + 0.5 * term, abs=1e-5)
    assert model.metric_names == ("loss", "triplet_loss", "global_loss")


def test_loss_of_the_step_is_that_of_the_function() -> None:
    model = TripletModel(linear_encoder(), triplet_loss("manhattan_pn"))
    expected = triplet_loss("manhattan_pn")(None, embed(model.encoder, batch()))
    assert float(model.train_step(batch())["loss"]) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("loss", ["pn", lambda y_true, y_pred: keras.ops.mean(y_pred[1] * y_pred[2])])
def test_negatives_among_the_anchors_are_as_rows_of_their_own_averaged(loss: object) -> None:
    """Three of each, and an anchor without any."""
    pairs = batch()["stacked"][:12]
    negative = np.array([[1, 2, 3], [0, 0, 5], [4, 0, 1], [0, 1, 2], [5, 5, 5], [-1, -1, -1]], np.int32)
    models = [TripletModel(linear_encoder(), triplet_loss(loss)) for _ in range(2)]
    spread = pairs.reshape(2, 6, 5)[:, :5].repeat(3, axis=1)
    stacked = np.concatenate([spread.reshape(-1, 5), pairs[negative[:5].reshape(-1)]])
    first = models[0].train_step({"stacked": pairs, "negative": negative})
    second = models[1].train_step({"stacked": stacked})
    assert float(first["loss"]) == pytest.approx(float(second["loss"]), abs=1e-6)
    assert float(first["weight"]) == 6
    np.testing.assert_allclose(models[0].get_weights()[0], models[1].get_weights()[0], atol=1e-6)


def test_negatives_of_a_loss() -> None:
    """A loss that looks at the whole batch is to see no row twice."""
    encoder = linear_encoder()
    for loss, expected in (("pn", 5), ("infonce", 0), (lambda y_true, y_pred: keras.ops.mean(y_pred), 1)):
        assert TripletModel(encoder, triplet_loss(loss)).count_negatives(5) == expected


def test_labels_of_rows_without_a_negative_count() -> None:
    head = build_head("mae", 1, 2, seed=1)
    settings = {"head": head, "supervision_metric": "mae", "supervision_weight": 0.5}
    model = TripletModel(linear_encoder(), triplet_loss(), **settings)
    label = np.arange(6, dtype=np.float32)
    expected = np.abs(head(embed(model.encoder, batch())[0]).numpy()[:, 0] - label).mean()
    negative = np.array([[1], [2], [-1], [0], [-1], [1]], np.int32)
    figures = model.train_step({"stacked": batch()["stacked"][:12], "negative": negative, "label": label})
    assert float(figures["supervised_loss"]) == pytest.approx(expected, abs=1e-5)


def test_callable_loss_is_not_shown_padding() -> None:
    def mean_of_anchors(y_true, y_pred):
        return keras.ops.mean(y_pred[0])

    model = TripletModel(linear_encoder(), mean_of_anchors)
    expected = float(np.mean(embed(model.encoder, batch())[0]))
    assert float(model.train_step(padded_batch())["loss"]) == pytest.approx(expected, abs=1e-6)


def test_supervised_total_is_the_weighted_sum_and_averages_over_labelled_rows() -> None:
    head = build_head("sparse_categorical_crossentropy", 3, 2, seed=1)
    model = TripletModel(
        linear_encoder(),
        triplet_loss(),
        head=head,
        supervision_metric="sparse_categorical_crossentropy",
        supervision_weight=0.8,
    )
    labels = np.array([0, 1, 2, -1, -1, -1])
    probabilities = head(embed(model.encoder, batch())[0]).numpy()
    supervised = -np.log(probabilities[[0, 1, 2], [0, 1, 2]]).mean()
    triplet = float(triplet_loss()(None, embed(model.encoder, batch())))
    before = head.get_weights()[0]
    figures = model.train_step({**batch(), "label": labels})
    assert float(figures["supervised_loss"]) == pytest.approx(supervised, abs=1e-5)
    assert float(figures["loss"]) == pytest.approx(0.2 * triplet + 0.8 * supervised, abs=1e-5)
    assert not np.array_equal(before, head.get_weights()[0])


def test_batch_without_any_label_is_finite() -> None:
    head = build_head("sparse_categorical_crossentropy", 3, 2, seed=1)
    model = TripletModel(
        linear_encoder(), triplet_loss(), head=head, supervision_metric="sparse_categorical_crossentropy",
        supervision_weight=0.5,
    )  # fmt: skip
    assert np.isfinite(float(model.train_step({**batch(), "label": np.full(6, -1)})["loss"]))


def test_reducer_sees_all_gradients_and_its_answer_is_applied() -> None:
    seen = []

    class Drop(Reducer):
        def sum_gradients(self, gradients):
            seen.extend(gradients)
            return [0 * each for each in gradients]

    model = TripletModel(linear_encoder(), triplet_loss(), reducer=Drop())
    before = model.get_weights()
    model.train_step(batch())
    assert len(seen) == 2
    np.testing.assert_array_equal(before[0], model.get_weights()[0])


def test_fused_adam_equals_keras_adam() -> None:
    models = [
        TripletModel(linear_encoder(), triplet_loss(), optimizer=make(0.01))
        for make in (FusedAdam, keras.optimizers.Adam)
    ]
    for step in range(20):
        for model in models:
            model.train_step(batch(seed=step))
    np.testing.assert_allclose(models[0].get_weights()[0], models[1].get_weights()[0], atol=1e-5)


class Threads(Reducer):
    """Two ranks that are threads of this process."""

    n_ranks = 2
    exact_gradients = True

    def __init__(self) -> None:
        self._slots: dict[int, list] = {}
        self._barrier = threading.Barrier(self.n_ranks, timeout=60)

    def sum_gradients(self, gradients):
        self._slots[threading.get_ident()] = gradients
        self._barrier.wait()
        sums = [sum(parts) for parts in zip(*self._slots.values(), strict=True)]
        self._barrier.wait()
        return sums

    sum_values = sum_gradients

    def gather(self, rows):
        """Threads have a tape each, so a gradient for rows of the other goes to it by hand."""

        @tf.custom_gradient
        def gathered(mine):
            me = threading.get_ident()
            parts = self._exchange(mine)
            first = [me, *sorted(parts.keys() - {me})]
            sizes = [len(parts[rank]) for rank in first]

            def give_back(upstream):
                given = self._exchange(dict(zip(first, tf.split(upstream, sizes), strict=True)))
                return sum(each[me] for each in given.values())

            return tf.concat([parts[rank] for rank in first], 0), give_back

        return gathered(rows)

    def _exchange(self, value):
        self._slots[threading.get_ident()] = value
        self._barrier.wait()
        found = dict(self._slots)
        self._barrier.wait()
        return found


def cut_rows(whole: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    parts = len(whole["stacked"]) // 10
    stacked = whole["stacked"].reshape(parts, -1, 5)[:, start:stop].reshape(-1, 5)
    return {"stacked": stacked, **{name: whole[name][start:stop] for name in whole if name != "stacked"}}


@pytest.mark.parametrize("metric", [None, "sparse_categorical_crossentropy", "mae", "squared_hinge"])
def test_a_batch_split_over_ranks_has_the_gradients_of_the_whole_batch(metric: str | None) -> None:
    """Padding and missing labels fall on the ranks unevenly, and ranks may hold nothing that counts."""
    rng = np.random.default_rng(3)
    weight = np.array([1, 1, 0, 1, 1, 1, 1, 0, 0, 0], np.float32)
    label = np.array([0, -1, 1, -1, 2, 1, 0, 2, 2, 2], np.float32)
    if metric != "sparse_categorical_crossentropy":
        label = np.where(label < 0, np.nan, np.minimum(label, 1)).astype(np.float32)
    whole = {"stacked": rng.normal(size=(30, 5)).astype(np.float32), "weight": weight, "label": label}
    for border in (5, 7):
        check_split(whole, border, metric)


def test_weights_do_not_travel_with_gradients_that_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    pairs = {"stacked": rng.normal(size=(20, 5)).astype(np.float32), "weight": np.ones(10, np.float32)}
    sent = []
    for exact in (True, False):
        monkeypatch.setattr(Threads, "exact_gradients", exact)
        reducer = Threads()
        sum_gradients = reducer.sum_gradients
        reducer.sum_gradients = lambda gradients, send=sum_gradients: sent.append(len(gradients)) or send(gradients)
        ranks = [TripletModel(linear_encoder(), triplet_loss("infonce"), reducer=reducer) for _ in range(2)]
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(TripletModel.train_step, ranks, [cut_rows(pairs, 0, 6), cut_rows(pairs, 6, 10)]))
        assert [float(each["weight"]) for each in found] == [10, 10]
    assert sent == [3, 3, 2, 2]


def test_gathered_negatives_give_the_gradients_of_the_whole_batch() -> None:
    rng = np.random.default_rng(3)
    weight = np.array([1, 1, 0, 1, 1, 1, 1, 1, 0, 1], np.float32)
    pairs = {"stacked": rng.normal(size=(20, 5)).astype(np.float32), "weight": weight}
    for border in (5, 7):
        check_split(pairs, border, None, "infonce", gather_negatives=True)


def test_ranks_take_negatives_from_their_own_rows_and_average_over_all() -> None:
    rng = np.random.default_rng(3)
    pairs = {"stacked": rng.normal(size=(20, 5)).astype(np.float32)}
    parts = [cut_rows(pairs, 0, 6), cut_rows(pairs, 6, 10)]
    alone = [TripletModel(linear_encoder(), triplet_loss("infonce"), global_weight=0.5) for _ in parts]
    expected = [float(model.train_step(part)["loss"]) for model, part in zip(alone, parts, strict=True)]
    reducer = Threads()
    ranks = [TripletModel(linear_encoder(), triplet_loss("infonce"), global_weight=0.5, reducer=reducer) for _ in parts]
    with ThreadPoolExecutor(2) as pool:
        shares = [float(each["loss"]) for each in pool.map(TripletModel.train_step, ranks, parts)]
    np.testing.assert_allclose(shares, [0.6 * expected[0], 0.4 * expected[1]], rtol=1e-5)
    np.testing.assert_allclose(ranks[0].get_weights()[0], ranks[1].get_weights()[0], atol=1e-6)


def check_split(
    whole: dict[str, np.ndarray], border: int, metric: str | None, loss: str = "pn", **settings: object
) -> None:
    def make(reducer: Reducer) -> TripletModel:
        head = None if metric is None else build_head(metric, 3 if "sparse" in metric else 1, 2, seed=1)
        options = {"head": head, "supervision_metric": metric, "supervision_weight": 0.3} if metric else {}
        sgd = keras.optimizers.SGD(1.0)  # so that the weights move by the gradients
        options |= settings
        return TripletModel(linear_encoder(), triplet_loss(loss), optimizer=sgd, reducer=reducer, **options)

    reducer = Threads()
    alone, ranks = make(Reducer()), [make(reducer) for _ in range(2)]
    figures = alone.train_step(whole)
    parts = [cut_rows(whole, 0, border), cut_rows(whole, border, 10)]
    with ThreadPoolExecutor(2) as pool:
        shares = list(pool.map(TripletModel.train_step, ranks, parts))
    for rank in ranks:
        for mine, wanted in zip(rank.get_weights(), alone.get_weights(), strict=True):
            np.testing.assert_allclose(mine, wanted, atol=1e-5)
    for name, value in figures.items():
        found = [float(share[name]) for share in shares]
        assert (found[0] if name == "weight" else sum(found)) == pytest.approx(float(value), abs=1e-5)
