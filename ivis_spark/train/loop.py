"""The training loop: epochs, callbacks, early stopping, and its state at any moment."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from ivis_spark.config import TrainConfig
from ivis_spark.errors import TrainingError
from ivis_spark.manifest import check_fields, check_list
from ivis_spark.nn.callbacks import STOPPED
from ivis_spark.nn.losses import InfoNCELoss
from ivis_spark.nn.model import SQUARED_RADIUS, TripletModel, restorer

log = logging.getLogger(__name__)

# Steps run in one call of the compiled loop; batch callbacks are called once for each. Long enough to hide the cost
# of the call, short enough that a diverging loss is seen within seconds.
_STEPS_PER_CALL = 256
# A run that collapses starts again so often, each time at so many times its learning rate.
_MAX_COLLAPSES, _LOWER_RATE = 1, 0.25
_RADIUS_FACTOR = 100.0  # times `InfoNCELoss.radius`; the loss itself holds maps back from a third of that on

History = dict[str, list[float]]


@dataclass
class TrainingState:
    """Where training stands between two calls of the compiled loop. JSON can hold it.

    Attributes:
        epoch, step: The next batch to train on.
        sums: Sums of the figures of the epoch's batches so far.
        history: Figures of the epochs that ended.
        best, wait: Lowest loss, and the epochs since: early stopping.
        rate: Learning rate outside warm-up and cool-down; None before training.
        cooldown_from: First epoch of the cool-down, once that is known.
        stopped: Whether a callback ended training.
        collapses: Times that training was started again at a lower learning rate.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=dict)
    best: float | None = None
    wait: int = 0
    rate: float | None = None
    cooldown_from: int | None = None
    stopped: bool = False
    collapses: int = 0

    @classmethod
    def from_mapping(cls, mapping: Any) -> TrainingState:
        """Make a state of what JSON gave. Raises ValueError if that is none."""
        number, maybe = (int, float), (int, float, type(None))
        check_fields(mapping, epoch=int, step=int, sums=dict, history=dict, best=maybe, wait=int, rate=maybe)
        check_fields(mapping, cooldown_from=(int, type(None)), stopped=bool, collapses=int)
        check_list(list(mapping["sums"].values()), number, "sums")
        for figures in mapping["history"].values():
            check_list(figures, number, "history")
        if min(mapping["epoch"], mapping["step"], mapping["wait"]) < 0:
            raise ValueError("epoch, step or wait is negative")
        return cls(**mapping)


def fit(
    model: TripletModel,
    dataset: tf.data.Dataset,
    *,
    steps_per_epoch: int,
    config: TrainConfig,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    state: TrainingState | None = None,
    on_progress: Callable[[TrainingState], None] | None = None,
) -> History:
    """Train until the loss has not fallen for `config.patience` epochs, then cool down; at most `config.epochs` in all.

    In the last `config.cooldown_epochs` the learning rate falls linearly to 0. It takes the noise of the steps out of
    the weights: "Scaling laws and compute-optimal training beyond fixed training durations" (Haegele et al., 2024).
    In the first `config.warmup_epochs` it rises linearly from 0. With `config.schedule` cosine it falls from there to 0
    over all epochs: "SGDR: stochastic gradient descent with warm restarts" (Loshchilov and Hutter, 2017), no restarts.

    Training that collapses (the loss is not finite, or the embedding grows without bounds) starts again once, from the
    initial weights and at a quarter of the learning rate; callbacks then see a second `on_train_begin`.

    All ranks that train together see the same figures and stop together, whichever of them has the callback that
    asked for it.

    Runs on: each rank.

    Args:
        model: What to train; its weights change in place.
        dataset: Infinite; batches as `TripletModel.train_step` takes them, from where `state` stands.
        steps_per_epoch: Batches of an epoch.
        config: `epochs`, `patience`, `schedule`, `warmup_epochs` and `cooldown_epochs` are read here.
        callbacks: Keras callbacks; one that sets `model.stop_training` ends training at once. `on_train_batch_*` is
            called once for each chunk of steps, with its last step.
        state: Where training resumes; it is kept up to date. None starts training.
        on_progress: Called with the state after each chunk of steps and each epoch.

    Returns:
        The figures of each epoch, averaged over its rows by weight: `loss`, and its parts with supervision.

    Raises:
        TrainingError: if training collapses again, or collapses after it was resumed.
    """
    state = state if state is not None else TrainingState()
    run = _Run(model, dataset, steps_per_epoch, config, callbacks, state, on_progress or (lambda _: None))
    try:
        run.train()
    finally:
        run.close()
    return state.history


