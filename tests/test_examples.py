"""The examples in the docstrings of what the reference documents first: each is there, and runs."""

from __future__ import annotations

import doctest
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import ivis_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# In an order in which one goes on with what another made.
ENTRY_POINTS = (
    *(f"ivis_spark.{name}" for name in ("Config", "load_config", "IvisError", "Ivis", "plot", "IvisEstimator")),
    *(f"ivis_spark.{name}" for name in ("IvisModel", "embed_udf", "EmbeddingEvaluator", "Pipeline")),
    "ivis_spark.spark.neighbours.query.query",
    "ivis_spark.serving.index.PartitionedIndex",
    "ivis_spark.spark.session.get_session",
    "ivis_spark.nn.losses.register_loss",
    "ivis_spark.nn.networks.register_network",
    "ivis_spark.data.sequence.IndexableDataset",
    "ivis_spark.data.sequence.ImageDataset",
    "ivis_spark.data.neighbour_retrieval.AnnoyKnnMatrix",
    "ivis_spark.data.neighbour_retrieval.LabeledNeighbourMap",
    "ivis_spark.serving.export.export_onnx",
    "ivis_spark.serving.pyfunc.save_pyfunc",
    "ivis_spark.pyfunc_input",
)
NEEDS = {
    "ivis_spark.serving.export.export_onnx": "onnx",
    "ivis_spark.serving.pyfunc.save_pyfunc": "mlflow",
    "ivis_spark.pyfunc_input": "mlflow",
}


@pytest.mark.spark
@pytest.mark.tf
@pytest.mark.slow
def test_examples(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    assert {f"ivis_spark.{name}" for name in ivis_spark.__all__} <= set(ENTRY_POINTS)
    X = np.random.default_rng(0).normal(size=(60, 4))
    rows = [(i, x.tolist(), "ab"[i % 2]) for i, x in enumerate(X)]
    frame = spark.createDataFrame(rows, "id long, features array<double>, label string").repartition(1)
    frame.write.parquet(str(tmp_path / "cells.parquet"))
    names = {"spark": spark, "frame": frame}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    said: list[str] = []
    for full in ENTRY_POINTS:
        module, _, name = full.rpartition(".")
        if full in NEEDS and importlib.util.find_spec(NEEDS[full]) is None:
            continue
        thing = getattr(importlib.import_module(module), name)
        test = doctest.DocTestParser().get_doctest(thing.__doc__ or "", names, full, None, None)
        assert test.examples, f"{full} has no example"
        runner.run(test, out=said.append, clear_globs=False)
        names = test.globs
    assert not runner.failures, "".join(said)
