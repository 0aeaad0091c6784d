"""Ranks on real clusters: they train, are killed, fail, dawdle, and the run ends as it should, in bounded time."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clusters import Cluster, environment, find_ranks
from fault_table import FaultTable
from runs import published

pytestmark = [pytest.mark.cluster, pytest.mark.horovod, pytest.mark.spark, pytest.mark.tf, pytest.mark.slow]

BACKENDS = [
    pytest.param("horovod", marks=pytest.mark.skipif(not importlib.util.find_spec("horovod"), reason="no Horovod")),
    "tensorflow",
]
SETTINGS = {
    "train.num_ranks": 2,
    "train.epochs": 40,
    "train.patience": 1000,
    "train.checkpoint_seconds": 0,
    "train.rank_callbacks": "[ring_callbacks:losses]",
}
KILLS = 5
# What noticing that a rank is lost may take beside starting anew.
NOTICE_SECONDS = 60


def command(run: Path, name: str, *options: str, **settings: Any) -> list[str]:
    pairs = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return [
        *(sys.executable, "-m", "ivis_spark.cli", name, "--output", str(run), *options),
        *(part for pair in pairs for part in ("--set", pair)),
    ]


def train_command(run: Path, master: str, *options: str, **settings: Any) -> list[str]:
    executors = ["--spark-conf", "spark.executor.memory=512m", "--spark-conf", "spark.ui.enabled=false"]
    settings.setdefault("train__backend", backend_of(run))
    chosen = {**{key.replace(".", "__"): value for key, value in SETTINGS.items()}, **settings}
    return command(run, "train", "--master", master, *executors, *options, **chosen)


def backend_of(run: Path) -> str:
    """Return the backend that a run's test is about; it stands beside the run."""
    return (run.parent / "backend").read_text()