class _Run:
    """One call of `fit`."""

    def __init__(
        self,
        model: TripletModel,
        dataset: tf.data.Dataset,
        steps_per_epoch: int,
        config: TrainConfig,
        callbacks: Iterable[keras.callbacks.Callback],
        state: TrainingState,
        on_progress: Callable[[TrainingState], None],
    ) -> None:
        self._model, self._state, self._steps, self._on_progress = model, state, steps_per_epoch, on_progress
        self._config = config
        self._cosine = config.schedule == "cosine"
        self._cooldown = 0 if self._cosine else min(config.cooldown_epochs, config.epochs // 2)
        self._stopping = keras.callbacks.EarlyStopping(monitor="loss", mode="min", patience=config.patience)
        self._stopping.set_model(model)
        self._listeners = keras.callbacks.CallbackList(
            list(callbacks),
            add_history=True,
            add_progbar=False,
            model=model,
            epochs=config.epochs,
            steps=steps_per_epoch,
            verbose=0,
        )
        model.stop_training = False
        model.optimizer.build(model.trainable_variables)
        if state.rate is None:
            state.rate = float(model.optimizer.learning_rate)
        self._run_steps = _make_run_steps_fn(model)
        self._why_stopped = ""
        self._largest_radius = _largest_radius(model, config)
        self._dataset, self._batches = dataset, iter(dataset)
        begins = not state.epoch and not state.step
        self._restore = restorer(model) if begins else None

    def train(self) -> None:
        """Train, and start again if that collapses."""
        while True:
            try:
                return self._train()
            except _Collapse as collapse:
                self._start_again(collapse)

    def _start_again(self, collapse: _Collapse) -> None:
        """Go back to the initial weights, at a lower learning rate."""
        state = self._state
        rate = _LOWER_RATE * (state.rate or 0.0)
        if self._restore is None or state.collapses >= _MAX_COLLAPSES:
            raise TrainingError(
                f"training collapsed in epoch {state.epoch + 1}: {collapse}. Lower train.learning_rate (was "
                f"{state.rate:.3g}), scale the features to [0, 1] or to unit variance, or check them for very large "
                f"values"
            )
        log.warning(
            "training collapsed in epoch %d: %s; restarting at a learning rate of %.3g instead of %.3g",
            *(state.epoch + 1, collapse, rate, state.rate),
        )
        self._restore()
        fresh = TrainingState(rate=rate, collapses=state.collapses + 1)
        vars(state).update(vars(fresh))
        self._model.optimizer.learning_rate = rate
        self._batches = iter(self._dataset)

    def _train(self) -> None:
        """Run epochs until it is time to end."""
        state = self._state
        self._model.stop_training = False
        self._listeners.on_train_begin()
        self._model.history.history = state.history  # which Keras's own History fills
        self._stopping.on_train_begin()
        self._stopping.wait = state.wait
        if state.best is not None:
            self._stopping.best = state.best
        while not self._ended():
            self._run_epoch()
            self._decide()
            self._on_progress(state)
        if self._cosine or state.cooldown_from is not None:
            self._model.optimizer.learning_rate = state.rate
        early = state.epoch < self._config.epochs
        why = self._why_stopped or "a callback ended training"
        self._listeners.on_train_end({STOPPED: f"stopped after epoch {state.epoch}: {why}"} if early else None)

    def close(self) -> None:
        """End reading. A reader that an error's traceback keeps until Python exits would hold the exit up for good."""
        del self._batches

    def _ended(self) -> bool:
        state = self._state
        last = self._config.epochs if state.cooldown_from is None else state.cooldown_from + self._cooldown
        return state.stopped or state.epoch >= last

    def _run_epoch(self) -> None:
        """Run the steps that are left of an epoch and tell the listeners its figures."""
        state, listeners = self._state, self._listeners
        listeners.on_epoch_begin(state.epoch)
        for start in range(state.step, self._steps, _STEPS_PER_CALL):
            steps = min(_STEPS_PER_CALL, self._steps - start)
            self._set_rate(start)
            listeners.on_train_batch_begin(start)
            for name, value in self._run_steps(self._batches, tf.constant(steps)).items():
                state.sums[name] = state.sums.get(name, 0.0) + float(value)
            if not math.isfinite(state.sums["loss"]):
                raise _Collapse(f"the loss is {state.sums['loss']} in batches {start + 1} to {start + steps}")
            radius = math.sqrt(state.sums[SQUARED_RADIUS] / (state.sums["weight"] or 1.0))
            if radius > self._largest_radius:
                raise _Collapse(f"the embedding has grown to a radius of {radius:.3g}, where gradients vanish")
            state.step = start + steps
            listeners.on_train_batch_end(state.step - 1, _averages(state.sums))
            if self._any_rank(self._model.stop_training):
                self._model.stop_training = True
                break
            if state.step < self._steps:
                self._on_progress(state)

    def _decide(self) -> None:
        """End the epoch: go on, cool down or stop."""
        state, epoch = self._state, self._state.epoch
        figures = _averages(state.sums)
        self._listeners.on_epoch_end(epoch, figures)
        stop = self._any_rank(self._model.stop_training)
        state.epoch, state.step, state.sums = epoch + 1, 0, {}
        if state.cooldown_from is not None:
            state.stopped = stop
            return
        self._stopping.on_epoch_end(epoch, figures)
        state.wait, state.best = self._stopping.wait, float(self._stopping.best)
        settled = state.wait >= self._config.patience and not self._cosine
        if settled:
            self._why_stopped = f"the loss has not fallen for {state.wait} epoch{'s' * (state.wait != 1)}"
        self._model.stop_training = False
        if epoch + 1 >= self._config.warmup_epochs > epoch and not self._cosine:
            self._model.optimizer.learning_rate = state.rate
        if self._cooldown and (settled or (not stop and state.epoch >= self._config.epochs - self._cooldown)):
            state.cooldown_from = state.epoch
            if epoch + 1 > self._config.warmup_epochs:
                state.rate = float(self._model.optimizer.learning_rate)
            if settled:
                log.info(
                    "no lower loss in %d epochs; cooling down for %d epochs at a falling learning rate",
                    state.wait,
                    self._cooldown,
                )
            return
        state.stopped = stop or settled

    def _set_rate(self, start: int) -> None:
        """Set the exaggeration and, in warm-up, cool-down and cosine, the rate, to those of a chunk's middle."""
        state, steps, config = self._state, self._steps, self._config
        now = state.epoch + min(start + _STEPS_PER_CALL / 2, (start + steps) / 2) / steps
        early = self._cosine and now < config.exaggeration_share * config.epochs
        self._model.exaggeration.assign(config.exaggeration if early else 1.0)
        if state.cooldown_from is not None:
            share = (state.cooldown_from + self._cooldown - now) / self._cooldown
        elif state.epoch < self._config.warmup_epochs:
            share = now / self._config.warmup_epochs
        elif self._cosine:
            warm = self._config.warmup_epochs
            share = (1 + math.cos(math.pi * (now - warm) / (self._config.epochs - warm))) / 2
        else:
            return
        self._model.optimizer.learning_rate = state.rate * share  # type: ignore[operator]

    def _any_rank(self, flag: bool) -> bool:
        """Tell whether a flag is set on any rank; they all must ask."""
        reducer = self._model.reducer
        if reducer.n_ranks == 1:
            return flag
        (total,) = reducer.sum_values([tf.constant(float(flag))])
        return float(total) > 0


def _largest_radius(model: TripletModel, config: TrainConfig) -> float:
    """Return the root mean square distance from the origin beyond which an embedding has collapsed."""
    loss = model.loss["stacked_triplets"] if isinstance(model.loss, dict) else model.loss
    if not isinstance(loss, InfoNCELoss):
        return math.inf
    return float(_RADIUS_FACTOR * loss.radius(loss.shared or 2 * config.batch_size))


class _Collapse(Exception):
    """Why training cannot go on from here."""


def _averages(sums: dict[str, float]) -> dict[str, float]:
    weight = sums["weight"] or 1.0
    return {name: value / weight for name, value in sums.items() if name not in ("weight", SQUARED_RADIUS)}


def _make_run_steps_fn(model: TripletModel) -> Callable[..., Any]:
    """Return a compiled function that trains on the next `steps` batches and returns sums of figures by weight.

    The sums are over all ranks. AutoGraph, which Keras's own training does not use either, would take a second to
    rewrite what needs no rewriting; losses of the user's own have it, see `nn.losses.with_autograph`.
    """
    names = (*model.metric_names, SQUARED_RADIUS)
    # Two steps of a ring at once would send two sums of the same name. 10 is TensorFlow's own choice.
    parallel = 10 if model.reducer.n_ranks == 1 else 1

    def run_steps(batches: Any, steps: Any) -> dict[str, Any]:
        def add_step(step: Any, sums: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            figures = model.train_step(batches.get_next())
            weight = figures["weight"]
            add = {name: weight if name == "weight" else figures[name] * weight for name in sums}
            return step + 1, {name: sums[name] + add[name] for name in sums}

        sums = {name: tf.constant(0.0) for name in (*names, "weight")}
        _, sums = tf.while_loop(
            lambda step, _: step < steps, add_step, (tf.constant(0), sums), parallel_iterations=parallel
        )
        totals = model.reducer.sum_values([sums[name] for name in names])
        return {**dict(zip(names, totals, strict=True)), "weight": sums["weight"]}

    # TensorFlow counts the traces of a function by its code, and would warn after a few fits in one process; a partial
    # has no code, so each fit counts for itself.
    return tf.function(functools.partial(run_steps), reduce_retracing=True, autograph=False)
