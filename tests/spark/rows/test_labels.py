"""Labels: text and dates as classes, any number of them, rows without one."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from runs import published

from ivis_spark.config import DataConfig
from ivis_spark.errors import InputError
from ivis_spark.runtime.fitness import class_values, label_values
from ivis_spark.spark.rows import labels
from tests.spark.rows.test_ids import stored

pytestmark = pytest.mark.spark
SPARSE = "sparse_categorical_crossentropy"


def ingest(spark: SparkSession, folder: Path, values: list[Any], kind: str, **config: Any) -> tuple[Any, list[Any]]:
    rows = [(i, [float(i), 1.0], value) for i, value in enumerate(values)]
    frame = spark.createDataFrame(rows, f"id int, features array<double>, y {kind}").repartition(3)
    info, table = stored(frame, folder, id_col="id", label_col="y", scaling="none", **config)
    return info, table["label"].to_pylist()


@pytest.mark.parametrize(
    ("kind", "values", "names", "codes"),
    [
        ("string", ["b", "a", None, "unknown", "b"], ["a", "b"], [1, 0, None, None, 1]),
        ("boolean", [True, None, True], ["false", "true"], [1, None, 1]),
        ("date", [datetime.date(2021, 2, 1), datetime.date(2020, 2, 1)], ["2020-02-01", "2021-02-01"], [1, 0]),
    ],
)
def test_names_become_numbers(
    spark: SparkSession, tmp_path: Path, kind: str, values: list[Any], names: list[str], codes: list[Any]
) -> None:
    info, found = ingest(spark, tmp_path, values, kind, unlabelled="unknown")
    assert found == codes and info["labels"]["values"] == names and info["labels"]["unlabelled"] == codes.count(None)
    assert class_values(info, SPARSE) == names and label_values(info, SPARSE) == list(range(len(names)))
    with pytest.raises(
        InputError, match=r"label column 'y' holds . classes; train.supervision_metric='mae' takes numbers"
    ):
        class_values(info, "mae")


def test_numbers_are_classes_only_for_a_loss_of_classes(spark: SparkSession, tmp_path: Path) -> None:
    values = [3, 7, -1, 3, 1, 0, None]
    info, found = ingest(spark, tmp_path, values, "int", unlabelled="0")
    assert found == [3, 7, -1, 3, 1, None, None]
    assert class_values(info, SPARSE) == [1, 3, 7] and class_values(info, "mae") is None
    rows = spark.read.parquet(str(published(tmp_path, "rows") / "data"))
    coded = {row["id"]: row["label"] for row in labels.as_classes(rows, [1, 3, 7]).collect()}
    assert coded == {0: 1, 1: 2, 2: None, 3: 1, 4: 0, 5: None, 6: None}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("double", [1.0, math.inf, None, -math.inf]),
        ("array<double>", [[1.0, 2.0], [math.inf, 1.0], [None, 1.0], [1.0, -math.inf]]),
    ],
)
def test_infinite_labels_are_refused(spark: SparkSession, tmp_path: Path, kind: str, values: list[Any]) -> None:
    with pytest.raises(
        InputError, match="label column 'y' holds infinity in 2 rows: correct them, or set them to null"
    ):
        ingest(spark, tmp_path, values, kind)


def test_any_number_of_classes(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [*range(1500), None]
    info, _ = ingest(spark, tmp_path / "many", values, "int")
    assert label_values(info, SPARSE) == list(range(1500)) and info["labels"]["unlabelled"] == 1
    monkeypatch.setattr(labels, "MOST_CLASSES", 1000)
    info, _ = ingest(spark, tmp_path / "quantity", values, "int")
    assert label_values(info, "mae") == [0.0, 1.0] and info["labels"]["unlabelled"] == 1
    with pytest.raises(InputError, match="label column 'y' has 1500 distinct numbers, too many classes for"):
        class_values(info, SPARSE)
    with pytest.raises(InputError, match="label column 'y' has 1500 distinct values; at most 1000 classes"):
        ingest(spark, tmp_path / "names", [None if v is None else f"c{v}" for v in values], "string")
    with pytest.raises(InputError, match="no row has a label in column 'y'"):
        ingest(spark, tmp_path / "nothing", [None, None], "string")


def test_classes_are_whole_numbers(spark: SparkSession, tmp_path: Path) -> None:
    info, _ = ingest(spark, tmp_path, [1.0, 2.5, float("nan")], "double")
    assert info["labels"]["unlabelled"] == 1
    with pytest.raises(InputError, match=r"label column 'y' holds 2.5; classes for"):
        class_values(info, SPARSE)


def test_arrays_are_no_names(spark: SparkSession) -> None:
    from ivis_spark.spark.rows.columns import resolve

    frame = spark.createDataFrame([([1.0], ["a"])], "features array<float>, y array<string>")
    with pytest.raises(InputError, match=r"array<string>; a label must be a number, an array of numbers, text"):
        resolve(frame, DataConfig(label_col="y"))
