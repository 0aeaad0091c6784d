"""The training loop: history, callbacks, early stopping, divergence, seeds."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json

import numpy as np
import pytest

from ivis_spark.config import TrainConfig
from ivis_spark.errors import TrainingError

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.tf, pytest.mark.compiled]

from ivis_spark.data.triplets import triplet_dataset  # noqa: E402
from ivis_spark.nn.losses import triplet_loss  # noqa: E402
from ivis_spark.nn.model import TripletModel  # noqa: E402
from ivis_spark.nn.networks import build_encoder  # noqa: E402
from ivis_spark.nn.reducer import Reducer  # noqa: E402
from ivis_spark.train import loop  # noqa: E402
from ivis_spark.train.loop import TrainingState  # noqa: E402


def clusters() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(90, 6)) + np.repeat(np.eye(3, 6) * 8, 30, axis=0)).astype(np.float32)


NEIGHBOURS = np.array([[30 * (i // 30) + (i + j) % 30 for j in range(1, 6)] for i in range(90)])


def train(
    epochs: int = 3,
    patience: int = 5,
    X: np.ndarray | None = None,
    seed: int = 1,
    cooldown: int = 0,
    warmup: int = 0,
    schedule: str = "constant",
    callbacks=(),
    **options,
):
    X = clusters() if X is None else X
    model = TripletModel(build_encoder("szubert", (6,), 2, seed), triplet_loss(), **options)
    dataset, steps = triplet_dataset(X, NEIGHBOURS, batch_size=16, random_state=seed)
    config = TrainConfig(
        epochs=epochs, patience=patience, cooldown_epochs=cooldown, warmup_epochs=warmup, schedule=schedule
    )
    history = loop.fit(model, dataset, steps_per_epoch=steps, config=config, callbacks=callbacks)
    return model, history


def test_loss_falls_and_clusters_part() -> None:
    _, history = train(epochs=30, patience=30)
    assert len(history["loss"]) == 30
    # A third of the negatives are of the own cluster: 0.33 at best.
    assert history["loss"][-1] < 0.55 * history["loss"][0]


class Still(Reducer):
    """Nothing is learnt."""

    def sum_gradients(self, gradients):
        return [0 * each for each in gradients]


class Recorder(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def on_train_begin(self, logs=None):
        self.calls.append("train+")

    def on_train_end(self, logs=None):
        self.calls.append("train-")

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(f"epoch+{epoch}")

    def on_epoch_end(self, epoch, logs=None):
        assert set(logs) == {"loss"}
        self.calls.append(f"epoch-{epoch}")

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(f"batch-{batch}")


def test_callbacks_are_called_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_STEPS_PER_CALL", 4)
    recorder = Recorder()
    train(epochs=2, callbacks=[recorder])
    epoch = ["batch-3", "batch-5"]
    assert recorder.calls == ["train+", "epoch+0", *epoch, "epoch-0", "epoch+1", *epoch, "epoch-1", "train-"]


def test_stops_when_the_loss_does_not_fall() -> None:
    _, history = train(epochs=50, patience=2, reducer=Still())
    assert len(history["loss"]) < 25


class Rates(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(float(self.model.optimizer.learning_rate))


def test_learning_rate_falls_to_nothing_in_the_last_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_STEPS_PER_CALL", 3)
    rates = Rates()
    model, history = train(epochs=5, cooldown=2, callbacks=[rates])
    assert len(history["loss"]) == 5
    np.testing.assert_allclose(rates.seen, 0.001 * np.array([1] * 6 + [0.875, 0.625, 0.375, 0.125]), rtol=1e-5)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001)
    assert len(train(epochs=1, cooldown=4)[1]["loss"]) == 1


def test_cooldown_comes_after_the_loss_stopped_falling_but_not_after_a_stop_of_the_users() -> None:
    still = {"reducer": Still()}
    assert len(train(epochs=50, patience=2, cooldown=3, **still)[1]["loss"]) == (
        len(train(epochs=50, patience=2, **still)[1]["loss"]) + 3
    )

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    assert len(train(epochs=50, cooldown=3, callbacks=[Stop()])[1]["loss"]) == 1


def test_diverging_loss_is_an_error_with_a_remedy() -> None:
    X = clusters()
    X[5] = np.inf
    with pytest.raises(TrainingError, match=r"epoch 1: the loss is .*learning_rate.*scale"):
        train(X=X)


def test_training_that_collapses_starts_again_once_at_a_lower_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends as if it had begun with that rate; a second collapse is an error with a remedy."""
    monkeypatch.setattr(loop, "_LOWER_RATE", 1e-4)

    def run(rate, **options):
        config = TrainConfig(distance="infonce", epochs=4, cooldown_epochs=0, learning_rate=rate, optimizer="sgd")
        model = TripletModel(
            build_encoder("szubert", (6,), 2, 1, dropout=0.0),
            triplet_loss("infonce"),
            optimizer=keras.optimizers.Adam(rate),
        )
        dataset, steps = triplet_dataset(clusters(), NEIGHBOURS, batch_size=16, random_state=1, negatives=0)
        recorder, state = Recorder(), TrainingState(**options)
        history = loop.fit(model, dataset, steps_per_epoch=steps, config=config, callbacks=[recorder], state=state)
        return model, history, state, recorder

    again, history, state, recorder = run(10.0)
    plain, expected, *_ = run(0.001)
    assert "collapsed in epoch 1: the embedding has grown to a radius of" in caplog.text
    assert (state.collapses, state.rate) == (1, pytest.approx(0.001))
    assert history == expected and len(history["loss"]) == 4
    assert recorder.calls.count("train+") == 2
    for mine, theirs in zip(again.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    monkeypatch.setattr(loop, "_LOWER_RATE", 0.9)
    with pytest.raises(TrainingError, match=r"collapsed in epoch 1.*Lower train.learning_rate \(was 9\)"):
        run(10.0)
    with pytest.raises(TrainingError, match=r"collapsed in epoch 3"):
        run(10.0, epoch=2)


@pytest.mark.parametrize(("schedule", "expected"), [("cosine", [4, 4, 1, 1]), ("constant", [1, 1, 1, 1])])
def test_exaggeration_holds_for_its_share_of_a_cosine(schedule: str, expected: list[float]) -> None:
    config = TrainConfig(epochs=4, schedule=schedule, exaggeration=4.0, exaggeration_share=0.5)
    model, seen = TripletModel(build_encoder("szubert", (6,), 2, 1), triplet_loss()), []
    dataset, steps = triplet_dataset(clusters(), NEIGHBOURS, batch_size=90, random_state=1)
    spy = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(float(model.exaggeration)))
    loop.fit(model, dataset, steps_per_epoch=steps, config=config, callbacks=[spy])
    assert seen == expected


