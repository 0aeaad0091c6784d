"""A small fitted model, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.datasets import load_digits

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from ivis_spark.ml import IvisModel

FAST = {"k": 5, "epochs": 2, "positivesPerAnchor": 2, "embeddingDims": 2, "recallSample": 50}


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X[:200].astype(np.float32), y[:200]


@pytest.fixture(scope="session")
def digits_frame(_session: SparkSession, digits: tuple[np.ndarray, np.ndarray]) -> DataFrame:
    X, y = digits
    rows = [(i, x.tolist(), int(label), f"row {i}") for i, (x, label) in enumerate(zip(X, y, strict=True))]
    return _session.createDataFrame(rows, "id long, features array<float>, label int, name string").repartition(3)


@pytest.fixture(scope="session")
def fitted(digits_frame: DataFrame) -> IvisModel:
    """Supervised, so that scores are there too, and compiled as for users."""
    import processes

    from ivis_spark import IvisEstimator

    processes.compile_above(0)
    estimator = IvisEstimator(idCol="id", labelCol="label", supervisionMetric="sparse_categorical_crossentropy", **FAST)
    estimator.setRandomState(7)
    return estimator.fit(digits_frame)
