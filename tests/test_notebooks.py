"""Every notebook runs here, cell by cell, by its own markers; only `dbutils.widgets` is a stub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.ml.feature import VectorAssembler

from ivis_spark.config import Config
from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.demo import write_digits
from ivis_spark.serving.folder import ModelFolder, write_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 300
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
HEAD, COMMAND, MAGIC = "# Databricks notebook source", "# COMMAND ----------", "# MAGIC "


class Widgets:
    """`dbutils.widgets`: text boxes with the defaults that the notebook gives them, or what the caller fills in."""

    def __init__(self, filled: dict[str, str]) -> None:
        self._filled, self._values = filled, dict[str, str]()

    def text(self, name: str, default: str, label: str = "") -> None:
        self._values[name] = self._filled.get(name, default)

    def get(self, name: str) -> str:
        return self._values[name]


class Utilities:
    def __init__(self, filled: dict[str, str]) -> None:
        self.widgets = Widgets(filled)


def cells(path: Path) -> Iterator[str]:
    text = path.read_text()
    assert text.startswith(HEAD + "\n"), "not in Databricks source format"
    for cell in text.removeprefix(HEAD).split(COMMAND):
        yield cell.strip("\n")


def run(path: Path, spark: SparkSession, filled: dict[str, str]) -> dict[str, Any]:
    """Run a notebook's cells in one namespace: Python and %sql for real, %md and %pip as the text they are."""
    names: dict[str, Any] = {"spark": spark, "dbutils": Utilities(filled), "__name__": "__main__"}
    for cell in cells(path):
        lines = cell.splitlines()
        if not any(line.startswith(MAGIC.strip()) for line in lines):
            exec(compile(cell, path.name, "exec"), names)
            continue
        assert all(line.startswith(MAGIC.strip()) for line in lines if line), f"a cell mixes magic and Python:\n{cell}"
        text = "\n".join(line.removeprefix(MAGIC.strip()).removeprefix(" ") for line in lines)
        kind = re.match(r"%(\w+)", text)
        assert kind is not None and kind.group(1) in ("md", "pip", "sql"), text
        if kind.group(1) == "sql":
            names["_sqldf"] = spark.sql(text.removeprefix("%sql"))
            names["_sqldf"].collect()
    return names


@pytest.fixture
def digits(tmp_path: Path) -> str:
    whole = pq.read_table(write_digits(str(tmp_path / "table"), Config())[0].removeprefix("file://"))
    pq.write_table(whole.slice(0, ROWS), tmp_path / "digits.parquet")
    return f"file://{tmp_path}/digits.parquet"


@pytest.mark.spark
@pytest.mark.tf
@pytest.mark.slow
def test_embed_a_table_then_another_with_the_registered_model(
    spark: SparkSession,
    digits: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = {"format": "parquet", "input": digits, "label_col": "label", "settings": "train.epochs=1"}
    names = run(NOTEBOOKS / "embed_table.py", spark, {**table, "output": str(tmp_path / "out")})
    assert names["_sqldf"].first().asDict() == {"rows": ROWS, "dims": 2}
    assert "trustworthiness" in capsys.readouterr().out
    pytest.importorskip("mlflow")
    pytest.importorskip("ivis_spark.serving.pyfunc")
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    names = run(
        NOTEBOOKS / "embed_with_registered_model.py",
        spark,
        {
            "run": str(tmp_path / "out"),
            "model": "digits",
            "input": digits,
            "format": "parquet",
            "output": str(tmp_path / "new"),
        },
    )
    assert names["_sqldf"].first().asDict() == {"rows": ROWS, "dims": 2}
    assert spark.read.parquet(str(tmp_path / "new")).count() == ROWS


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vectors", "columns"])
def test_a_registered_model_embeds_what_it_was_trained_on(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    features = ["features"] if kind == "vectors" else [f"x {place}" for place in range(3)]
    serving = {"format": 1, "input_shape": [3], "n_outputs": 2, "features": features}
    dense = DenseNetwork((DenseLayer.of(np.eye(3)[:, :2], None, "linear"),)).to_bytes()
    files = {"dense.npz": dense, "serving.json": json.dumps(serving).encode()}
    write_model(str(tmp_path / "run"), ModelFolder({"config": {}, "inputs": {}}, {}, files))
    frame = spark.createDataFrame([(0, 1, 2.5, 4), (1, 7, 8.5, 9)], "id long, `x 0` long, `x 1` double, `x 2` int")
    if kind == "vectors":
        assembler = VectorAssembler(inputCols=["x 0", "x 1", "x 2"], outputCol="features")
        frame = assembler.transform(frame).select("id", "features")
    frame.write.parquet(str(tmp_path / "table"))
    places = {"run": str(tmp_path / "run"), "input": str(tmp_path / "table"), "output": str(tmp_path / "new")}
    run(NOTEBOOKS / "embed_with_registered_model.py", spark, {**places, "model": "m", "format": "parquet"})
    found = spark.read.parquet(places["output"]).orderBy("id").collect()
    assert [row["embedding"] for row in found] == [[1.0, 2.5], [7.0, 8.5]]


def test_every_notebook_is_tested() -> None:
    tested = set(re.findall(r'NOTEBOOKS / "(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in NOTEBOOKS.glob("*.py")} == tested
