"""What lands in MLflow, in a real store on this disk."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ivis_spark import storage
from ivis_spark.errors import DependencyError
from ivis_spark.runtime.tracking import Tracker
from ivis_spark.storage import RunFolder

mlflow = pytest.importorskip("mlflow")


PACKAGED = importlib.util.find_spec("sqlalchemy") is not None  # mlflow-skinny has neither databases nor a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server of MLflow's own, with a database and its files behind it."""
    if not PACKAGED:
        pytest.skip("a tracking server needs the whole mlflow")
    root = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = ["--backend-store-uri", f"sqlite:///{root}/runs.db", "--artifacts-destination", str(root / "files")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *places]
    # The runners of background jobs are processes too, each of which loads MLflow.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (root / "log").open("w") as log:
        given: dict[str, Any] = {"stdout": log, "stderr": log, "cwd": root, "env": environment}
        process = subprocess.Popen([*command, "--workers", "1"], **given, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=2):
                break
            assert process.poll() is None, (root / "log").read_text()
            time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(params=["file", "sqlite", "server"])
def folder(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A run folder, with MLflow's runs in one of the places that it knows."""
    if request.param == "sqlite" and not PACKAGED:
        pytest.skip("databases need the whole mlflow")
    monkeypatch.chdir(tmp_path)  # MLflow puts the files beside a database here
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    places = {"file": f"file://{tmp_path}/mlflow", "sqlite": f"sqlite:///{tmp_path}/runs.db"}
    mlflow.set_tracking_uri(places.get(request.param) or request.getfixturevalue("server"))
    yield RunFolder(str(tmp_path / "out"))
    os.environ.pop("MLFLOW_ALLOW_FILE_STORE", None)


def publish(folder: RunFolder, stage: str, config: dict[str, Any], info: dict[str, Any]) -> Any:
    with folder.build(stage, {"config": config, "inputs": {}}) as build:
        build.info.update(info)
        storage.write_json(build.path("report.json"), {"a": 1})
    return folder.manifest(stage)


def only_run() -> Any:
    client = mlflow.MlflowClient()
    assert client.get_experiment_by_name("cells") is not None
    (run,) = client.search_runs([client.get_experiment_by_name("cells").experiment_id])
    return run


def test_a_run_and_its_rerun(folder: RunFolder) -> None:
    model = publish(
        folder, "model", {"train": {"epochs": 3}, "random_state": 7}, {"loss": [3.0, 2.0, 1.5], "epochs": 3}
    )
    found = {"recall": {"value": 0.97, "ci95": [0.9, 1.0]}, "metric": "euclidean", "exact": True}
    neighbours = publish(folder, "neighbours", {"neighbours": {"k": 15}}, found)
    report = publish(folder, "report", {}, {"trustworthiness": 0.9})
    for _ in range(2):  # the second time as another process would, after a retry
        tracker = Tracker(folder, "cells")
        for manifest in (model, neighbours, report):
            assert manifest is not None
            tracker.stage_published(manifest)
        tracker.ended("FINISHED")
    run = only_run()
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.epochs": "3", "random_state": "7", "neighbours.k": "15"}
    assert run.data.metrics["neighbours.recall"] == 0.97 and run.data.metrics["report.trustworthiness"] == 0.9
    assert "neighbours.exact" not in run.data.metrics
    client = mlflow.MlflowClient()
    losses = client.get_metric_history(run.info.run_id, "model.loss")
    assert [(point.step, point.value) for point in losses] == [(0, 3.0), (1, 2.0), (2, 1.5)]
    assert "report/report.json" in [entry.path for entry in client.list_artifacts(run.info.run_id, "report")]


def test_a_server_that_fails_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens there."""
    folder = RunFolder(str(tmp_path / "out"))
    manifest = publish(folder, "model", {}, {})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING, "ivis_spark"):
        tracker = Tracker(folder, "cells")
        tracker.stage_published(manifest)
        tracker.ended("FINISHED")
    assert (
        "this run could not be logged to MLflow" in caplog.text and "model could not be logged to MLflow" in caplog.text
    )


@pytest.mark.parametrize(
    ("uri", "missing", "remedy"),
    [
        ("sqlite:///runs.db", "sqlalchemy", "pip install mlflow"),
        ("postgresql+psycopg2://host/runs", "sqlalchemy", "pip install mlflow"),
        ("mysql://host/runs", "alembic", "pip install"),
    ],
)
def test_a_package_that_is_missing_is_named_at_the_start(
    uri: str, missing: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with mlflow-skinny alone."""
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    with pytest.raises(
        DependencyError, match=f"MLflow needs .*{missing}.* for {uri.split(':')[0].split('+')[0]} URIs"
    ) as caught:
        Tracker(RunFolder(str(tmp_path)), "cells")
    assert remedy in str(caught.value) and not list(tmp_path.iterdir())


def test_files_that_go_elsewhere_need_their_package_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlflow")
    mlflow.MlflowClient().create_experiment("cells", artifact_location="s3://bucket/runs")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(DependencyError, match="needs boto3 for s3 URIs"):
        Tracker(RunFolder(str(tmp_path / "out")), "cells")