def train(run: Path, master: str, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    env = environment(IVIS_TEST_FOLDER=str(run.parent))
    line = train_command(run, master, *options, **settings)
    return subprocess.run(line, env=env, cwd=run.parent, capture_output=True, text=True, timeout=500, check=False)


def facts(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "model" / "manifest.json").read_text())["info"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with triplets: 6,000 rows in 24 blocks."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=6000)
    X = (rng.random((5, 8))[labels] + 0.1 * rng.standard_normal((6000, 8))).astype(np.float32)
    table = pa.table({"id": np.arange(6000), "features": X.tolist(), "label": labels})
    pq.write_table(table, folder / "rows.parquet")
    given = ["--input", str(folder / "rows.parquet"), "--id-col", "id", "--label-col", "label", "--master", "local[2]"]
    for line in (
        command(folder / "run", "neighbours", *given, neighbours__k=5),
        command(folder / "run", "triplets", "--master", "local[2]", triplets__block_rows=256, triplets__file_blocks=4),
    ):
        subprocess.run(line, env=environment(), check=True, capture_output=True, timeout=300)
    return folder / "run"


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(prepared: Path, tmp_path: Path, backend: str) -> Path:
    shutil.copytree(prepared, tmp_path / "run")
    (tmp_path / "backend").write_text(backend)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory, backend: str) -> dict[str, Any]:
    """The facts of a run that nothing happened to, on Spark's local-cluster."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "backend").write_text(backend)
    shutil.copytree(prepared, folder / "run")
    done = train(folder / "run", "local-cluster[2,1,1024]")
    assert done.returncode == 0, done.stderr[-3000:]
    assert not find_ranks()
    return facts(folder / "run")


def test_local_cluster_trains(undisturbed: dict[str, Any]) -> None:
    assert (undisturbed["ranks"], undisturbed["restarts"], undisturbed["epochs"]) == (2, 0, 40)
    assert undisturbed["loss"][-1] < 0.9 * undisturbed["loss"][0]  # of infonce, which has no 0 to fall to


def test_standalone_cluster_trains_the_same_model(run: Path, cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    done = train(run, cluster.url)
    assert done.returncode == 0, done.stderr[-3000:]
    assert facts(run)["loss"] == undisturbed["loss"]
    assert "epoch 40/40" in done.stderr and "2 rank(s)" in done.stderr  # rank 0's messages reach the driver
    assert not find_ranks() and not (run / ".checkpoints").exists()
    again = train(run, cluster.url)
    assert again.returncode == 0 and "already published" in again.stderr


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["rank", "executor"])
def test_killed_again_and_again_and_ends_with_the_undisturbed_model(
    run: Path, cluster: Cluster, undisturbed: dict[str, Any], victim: str, table: FaultTable
) -> None:
    """Five SIGKILLs at random moments; each costs at most an epoch, and the losses go on as if nothing had been."""
    with table.fault(f"{victim} killed (SIGKILL) again and again during training") as fault, fault.attempt(KILLS):
        kill_again_and_again(run, cluster, undisturbed, victim)
        fault.look(run)


def kill_again_and_again(run: Path, cluster: Cluster, undisturbed: dict[str, Any], victim: str) -> None:
    env = environment(IVIS_TEST_FOLDER=str(run.parent))
    line = train_command(run, cluster.url, train__max_restarts=KILLS)
    losses = run.parent / "losses-rank-0"
    drawn = random.Random(1)
    with (run.parent / "driver.log").open("w") as log, subprocess.Popen(line, env=env, stderr=log) as driver:
        try:
            for kill in range(KILLS):
                wait_for_epochs(losses, 4 + 6 * kill, driver, undisturbed)
                time.sleep(drawn.random() * 0.4)
                victims = find_ranks() if victim == "rank" else cluster.executors()
                assert len(victims) == 2
                drawn.choice(victims).send_signal(signal.SIGKILL)
            assert driver.wait(timeout=most_seconds(undisturbed)) == 0, log_of(run)
        finally:
            driver.kill()
    assert log_of(run).count("restarting all ranks") == KILLS
    assert ("was killed by signal 9" if victim == "rank" else "lost") in log_of(run)
    found = facts(run)
    assert found["restarts"] == KILLS and found["loss"] == undisturbed["loss"]
    epochs = [int(entry.split()[0]) for entry in losses.read_text().splitlines()]
    assert len(epochs) <= 40 + KILLS  # an epoch each was done twice at most
    assert not find_ranks()


def most_seconds(undisturbed: dict[str, Any]) -> float:
    """Return what a restart may take: all of a run that nothing happens to, and the time to notice the loss."""
    return NOTICE_SECONDS + 1.5 * float(undisturbed["seconds"])


def wait_for_epochs(losses: Path, count: int, driver: subprocess.Popen[bytes], undisturbed: dict[str, Any]) -> None:
    """Wait until rank 0 ended so many epochs; fail if it takes longer than a restart may."""
    deadline = time.monotonic() + most_seconds(undisturbed)
    while not losses.exists() or int((losses.read_text().splitlines() or ["-1"])[-1].split()[0]) < count:
        assert time.monotonic() < deadline and driver.poll() is None, log_of(losses.parent / "run")
        time.sleep(0.02)


def log_of(run: Path) -> str:
    return (run.parent / "driver.log").read_text()


@pytest.mark.faults
def test_an_interrupted_driver_leaves_no_ranks_and_goes_on(
    run: Path, cluster: Cluster, undisturbed: dict[str, Any], table: FaultTable
) -> None:
    with table.fault("driver killed (SIGKILL) while ranks train") as fault, fault.attempt():
        kill_the_driver(run, cluster, undisturbed)
        fault.look(run)


def kill_the_driver(run: Path, cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    env = environment(IVIS_TEST_FOLDER=str(run.parent))
    with (run.parent / "driver.log").open("w") as log:
        driver = subprocess.Popen(train_command(run, cluster.url), env=env, stderr=log)
        wait_for_epochs(run.parent / "losses-rank-0", 8, driver, undisturbed)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    deadline = time.monotonic() + 60
    while find_ranks():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    done = train(run, cluster.url)
    assert done.returncode == 0 and "resuming from the checkpoint after epoch" in done.stderr
    assert facts(run)["loss"] == undisturbed["loss"]


def test_a_rank_that_raises_is_named_at_once(run: Path, cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    started = time.monotonic()
    done = train(run, cluster.url, train__rank_callbacks="[ring_callbacks:raise_on_rank_one]")
    assert done.returncode == 1
    assert re.search(r"rank 1 on \S+ raised ZeroDivisionError: a fault of the user's own", done.stderr)
    assert "restarting all ranks" not in done.stderr
    assert time.monotonic() - started < most_seconds(undisturbed) and not find_ranks()


def test_a_short_shard_names_the_rank(run: Path, cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    """A file holds fewer blocks than the triplets stage said, behind the pipeline's back."""
    file = max((published(run, "triplets") / "data").glob("*.parquet"))
    table = pq.ParquetFile(file).read().slice(0, 1)
    pq.write_table(table, file, use_dictionary=False)
    path = run / "triplets" / "manifest.json"
    manifest = json.loads(path.read_text())
    for record in manifest["files"]:
        if record["path"].endswith(file.name):
            record["bytes"] = file.stat().st_size
    path.write_text(json.dumps(manifest))
    started = time.monotonic()
    done = train(run, cluster.url)
    assert done.returncode == 2 and re.search(r"rank \d on \S+: .*(blocks were read|fewer row groups)", done.stderr)
    assert time.monotonic() - started < most_seconds(undisturbed) and not find_ranks()