def test_averages_weigh_rows_not_batches() -> None:
    """90 rows in batches of 16: the last batch of 10 counts for 10."""

    class Spy(TripletModel):
        def train_step(self, batch):
            figures = super().train_step(batch)
            return {**figures, "loss": figures["weight"]}

    model = Spy(build_encoder("szubert", (6,), 2, 1), triplet_loss())
    dataset, steps = triplet_dataset(clusters(), NEIGHBOURS, batch_size=16, random_state=1)
    losses = loop.fit(model, dataset, steps_per_epoch=steps, config=TrainConfig(epochs=1))["loss"]
    assert losses[0] == pytest.approx((5 * 16 * 16 + 10 * 10) / 90)


def test_same_seed_same_bits_and_numpy_state_untouched() -> None:
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    one, two, other = train(seed=4)[0], train(seed=4)[0], train(seed=5)[0]
    assert np.random.random() == expected
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.get_weights()[0], other.get_weights()[0])


def test_goes_on_from_an_epoch() -> None:
    model, _ = train(epochs=2)
    dataset, steps = triplet_dataset(clusters(), NEIGHBOURS, batch_size=16, random_state=1)
    recorder = Recorder()
    history = loop.fit(
        model,
        dataset,
        steps_per_epoch=steps,
        config=TrainConfig(epochs=3, cooldown_epochs=0),
        callbacks=[recorder],
        state=TrainingState(epoch=2),
    )
    assert len(history["loss"]) == 1
    assert "epoch+2" in recorder.calls


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_goes_on_from_any_chunk_as_if_it_had_not_stopped(monkeypatch: pytest.MonkeyPatch, schedule: str) -> None:
    """Stop training after every chunk in turn, give another model the values and the state, and compare the ends."""
    monkeypatch.setattr(loop, "_STEPS_PER_CALL", 3)  # two chunks an epoch
    X = clusters()[:, :5]
    rng = np.random.default_rng(0)
    batches = [{"stacked": X[rng.integers(90, size=3 * 8)]} for _ in range(4 * 6)]
    config = TrainConfig(epochs=4, cooldown_epochs=1, warmup_epochs=2, patience=2, schedule=schedule)

    def run(model, state=None, stop_after=None):
        seen = []

        def on_progress(state):
            seen.append(copy.deepcopy(state))
            if len(seen) == stop_after:
                raise InterruptedError

        done = 0 if state is None else state.epoch * 6 + state.step
        dataset = tf.data.Dataset.from_generator(
            lambda: iter(batches[done:]), output_signature={"stacked": tf.TensorSpec((24, 5), tf.float32)}
        )
        with contextlib.suppress(InterruptedError):
            loop.fit(model, dataset, steps_per_epoch=6, config=config, state=state, on_progress=on_progress)
        return seen

    def make():
        kernel = keras.initializers.GlorotUniform(seed=1)
        encoder = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, kernel_initializer=kernel)])
        model = TripletModel(encoder, triplet_loss())
        model.optimizer.build(model.trainable_variables)
        return model

    whole = make()
    states = run(whole)
    assert len(states) == 8 and states[-1].epoch == 4
    for stop in range(1, 8):
        first, second = make(), make()
        state = run(first, stop_after=stop)[-1]
        for mine, theirs in zip(second.variables, first.variables, strict=True):
            mine.assign(theirs)
        for mine, theirs in zip(second.optimizer.variables, first.optimizer.variables, strict=True):
            mine.assign(theirs)
        end = run(second, state=TrainingState(**json.loads(json.dumps(dataclasses.asdict(state)))))[-1]
        assert end == states[-1]
        for mine, wanted in zip(second.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, wanted)


def test_learning_rate_falls_as_a_cosine_over_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks of 3 steps an epoch; nothing is learnt, which ends no cosine."""
    monkeypatch.setattr(loop, "_STEPS_PER_CALL", 3)
    rates = Rates()
    model, history = train(
        epochs=3, patience=1, cooldown=2, callbacks=[rates], warmup=1, schedule="cosine", reducer=Still()
    )
    assert len(history["loss"]) == 3
    falling = (1 + np.cos(np.pi * np.array([0.125, 0.375, 0.625, 0.875]))) / 2
    np.testing.assert_allclose(rates.seen, 0.001 * np.array([0.25, 0.75, *falling]), rtol=1e-5)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001)


def test_learning_rate_rises_in_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_STEPS_PER_CALL", 3)
    rates = Rates()
    train(epochs=3, callbacks=[rates], warmup=2)
    np.testing.assert_allclose(rates.seen, 0.001 * np.array([0.125, 0.375, 0.625, 0.875, 1, 1]), rtol=1e-5)
