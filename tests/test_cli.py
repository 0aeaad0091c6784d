"""The command line end to end, on real Spark: what it publishes, skips, refuses and returns."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from runs import published
from sklearn.datasets import load_digits

from ivis_spark.cli import main
from ivis_spark.stages import STAGES

pytestmark = [pytest.mark.spark, pytest.mark.tf, pytest.mark.slow]
FAST = ["--quiet", "--set", "train.epochs=3"]


@pytest.fixture(autouse=True)
def _use_session(spark: object) -> None:
    """Let the commands find the tests' session."""


def write_digits(path: Path, rows: int = 300) -> Path:
    X, y = load_digits(return_X_y=True)
    columns = {"id": range(rows), "features": X[:rows].tolist(), "y": y[:rows], "text": ["x"] * rows}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, _session: object) -> Path:
    """A run that is logged to MLflow too, where that is installed."""
    folder = tmp_path_factory.mktemp("cli")
    table = write_digits(folder / "digits.parquet")
    given = ["--input", str(table), "--output", str(folder / "out"), "--log-file", str(folder / "log.txt")]
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("mlflow"):
            patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
            # set_tracking_uri would hold for the tests of other files too
            patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", f"file://{folder}/mlflow")
            given += ["--mlflow", "cells"]
        assert main(["run", *given, "--id-col", "id", "--label-col", "y", *FAST]) == 0
    return folder


@pytest.mark.end_to_end
def test_run_publishes_every_stage(finished: Path) -> None:
    output = finished / "out"
    for stage in STAGES:
        manifest = json.loads((output / stage / "manifest.json").read_text())
        assert manifest["stage"] == stage and manifest["files"] and manifest["info"]["seconds"] > 0
    table = pq.read_table(published(output, "embeddings") / "data").sort_by("id")
    assert table.column_names == ["id", "y", "text", "embedding"]
    assert table["id"].to_pylist() == list(range(300))
    assert table["y"].to_pylist() == load_digits().target[:300].tolist()
    embedding = np.array(table["embedding"].to_pylist())
    assert embedding.shape == (300, 2) and np.isfinite(embedding).all() and embedding.std() > 0
    figures = json.loads((published(output, "report") / "metrics.json").read_text())
    assert 0.5 < figures["trustworthiness"] <= 1
    assert "<html" in (published(output, "report") / "report.html").read_text()[:2000]
    assert figures["recall_low"] <= figures["recall_at_k"] <= figures["recall_high"]
    assert (published(output, "report") / "embedding.png").read_bytes()[:4] == b"\x89PNG"


def test_spark_says_what_it_is_doing(finished: Path, spark: SparkSession) -> None:
    jobs = spark.sparkContext._jsc.sc().statusStore().jobsList(None)
    shown = {jobs.apply(i).description().toString() for i in range(jobs.size())}
    for stage in ("ingest", "neighbours", "triplets", "embed", "report"):
        assert any(text.startswith(f"Some({stage}") for text in shown), (stage, shown)


def test_the_log_says_that_labels_do_not_train(finished: Path) -> None:
    assert "labels (y) are for the report: training on them takes train.super" in (finished / "log.txt").read_text()


def test_steps_of_a_stage_are_in_its_manifest(finished: Path) -> None:
    info = json.loads((finished / "out" / "neighbours" / "manifest.json").read_text())["info"]
    assert info["step_seconds"] and 0 < sum(info["step_seconds"].values()) <= info["seconds"]