def test_a_slow_rank_slows_and_does_not_stop(run: Path, cluster: Cluster) -> None:
    """A second an epoch, tens of times what an epoch takes."""
    done = train(run, cluster.url, train__epochs=6, train__rank_callbacks="[ring_callbacks:slow_on_rank_one]")
    assert done.returncode == 0 and facts(run)["restarts"] == 0, done.stderr[-3000:]


def test_a_rank_that_hangs_is_given_up_and_started_again(
    run: Path, cluster: Cluster, undisturbed: dict[str, Any]
) -> None:
    env = environment(IVIS_TEST_FOLDER=str(run.parent))
    line = train_command(run, cluster.url, train__stall_timeout_seconds=30)
    with (run.parent / "driver.log").open("w") as log, subprocess.Popen(line, env=env, stderr=log) as driver:
        try:
            wait_for_epochs(run.parent / "losses-rank-0", 8, driver, undisturbed)
            max(find_ranks(), key=lambda process: process.create_time()).send_signal(signal.SIGSTOP)
            assert driver.wait(timeout=3 * most_seconds(undisturbed)) == 0, log_of(run)
        finally:
            driver.kill()
    assert facts(run)["restarts"] == 1 and facts(run)["loss"] == undisturbed["loss"]
    assert not find_ranks()


def test_more_losses_than_allowed_end_the_run_and_keep_the_checkpoint(run: Path) -> None:
    settings = {"train__max_restarts": 0, "train__rank_callbacks": "[ring_callbacks:kill_rank_one]"}
    done = train(run, "local[2]", **settings)
    assert done.returncode == 1
    assert re.search(r"rank 1 on \S+: was killed by signal 9.*train.max_restarts=0", done.stderr)
    done = train(run, "local[2]", **settings)  # it was killed once, and once only
    assert done.returncode == 0 and "resuming from the checkpoint" in done.stderr and facts(run)["restarts"] == 0


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        (["spark.dynamicAllocation.enabled=true"], {}, "spark.dynamicAllocation.enabled=true removes executors"),
        (["spark.task.cpus=2"], {}, "train.num_ranks=2 needs as many task slots at once; the session has 1"),
        ([], {"train__num_ranks": 30, "train__batch_size": 30}, "has 24 blocks|Parquet row groups; train.num_ranks=30"),
    ],
)
def test_launch_guards(run: Path, options: list[str], settings: dict[str, Any], message: str) -> None:
    given = [part for option in options for part in ("--spark-conf", option)]
    done = train(run, "local[2]", *given, **settings)
    assert done.returncode == 2, done.stderr[-2000:]
    assert message.split("|")[-1] in done.stderr


def test_speculation_is_no_danger(run: Path) -> None:
    done = train(run, "local-cluster[2,1,1024]", "--spark-conf", "spark.speculation=true", train__epochs=4)
    assert done.returncode == 0 and "never speculates barrier tasks" in done.stderr, done.stderr[-2000:]
