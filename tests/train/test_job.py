"""A training job: what it saves, its checkpoints and callbacks, and going on where it was interrupted."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")
pytestmark = [pytest.mark.tf, pytest.mark.compiled]

from triplet_blocks import write_blocks  # noqa: E402

from ivis_spark.config import TrainConfig  # noqa: E402
from ivis_spark.core import threads  # noqa: E402
from ivis_spark.errors import ConfigError, DependencyError  # noqa: E402
from ivis_spark.nn.losses import triplet_loss  # noqa: E402
from ivis_spark.nn.model import TripletModel  # noqa: E402
from ivis_spark.nn.persistence import load_model  # noqa: E402
from ivis_spark.train import loop  # noqa: E402
from ivis_spark.train.callbacks import make_callbacks  # noqa: E402
from ivis_spark.train.checkpoints import Checkpoints  # noqa: E402
from ivis_spark.train.job import TrainingJob, limit_threads, run_job  # noqa: E402
from ivis_spark.train.loop import TrainingState  # noqa: E402

EPOCHS = 5


def make_job(folder: Path, name: str = "run", **settings) -> TrainingJob:
    """8 blocks of 32 rows in batches of 32: 8 steps an epoch."""
    options = {"epochs": EPOCHS, "batch_size": 32, "checkpoint_seconds": 0.0, "cooldown_epochs": 2, **settings}
    return TrainingJob(
        write_blocks(folder / "blocks", [3, 5]),
        TrainConfig(**options),
        label_values=[0.0, 1.0, 2.0],
        random_state=3,
        model_uri=str(folder / name / "model"),
        checkpoint_uri=str(folder / name / "checkpoints"),
    )


def weights(job: TrainingJob) -> list[np.ndarray]:
    model = load_model(job.model_uri)
    return [*model.encoder.get_weights(), *(model.head.get_weights() if model.head else [])]


def test_a_job_survives_json(tmp_path: Path) -> None:
    job = make_job(tmp_path, callbacks=("csv",))
    assert TrainingJob.from_mapping(json.loads(json.dumps(job.to_mapping()))) == job


@pytest.mark.parametrize(
    ("own", "environment", "settings", "limited"),
    [
        (True, {}, {}, True),
        (True, {}, {"batch_size": 2048}, False),
        (True, {}, {"model": "maaten", "batch_size": 512}, False),
        (True, {"TF_NUM_INTRAOP_THREADS": "2"}, {}, False),
        (False, {}, {}, False),
    ],
)
def test_small_steps_take_one_thread_if_the_process_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool, environment: dict, settings: dict, limited: bool
) -> None:
    """A notebook's TensorFlow, wide networks and large batches keep all threads."""
    asked: list[int] = []
    monkeypatch.setattr("tensorflow.config.threading.set_intra_op_parallelism_threads", asked.append)
    monkeypatch.setitem(threads._process, "own", own)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    limit_threads(make_job(tmp_path, **settings))
    assert asked == [1] * limited


class Interrupt(Exception):
    """The process ended here."""


RECIPE = {
    "distance": "infonce",
    "global_weight": 0.2,
    "schedule": "cosine",
    "warmup_epochs": 1,
    "clipnorm": 1.0,
    "optimizer": "adamw",
}


@pytest.mark.parametrize(("after", "recipe"), [("epoch", {}), ("step", {}), ("step", RECIPE)])
def test_an_interrupted_run_ends_with_the_model_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str, recipe: dict[str, object]
) -> None:
    """Dropout, optimizer, order of the data, head, cool-down and history all go on."""
    monkeypatch.setattr(loop, "_STEPS_PER_CALL", 3)
    settings = {"supervision_metric": "sparse_categorical_crossentropy", "callbacks": ("csv",), **recipe}
    settings["checkpoint_steps"] = 0 if after == "epoch" else 3
    whole, broken = make_job(tmp_path, "whole", **settings), make_job(tmp_path, "broken", **settings)
    facts = run_job(whole)

    calls = []

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            calls.append(batch)
            if len(calls) in (5, 9):  # in the second epoch, and in the third or fourth
                raise Interrupt

    def with_stop(names, logs):
        return [*make_callbacks(names, logs), *([Stop()] if names else [])]

    monkeypatch.setattr("ivis_spark.train.job.make_callbacks", with_stop)
    for _ in range(2):
        with pytest.raises(Interrupt):
            run_job(broken)
    again = run_job(broken)
    assert len(calls) < 3 * EPOCHS + 2 * 3  # it did not begin anew
    # But for the last bits, which TensorFlow's threads do not add in the same order every time.
    for name in ("loss", "triplet_loss", "supervised_loss", "epochs"):
        np.testing.assert_allclose(again[name], facts[name], rtol=1e-5)
    for mine, wanted in zip(weights(broken), weights(whole), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)
    logged, expected = (
        np.genfromtxt(Path(job.model_uri) / "logs" / "training.csv", delimiter=",", names=True)
        for job in (broken, whole)
    )
    assert logged.dtype.names == expected.dtype.names and len(logged) == EPOCHS
    for name in logged.dtype.names:
        np.testing.assert_allclose(logged[name], expected[name], rtol=1e-5)


