"""What lands in MLflow, in a real store on this disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from ivis_spark import storage
from ivis_spark.runtime.tracking import Tracker
from ivis_spark.storage import RunFolder

mlflow = pytest.importorskip("mlflow")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlflow")
    return RunFolder(str(tmp_path / "out"))


def publish(folder: RunFolder, stage: str, config: dict[str, Any], info: dict[str, Any]) -> Any:
    with folder.build(stage, {"config": config, "inputs": {}}) as build:
        build.info.update(info)
        storage.write_json(build.path("report.json"), {"a": 1})
    return folder.manifest(stage)


def only_run() -> Any:
    client = mlflow.MlflowClient()
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
    folder: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = publish(folder, "model", {}, {})
    (tmp_path / "file").write_text("")
    mlflow.set_tracking_uri(f"file://{tmp_path}/file/mlflow")
    with caplog.at_level(logging.WARNING, "ivis_spark"):
        tracker = Tracker(folder, "cells")
        tracker.stage_published(manifest)
        tracker.ended("FINISHED")
    assert "model is not in MLflow" in caplog.text
