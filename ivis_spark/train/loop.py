"""The training loop: epochs, callbacks, early stopping."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from ivis_spark.config import TrainConfig
from ivis_spark.errors import TrainingError
from ivis_spark.nn.model import TripletModel

log = logging.getLogger(__name__)

# Steps run in one call of the compiled loop; batch callbacks are called once for each. Long enough to hide the cost
# of the call, short enough that a diverging loss is seen within seconds.
_STEPS_PER_CALL = 256

History = dict[str, list[float]]


def fit(
    model: TripletModel,
    dataset: tf.data.Dataset,
    *,
    steps_per_epoch: int,
    config: TrainConfig,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    initial_epoch: int = 0,
) -> History:
    """Train until the loss has not fallen for `config.patience` epochs, then cool down; at most `config.epochs` in all.

    In the last `config.cooldown_epochs` the learning rate falls linearly to 0. It takes the noise of the steps out of
    the weights: "Scaling laws and compute-optimal training beyond fixed training durations" (Haegele et al., 2024).

    Runs on: each rank.

    Args:
        model: What to train; its weights change in place.
        dataset: Infinite; batches as `TripletModel.train_step` takes them.
        steps_per_epoch: Batches of an epoch.
        config: `epochs`, `patience` and `cooldown_epochs` are read here.
        callbacks: Keras callbacks; one that sets `model.stop_training` ends training at once. `on_train_batch_*` is
            called once for each chunk of steps, with its last step.
        initial_epoch: Number of the first epoch, when training goes on.

    Returns:
        The figures of each epoch, averaged over its rows by weight: `loss`, and its parts with supervision.

    Raises:
        TrainingError: if the loss is not finite.
    """
    stopping = keras.callbacks.EarlyStopping(monitor="loss", mode="min", patience=config.patience)
    listeners = keras.callbacks.CallbackList(
        [*callbacks, stopping],
        add_history=True,
        add_progbar=False,
        model=model,
        epochs=config.epochs,
        steps=steps_per_epoch,
        verbose=0,
    )
    model.stop_training = False
    model.optimizer.build(model.trainable_variables)
    run_steps = _make_run_steps_fn(model)
    cooldown = min(config.cooldown_epochs, config.epochs // 2)
    run_epoch = functools.partial(_run_epoch, run_steps, iter(dataset), steps_per_epoch, listeners=listeners)
    listeners.on_train_begin()
    epoch = initial_epoch
    while epoch < config.epochs - cooldown and not model.stop_training:
        run_epoch(epoch)
        epoch += 1
    settled = stopping.wait >= config.patience
    if settled:
        log.info("no lower loss in %d epochs; %d more at a falling learning rate", config.patience, cooldown)
    if cooldown and (settled or not model.stop_training):
        model.stop_training = False
        cooling = _Cooldown(model, first_epoch=epoch, epochs=cooldown, steps=steps_per_epoch)
        listeners.callbacks[listeners.callbacks.index(stopping)] = cooling
        while epoch < cooling.last_epoch and not model.stop_training:
            run_epoch(epoch)
            epoch += 1
        model.optimizer.learning_rate = cooling.start
    listeners.on_train_end()
    history: History = model.history.history
    return history


class _Cooldown(keras.callbacks.Callback):  # type: ignore[misc]
    """Lets the learning rate fall linearly to 0: each chunk of steps has the rate of its middle."""

    def __init__(self, model: TripletModel, *, first_epoch: int, epochs: int, steps: int) -> None:
        super().__init__()
        self.set_model(model)
        self.start = float(model.optimizer.learning_rate)
        self.last_epoch = first_epoch + epochs
        self._epochs, self._steps, self._epoch = epochs, steps, first_epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        middle = min(batch + _STEPS_PER_CALL / 2, (batch + self._steps) / 2) / self._steps
        self.model.optimizer.learning_rate = self.start * (self.last_epoch - self._epoch - middle) / self._epochs


def _run_epoch(
    run_steps: Callable[..., Any],
    batches: Any,
    steps_per_epoch: int,
    epoch: int,
    *,
    listeners: keras.callbacks.CallbackList,
) -> None:
    """Run the steps of an epoch and tell the listeners its figures."""
    sums: dict[str, float] = {}
    listeners.on_epoch_begin(epoch)
    for start in range(0, steps_per_epoch, _STEPS_PER_CALL):
        steps = min(_STEPS_PER_CALL, steps_per_epoch - start)
        listeners.on_train_batch_begin(start)
        for name, value in run_steps(batches, tf.constant(steps)).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        if not math.isfinite(sums["loss"]):
            raise TrainingError(
                f"the loss is {sums['loss']} in epoch {epoch + 1}, batch {start + 1} to {start + steps}: training "
                "diverged; lower the learning rate, scale the features to [0, 1] or to variance 1, or check them for "
                "very large values"
            )
        listeners.on_train_batch_end(start + steps - 1, _averages(sums))
        if listeners.model.stop_training:
            break
    listeners.on_epoch_end(epoch, _averages(sums))


def _averages(sums: dict[str, float]) -> dict[str, float]:
    weight = sums["weight"] or 1.0
    return {name: value / weight for name, value in sums.items() if name != "weight"}


def _make_run_steps_fn(model: TripletModel) -> Callable[..., Any]:
    """Return a compiled function that trains on the next `steps` batches and returns sums of figures by weight."""
    names = model.metric_names

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def run_steps(batches: Any, steps: Any) -> dict[str, Any]:
        sums = {name: tf.constant(0.0) for name in (*names, "weight")}
        for _ in tf.range(steps):
            figures = model.train_step(next(batches))
            weight = figures["weight"]
            sums = {name: sums[name] + (weight if name == "weight" else figures[name] * weight) for name in sums}
        return sums

    return run_steps
