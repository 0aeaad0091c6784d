"""Ranks that train, stop, fail, die and stall together, by every backend, on this machine and without Spark."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import time
from pathlib import Path
from typing import Any

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


WITH_NEGATIVES_OF_A_BATCH = {
    "distance": "infonce",
    "global_weight": 0.1,
    "learning_rate": 1e-4,
    "supervision_metric": "sparse_categorical_crossentropy",
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What one process finds, by the size of its batches."""
    folder = tmp_path_factory.mktemp("alone")
    settings = {**WITH_NEGATIVES_OF_A_BATCH, "num_ranks": 1, "epochs": 3}
    found = {size: run_job(make_job(folder, str(size), batch_size=size, **settings)) for size in (64, 32)}
    assert (np.subtract(found[64]["triplet_loss"], found[32]["triplet_loss"]) > 0.5).all()
    return found


@pytest.mark.parametrize(
    ("backend", "gather"),
    [pytest.param(*BACKENDS[0].values, True, marks=BACKENDS[0].marks), (BACKENDS[1], True), (BACKENDS[1], False)],
)
def test_two_ranks_train_one_model_and_stop_together(
    tmp_path: Path, alone: dict[int, dict[str, Any]], backend: str, gather: bool
) -> None:
    """The loss every rank sees is the same number; a callback of rank 1 ends training on both; rank 0 alone writes.

    The loss grows with the logarithm of the rows that negatives are taken from: those of both ranks, 2 x 64, as in one
    process with batches of 64, or those of a rank, 2 x 32.
    """
    job = make_job(
        tmp_path,
        "ring",
        backend=backend,
        rank_callbacks=("ring_callbacks:losses", "ring_callbacks:stop_on_rank_one", "ring_callbacks:weights"),
        callbacks=("csv",),
        gradient_compression="fp16",
        gather_negatives=gather,
        **WITH_NEGATIVES_OF_A_BATCH,
    )
    first, second = run_ring(job, tmp_path)
    assert first["facts"]["loss"] == second["facts"]["loss"]
    assert first["facts"]["epochs"] == 3 and first["facts"]["ranks"] == 2
    for what in ("losses", "weights"):
        seen = [(tmp_path / f"{what}-rank-{rank}").read_text() for rank in (0, 1)]
        assert seen[0] == seen[1] and len(set(seen[0].splitlines())) == 3
    assert len((Path(job.model_uri) / "logs" / "training.csv").read_text().splitlines()) == 4
    np.testing.assert_allclose(first["facts"]["triplet_loss"], alone[64 if gather else 32]["triplet_loss"], atol=0.25)
    model = load_model(job.model_uri)
    assert all(np.isfinite(each).all() for each in (*model.encoder.get_weights(), *model.head.get_weights()))


@pytest.mark.parametrize(
    ("backend", "end"),
    [
        pytest.param(*BACKENDS[0].values, "raise_on_rank_one", marks=BACKENDS[0].marks),
        (BACKENDS[1], "raise_on_rank_one"),
        (BACKENDS[1], "kill_rank_one"),
    ],
)
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
    """One rank is enough, which does not come so far as to wait for the other."""
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setattr(tensorflow, "_free_port", lambda: taken.getsockname()[1])
        job = make_job(tmp_path, "taken", backend="tensorflow", start_timeout_seconds=60.0)
        (found,) = run_ring(job, tmp_path, ranks=range(1))
    assert found["kind"] == "lost" and "gRPC" in found["error"]


def test_a_checkpoint_of_one_backend_is_continued_by_another(tmp_path: Path) -> None:
    """Ranks of a toy, then of TensorFlow from the toy's second epoch: the losses are the same. The toy is one file."""
    toys = run_ring(make_job(tmp_path, "run", backend=TOY, epochs=4, keep_checkpoints=4), tmp_path)
    assert toys[0]["facts"]["loss"] == toys[1]["facts"]["loss"]
    callbacks = ("ring_callbacks:losses",)
    job = make_job(tmp_path, "run", backend="tensorflow", epochs=4, rank_callbacks=callbacks)
    later = sorted(Path(job.checkpoint_uri).iterdir())[2:]
    assert [folder.name[:12] for folder in later] == ["epoch-000003", "epoch-000004"]
    for folder in later:
        shutil.rmtree(folder)
    found = run_ring(job, tmp_path)
    assert [line.split()[0] for line in (tmp_path / "losses-rank-0").read_text().splitlines()] == ["2", "3"]
    assert len(found[0]["facts"]["loss"]) == 4
    np.testing.assert_allclose(found[0]["facts"]["loss"], toys[0]["facts"]["loss"], rtol=1e-5)


@pytest.mark.cluster
def test_four_ranks(tmp_path: Path) -> None:
    settings = {"distance": "infonce", "gather_negatives": True, "gradient_compression": "fp16", "num_ranks": 4}
    settings |= {"supervision_metric": "sparse_categorical_crossentropy", "epochs": 2}
    found = run_ring(make_job(tmp_path, "four", backend="tensorflow", **settings), tmp_path)
    losses = [each["facts"]["loss"] for each in found]
    assert len(losses) == 4 and all(loss == losses[0] for loss in losses) and losses[0][1] < losses[0][0]
