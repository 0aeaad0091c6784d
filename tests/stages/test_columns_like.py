"""Which columns of another table are read: of each kind those named, else those of the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ivis_spark.config import Config, DataConfig
from ivis_spark.manifest import Manifest
from ivis_spark.stages.input_table import InputTable

TRAINED = {"id_col": "key", "label_col": "y", "drop_columns": ["note"]}


def rows(**data: Any) -> Manifest:
    spec = {"config": {"data": Config.from_mapping({"data": data}).to_mapping()["data"]}, "inputs": {}}
    return Manifest("rows", spec, {"features": ["a", "b", "c"]}, [], {}, "")


def read(named: DataConfig, columns: list[str]) -> DataConfig:
    table = InputTable(named, get_spark=lambda: None)  # type: ignore[arg-type, return-value]
    return table.columns_like(rows(**TRAINED), SimpleNamespace(columns=columns))  # type: ignore[arg-type]


ALL = ["c", "y", "a", "key", "note", "b", "other"]


@pytest.mark.parametrize(
    "named", [DataConfig(), DataConfig(id_col="other"), DataConfig(keep_columns=("note",)), DataConfig(label_col="y")]
)
def test_whatever_else_is_named_features_are_those_of_the_run_in_its_order(named: DataConfig) -> None:
    assert read(named, ALL).feature_cols == ("a", "b", "c")


def test_each_kind_is_taken_from_what_is_named_or_from_the_run() -> None:
    like = read(DataConfig(id_col="other", drop_columns=("y",), invalid="drop"), ALL)
    assert (like.id_col, like.label_col, like.drop_columns, like.invalid) == ("other", "y", ("y",), "drop")
    like = read(DataConfig(feature_cols=("c", "b", "a")), ALL)
    assert (like.id_col, like.feature_cols, like.drop_columns) == ("key", ("c", "b", "a"), ("note",))
    like = read(DataConfig(), ["a", "b", "c"])
    assert (like.id_col, like.label_col, like.drop_columns) == (None, None, ())
