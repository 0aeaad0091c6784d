"""Where training runs: what is chosen, what a rank's process is told, and two ranks that train, stop and fail."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ivis_spark.config import TrainConfig
from ivis_spark.errors import ConfigError, DependencyError
from ivis_spark.train.backends import horovod as backend

HELPERS = Path(__file__).parent.parent / "helpers"


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for there in (True, False):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, there=there: object() if there else None)
        assert backend.resolve_backend(TrainConfig()) == "local"
        assert backend.resolve_backend(TrainConfig(num_ranks=2)) == ("horovod" if there else "local")
    assert "num_ranks=2, but Horovod is not installed" in caplog.text
    with pytest.raises(DependencyError, match=r"train.backend=horovod.*install_horovod.sh.*or train in one process"):
        backend.resolve_backend(TrainConfig(backend="horovod"))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="local is one process"):
        TrainConfig(backend="local", num_ranks=2)
    with pytest.raises(ConfigError, match=r"batch_size=128 .*num_ranks=3: pass 129"):
        TrainConfig(num_ranks=3)


def test_ranks_know_their_place_among_hosts() -> None:
    """Two ranks on a, one on b: b's rank has no partner of local rank 1."""
    hosts = ["localhost", "127.0.0.1", "localhost"]
    found = [backend.ring_environment(rank, hosts, 99, stall_timeout_seconds=60) for rank in range(3)]
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
    assert [[each[f"HOROVOD_{name}"] for name in names] for each in found] == [
        ["0", "3", "0", "2", "0", "2"],
        ["1", "3", "0", "1", "1", "2"],
        ["2", "3", "1", "2", "0", "1"],
    ]
    assert {each["HOROVOD_GLOO_RENDEZVOUS_ADDR"] for each in found} == {"127.0.0.1"}
    assert found[0]["HOROVOD_GLOO_IFACE"] == "lo" and found[0]["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] == "60"
    chosen = backend.ring_environment(0, hosts, 9, stall_timeout_seconds=60, environ={"HOROVOD_GLOO_IFACE": "ib0"})
    assert chosen["HOROVOD_GLOO_IFACE"] == "ib0"


def test_a_rank_keeps_to_its_gpu_or_to_the_cpu() -> None:
    assert backend.device_environment([], 3)["CUDA_VISIBLE_DEVICES"] == "-1"
    environment = backend.device_environment(["2", "5"], 3)
    assert environment["CUDA_VISIBLE_DEVICES"] == "2" and environment["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert environment["OMP_NUM_THREADS"] == environment["TF_NUM_INTRAOP_THREADS"] == "3"


@pytest.mark.tf
def test_a_horovod_of_another_tensorflow_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "horovod" / "tensorflow").mkdir(parents=True)
    (tmp_path / "horovod" / "__init__.py").touch()
    (tmp_path / "horovod" / "tensorflow" / "__init__.py").write_text(
        "raise ImportError('HorovodVersionMismatchError: built with 2.15')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "horovod"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(DependencyError, match=r"TensorFlow 2\.\d+.*built with 2.15.*install_horovod.sh"):
        backend.HorovodBackend()
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.split(".")[0] == "horovod"]:
        del sys.modules[name]


@pytest.fixture
def ring(tmp_path: Path) -> Callable[..., list[dict]]:
    """Run a job on two ranks of this machine, without Spark, and return what each said."""
    pytest.importorskip("horovod")
    from ivis_spark.spark.training import run_process

    def run(job, n_ranks: int = 2) -> list[dict]:
        order = json.dumps({"job": job.to_mapping(), "progress_uri": str(tmp_path / "progress.json")})
        with backend.rendezvous() as port, ThreadPoolExecutor(n_ranks) as pool:
            environments = [
                {
                    **os.environ,
                    **backend.device_environment([], 1),
                    **backend.ring_environment(rank, ["localhost"] * n_ranks, port, stall_timeout_seconds=60),
                    "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path]),
                    "IVIS_TEST_FOLDER": str(tmp_path),
                    "TF_CPP_MIN_LOG_LEVEL": "2",
                }
                for rank in range(n_ranks)
            ]
            return list(pool.map(run_process, [order] * n_ranks, environments))

    return run


def make_job(folder: Path, name: str, **settings):
    from triplet_blocks import write_blocks

    from ivis_spark.train.job import TrainingJob

    options = {
        "num_ranks": 2,
        "epochs": 6,
        "batch_size": 64,
        "cooldown_epochs": 0,
        "checkpoint_seconds": 0.0,
        **settings,
    }
    return TrainingJob(
        write_blocks(folder / "blocks", [3, 5, 4]),
        TrainConfig(**options),
        label_values=[0.0, 1.0, 2.0],
        random_state=3,
        model_uri=str(folder / name / "model"),
        checkpoint_uri=str(folder / name / "checkpoints"),
    )


@pytest.mark.tf
@pytest.mark.horovod
@pytest.mark.slow
def test_two_ranks_train_one_model_and_stop_together(tmp_path: Path, ring) -> None:
    """The loss every rank sees is the same number; a callback of rank 1 ends training on both; rank 0 alone writes."""
    from ivis_spark.nn.persistence import load_model
    from ivis_spark.train.job import run_job

    job = make_job(
        tmp_path,
        "ring",
        rank_callbacks=("ring_callbacks:losses", "ring_callbacks:stop_on_rank_one"),
        callbacks=("csv",),
        supervision_metric="sparse_categorical_crossentropy",
        gradient_compression="fp16",
    )
    first, second = ring(job)
    assert first["facts"]["loss"] == second["facts"]["loss"]
    assert first["facts"]["epochs"] == 3 and first["facts"]["ranks"] == 2
    seen = [(tmp_path / f"losses-rank-{rank}").read_text() for rank in (0, 1)]
    assert seen[0] == seen[1] and len(seen[0].splitlines()) == 3
    assert len((Path(job.model_uri) / "logs" / "training.csv").read_text().splitlines()) == 4
    alone = run_job(
        make_job(tmp_path, "alone", num_ranks=1, epochs=3, supervision_metric=job.config.supervision_metric)
    )
    np.testing.assert_allclose(first["facts"]["loss"], alone["loss"], rtol=0.25)
    model = load_model(job.model_uri)
    assert all(np.isfinite(each).all() for each in (*model.encoder.get_weights(), *model.head.get_weights()))


@pytest.mark.tf
@pytest.mark.horovod
@pytest.mark.slow
def test_two_ranks_share_negatives_when_asked_to(tmp_path: Path, ring) -> None:
    """The loss grows with the logarithm of the rows it looks at: 2 x 32 of a rank, or 2 x 64 of both."""
    from ivis_spark.train.job import run_job

    settings = {"distance": "infonce", "global_weight": 0.1, "epochs": 1, "learning_rate": 1e-6, "dropout": 0.0}
    alone = run_job(make_job(tmp_path, "alone", num_ranks=1, **settings))["triplet_loss"]
    for gather in (True, False):
        first, second = ring(make_job(tmp_path, f"gather-{gather}", gather_negatives=gather, **settings))
        assert first["facts"]["loss"] == second["facts"]["loss"]
        near = abs(first["facts"]["triplet_loss"][0] - alone[0]) < 0.1
        assert near == gather


@pytest.mark.tf
@pytest.mark.horovod
@pytest.mark.slow
def test_a_rank_that_raises_or_dies_does_not_leave_the_other_waiting(tmp_path: Path, ring) -> None:
    started = time.monotonic()
    first, second = ring(make_job(tmp_path, "raise", rank_callbacks=("ring_callbacks:raise_on_rank_one",)))
    assert second == {"kind": "raised", "error": "ZeroDivisionError: a fault of the user's own"}
    assert first["kind"] == "lost"
    assert time.monotonic() - started < 120
