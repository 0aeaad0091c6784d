"""Ranks that train, stop, fail, die and stall together, by every backend, on this machine and without Spark."""

from __future__ import annotations

import importlib.util
import socket
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.tf, pytest.mark.horovod, pytest.mark.slow]

from clusters import command_of  # noqa: E402
from local_ring import run_ring  # noqa: E402
from triplet_blocks import write_blocks  # noqa: E402

from ivis_spark.config import TrainConfig  # noqa: E402
from ivis_spark.nn.persistence import load_model  # noqa: E402
from ivis_spark.train.backends import tensorflow  # noqa: E402
from ivis_spark.train.job import TrainingJob, run_job  # noqa: E402

BACKENDS = [
    pytest.param("horovod", marks=pytest.mark.skipif(not importlib.util.find_spec("horovod"), reason="no Horovod")),
    "tensorflow",
]
TOY = "toy_backend:Ranks"


def make_job(folder: Path, name: str, **settings) -> TrainingJob:
    options = {"num_ranks": 2, "epochs": 6, "batch_size": 64, "cooldown_epochs": 0, "checkpoint_seconds": 0.0}
    return TrainingJob(
        write_blocks(folder / "blocks", [3, 5, 4]),
        TrainConfig(**{**options, **settings}),
        label_values=[0.0, 1.0, 2.0],
        random_state=3,
        model_uri=str(folder / name / "model"),
        checkpoint_uri=str(folder / name / "checkpoints"),
    )


def no_rank_is_left() -> bool:
    children = psutil.Process().children(recursive=True)
    return not any("ivis_spark.train.rank" in command_of(child) for child in children)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_train_one_model_and_stop_together(tmp_path: Path, backend: str) -> None:
    """The loss every rank sees is the same number; a callback of rank 1 ends training on both; rank 0 alone writes."""
    job = make_job(
        tmp_path,
        "ring",
        backend=backend,
        rank_callbacks=("ring_callbacks:losses", "ring_callbacks:stop_on_rank_one", "ring_callbacks:weights"),
        callbacks=("csv",),
        supervision_metric="sparse_categorical_crossentropy",
        gradient_compression="fp16",
    )
    first, second = run_ring(job, tmp_path)
    assert first["facts"]["loss"] == second["facts"]["loss"]
    assert first["facts"]["epochs"] == 3 and first["facts"]["ranks"] == 2
    for what in ("losses", "weights"):
        seen = [(tmp_path / f"{what}-rank-{rank}").read_text() for rank in (0, 1)]
        assert seen[0] == seen[1] and len(seen[0].splitlines()) == 3
    assert len((Path(job.model_uri) / "logs" / "training.csv").read_text().splitlines()) == 4
    alone = run_job(
        make_job(tmp_path, "alone", num_ranks=1, epochs=3, supervision_metric=job.config.supervision_metric)
    )
    np.testing.assert_allclose(first["facts"]["loss"], alone["loss"], rtol=0.25)
    model = load_model(job.model_uri)
    assert all(np.isfinite(each).all() for each in (*model.encoder.get_weights(), *model.head.get_weights()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_share_negatives_when_asked_to(tmp_path: Path, backend: str) -> None:
    """The loss grows with the logarithm of the rows it looks at: 2 x 32 of a rank, or 2 x 64 of both."""
    settings = {"distance": "infonce", "global_weight": 0.1, "epochs": 1, "learning_rate": 1e-6, "dropout": 0.0}
    alone = run_job(make_job(tmp_path, "alone", num_ranks=1, **settings))["triplet_loss"]
    for gather in (True, False) if backend == "tensorflow" else (True,):
        job = make_job(tmp_path, f"gather-{gather}", backend=backend, gather_negatives=gather, **settings)
        first, second = run_ring(job, tmp_path)
        assert first["facts"]["loss"] == second["facts"]["loss"]
        near = abs(first["facts"]["triplet_loss"][0] - alone[0]) < 0.1
        assert near == gather


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("end", ["raise_on_rank_one", "kill_rank_one"])
def test_a_rank_that_raises_or_dies_does_not_leave_the_other_waiting(tmp_path: Path, backend: str, end: str) -> None:
    started = time.monotonic()
    callbacks = (f"ring_callbacks:{end}",)
    job = make_job(tmp_path, "end", backend=backend, rank_callbacks=callbacks, stall_timeout_seconds=10.0)
    first, second = run_ring(job, tmp_path)
    raised = {"kind": "raised", "error": "ZeroDivisionError: a fault of the user's own"}
    assert second == (raised if end == "raise_on_rank_one" else {"kind": "killed", "error": "was killed by signal 9"})
    assert first["kind"] == "lost"
    assert time.monotonic() - started < 120 and no_rank_is_left()


def test_a_stopped_rank_is_lost_soon(tmp_path: Path) -> None:
    callbacks = ("ring_callbacks:stop_rank_one", "ring_callbacks:note_sockets")
    job = make_job(tmp_path, "stop", backend="tensorflow", stall_timeout_seconds=10.0, rank_callbacks=callbacks)
    started = time.monotonic()
    first, second = run_ring(job, tmp_path)
    assert first["kind"] == "lost" and second == {"kind": "killed", "error": "was killed by signal 9"}
    assert time.monotonic() - started < 120 and no_rank_is_left()
    for rank in (0, 1):  # the server hears the ranks' own interface only
        noted = (tmp_path / f"filters-rank-{rank}").read_text().split()
        assert noted and all(int(length) > 0 for length in noted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_whose_peer_never_comes_are_given_up_in_time(tmp_path: Path, backend: str) -> None:
    started = time.monotonic()
    job = make_job(tmp_path, "late", backend=backend, start_timeout_seconds=6.0)
    (found,) = run_ring(job, tmp_path, ranks=range(1))
    assert found["kind"] == "lost" and "train.start_timeout_seconds=6" in found["error"]
    assert time.monotonic() - started < 40 and no_rank_is_left()


def test_a_port_that_is_taken_is_a_lost_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setattr(tensorflow, "_free_port", lambda: taken.getsockname()[1])
        job = make_job(tmp_path, "taken", backend="tensorflow", start_timeout_seconds=30.0)
        assert {each["kind"] for each in run_ring(job, tmp_path)} == {"lost"}


def test_a_checkpoint_of_one_backend_is_continued_by_another_and_by_a_third(tmp_path: Path) -> None:
    """Ranks of a toy, then of TensorFlow: the losses go on as those of one run. The toy is one file."""
    job = make_job(tmp_path, "whole", backend=TOY)
    whole = run_ring(job, tmp_path)
    assert whole[0]["facts"]["loss"] == whole[1]["facts"]["loss"]
    for backend, epochs in ((TOY, 2), ("tensorflow", 6)):
        job = make_job(tmp_path, "shared", backend=backend, epochs=epochs)
        found = run_ring(job, tmp_path)
    assert len(found[0]["facts"]["loss"]) == 6
    np.testing.assert_allclose(found[0]["facts"]["loss"], whole[0]["facts"]["loss"], rtol=1e-5)


@pytest.mark.cluster
def test_four_ranks(tmp_path: Path) -> None:
    settings = {"distance": "infonce", "gather_negatives": True, "gradient_compression": "fp16", "num_ranks": 4}
    settings |= {"supervision_metric": "sparse_categorical_crossentropy", "epochs": 2}
    found = run_ring(make_job(tmp_path, "four", backend="tensorflow", **settings), tmp_path)
    losses = [each["facts"]["loss"] for each in found]
    assert len(losses) == 4 and all(loss == losses[0] for loss in losses) and losses[0][1] < losses[0][0]