def test_the_last_few_checkpoints_are_kept_and_a_torn_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(tmp_path, keep_checkpoints=2)
    run_job(job)
    folders = sorted(Path(job.checkpoint_uri).iterdir())
    assert [folder.name for folder in folders] == ["epoch-000004-step-000000000", "epoch-000005-step-000000000"]
    wanted = weights(job)
    arrays = folders[1] / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:-100])
    facts = run_job(job)
    assert "skipping checkpoint epoch-000005-step-000000000" in caplog.text and "corrupt" in caplog.text
    assert facts["epochs"] == EPOCHS
    for mine, was in zip(weights(job), wanted, strict=True):
        np.testing.assert_array_equal(mine, was)
    (folders[0] / "checkpoint.json").unlink()
    (folders[1] / "checkpoint.json").write_text("{")
    assert run_job(dataclasses.replace(job, config=dataclasses.replace(job.config, epochs=1)))["epochs"] == 1


def test_a_start_again_leaves_no_checkpoint_of_what_collapsed(tmp_path: Path) -> None:
    """The newest is what a rerun takes."""
    kernel = keras.initializers.GlorotUniform(seed=1)
    encoder = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, kernel_initializer=kernel)])
    model, states = TripletModel(encoder, triplet_loss()), [(1, 0), (6, 0), (7, 0), (1, 1)]
    model.optimizer.build(model.trainable_variables)
    config = TrainConfig(keep_checkpoints=2, checkpoint_seconds=0)
    checkpoints = Checkpoints(f"file://{tmp_path / 'c'}", config, steps_per_epoch=3, logs=str(tmp_path / "logs"))
    for epoch, collapses in states:
        assert checkpoints.save_if_due(model, TrainingState(epoch=epoch, collapses=collapses))
    assert checkpoints.restore(model) == TrainingState(epoch=1, collapses=1)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["epoch-000001-step-000000000"]


def test_checkpoints_are_as_seldom_as_asked(tmp_path: Path) -> None:
    for name, settings in {"slow": {"checkpoint_seconds": 3600.0}, "none": {"keep_checkpoints": 0}}.items():
        job = make_job(tmp_path, name, **settings)
        run_job(job)
        assert not Path(job.checkpoint_uri).exists()


def test_a_checkpoint_of_another_network_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_job(make_job(tmp_path))
    run_job(make_job(tmp_path, embedding_dims=3))
    assert "holds a different network" in caplog.text


def test_logs_are_published_with_the_model(tmp_path: Path) -> None:
    job = make_job(tmp_path, callbacks=("csv", "tensorboard"), epochs=2)
    facts = run_job(job)
    logs = Path(job.model_uri) / "logs"
    rows = [line.split(",") for line in (logs / "training.csv").read_text().splitlines()]
    assert rows[0][:2] == ["epoch", "loss"] and [float(row[1]) for row in rows[1:]] == pytest.approx(facts["loss"])
    assert any(file.stat().st_size > 100 for file in logs.rglob("events*"))


def test_tensorboard_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(DependencyError, match=r"pip install 'ivis_spark\[tensorboard\]'"):
        make_callbacks(["tensorboard"], "logs")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "must be csv, tensorboard or of the form package.module:function"),
        (
            "no.such:thing",
            "cannot be imported .* must be on the Python path of the driver and of every executor and rank",
        ),
        ("os:getcwd", "returned a str"),
    ],
)
def test_a_callback_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_callbacks([name], "logs")


def test_learning_rate_grows_with_the_batch_when_asked(tmp_path: Path) -> None:
    rates = {scaling: TrainConfig(batch_size=512, learning_rate_scaling=scaling).learning_rate_of(128) for scaling in
             ("none", "sqrt", "linear")}  # fmt: skip
    assert rates == pytest.approx({"none": 0.001, "sqrt": 0.002, "linear": 0.004})