def test_mlflow_gets_the_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(f"file://{finished}/mlflow")
    (run,) = client.search_runs([client.get_experiment_by_name("cells").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["train.epochs"] == "3"
    assert 0.5 < run.data.metrics["report.trustworthiness"] <= 1
    assert len(client.get_metric_history(run.info.run_id, "model.loss")) == 3
    assert "report/report.html" in [entry.path for entry in client.list_artifacts(run.info.run_id, "report")]


def test_rerun_skips_and_changes_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(finished / "out")
    stamps = {stage: (finished / "out" / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES}
    again = [
        "run",
        "--input",
        str(finished / "digits.parquet"),
        "--output",
        output,
        "--id-col",
        "id",
        "--label-col",
        "y",
    ]
    assert main([*again, *FAST]) == 0
    assert stamps == {stage: (finished / "out" / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES}
    assert main([*again, *FAST, "--set", "neighbours.k=7"]) == 2
    assert "config.neighbours.k: 15 -> 7" in capsys.readouterr().err


def test_embed_other_rows_agrees_with_the_run(finished: Path) -> None:
    table = pq.read_table(finished / "digits.parquet").slice(0, 50).drop(["y"])
    pq.write_table(table, finished / "other.parquet")
    assert (
        main(["embed", "--input", str(finished / "other.parquet"), "--output", str(finished / "out"), "--quiet"]) == 0
    )
    other = pq.read_table(published(finished / "out", "embeddings-other") / "data").sort_by("id")
    run = pq.read_table(published(finished / "out", "embeddings") / "data").sort_by("id").slice(0, 50)
    assert other.column_names == ["id", "text", "embedding"]
    np.testing.assert_allclose(other["embedding"].to_pylist(), run["embedding"].to_pylist(), atol=1e-5)


def test_stage_by_stage_equals_run(finished: Path, tmp_path: Path) -> None:
    out = ["--output", str(tmp_path), *FAST]
    columns = ["--id-col", "id", "--label-col", "y"]
    assert main(["neighbours", "--input", str(finished / "digits.parquet"), *columns, *out]) == 0
    for command in ("triplets", "train", "embed", "evaluate"):
        assert main([command, *out]) == 0
    tables = [
        pq.read_table(published(f, "embeddings") / "data").sort_by("id")["embedding"]
        for f in (tmp_path, finished / "out")
    ]
    assert tables[0].to_pylist() == tables[1].to_pylist()


def test_points_are_coloured_by_columns_of_the_input(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", "--output", str(finished / "out"), "--overwrite", "--quiet"]
    assert main([*argv, "--set", "evaluate.colour_by=nope"]) == 2
    text = "colour_by names nope: neither features (features; name[0] etc. for an array) nor columns kept"
    assert text in capsys.readouterr().err
    assert main([*argv, "--set", "evaluate.colour_by=text,features[20]"]) == 0
    page = (published(finished / "out", "report") / "report.html").read_text()
    options = re.findall(r"<option[^>]*>([^<]*)</option>", page)
    assert options == ["label", "text", "features[20]", "density"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--features-col", "nope"], "data.features_col='nope' is not in the table; it has: id, features, y, text"),
        (["--features-col", "text"], "features column 'text' is string"),
        (["--set", "neighbours.k=299"], "neighbours.k=299 needs at least 301 rows"),
        (["--set", "neighbours.kk=3"], "neighbours has no setting 'kk'; did you mean neighbours.k?"),
        (["--set", "train.supervision_metric=mae"], "needs labels; set the label column with --label-col"),
        (["--config", "/nowhere.yaml"], "'/nowhere.yaml' cannot be read"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    argv = ["run", "--input", str(finished / "digits.parquet"), "--output", str(tmp_path), "--quiet", "--id-col", "id"]
    assert main([*argv, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not any((tmp_path / stage).exists() for stage in STAGES)


def test_names_for_ids_and_labels(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = pq.read_table(finished / "digits.parquet")
    names = [None if y == 4 else f"digit {y}" for y in digits["y"].to_pylist()]
    table = pa.table({"id": [f"row {i}" for i in range(300)], "features": digits["features"], "y": names})
    pq.write_table(table, tmp_path / "names.parquet")
    argv = ["run", "--input", str(tmp_path / "names.parquet"), "--output", str(tmp_path / "out"), "--id-col", "id"]
    argv += ["--label-col", "y", *FAST, "--set", "train.supervision_metric=sparse_categorical_crossentropy"]
    assert main([*argv, "--set", "embed.class_col=class", "--set", "evaluate.sample_rows=100"]) == 0
    found = pq.read_table(published(tmp_path / "out", "embeddings") / "data")
    assert found.column_names == ["id", "y", "_id", "embedding", "class"]
    assert dict(zip(found["id"].to_pylist(), found["y"].to_pylist(), strict=True)) == dict(
        zip(table["id"].to_pylist(), names, strict=True)
    )
    assert set(found["class"].to_pylist()) <= {f"digit {y}" for y in range(10) if y != 4}
    assert sorted(found["_id"].to_pylist()) == list(range(300))
    page = (published(tmp_path / "out", "report") / "report.html").read_text()
    assert "digit 3" in page and "digit 4" not in page
    confusion = json.loads((published(tmp_path / "out", "report") / "metrics.json").read_text())["confusion"]
    assert confusion["by"] == "model" and set(confusion["classes"]) <= {f"digit {y}" for y in range(10) if y != 4}
    said = capsys.readouterr().out
    assert "Confused most" in said or not confusion["pairs"]


def test_missing_input_and_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--input", str(tmp_path / "no.parquet"), "--output", str(tmp_path / "out"), "--quiet"]) == 2
    assert "no.parquet' does not exist. Check the path" in capsys.readouterr().err
    assert main(["train", "--output", str(tmp_path / "out"), "--quiet"]) == 2
    assert "holds no run; create one: ivis-spark run --output file:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_teaches() -> None:
    job = Path(__file__).parent.parent / "jobs" / "train.py"
    done = subprocess.run([sys.executable, str(job), "--help"], capture_output=True, text=True, check=True)
    assert "example:" in done.stdout and "train.distance = infonce" in done.stdout
