"""Ids of rows: any key, numbers by content, and tables of copies."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from runs import published

from ivis_spark import storage
from ivis_spark.config import DataConfig
from ivis_spark.errors import InputError
from ivis_spark.spark.embedding.job import input_of_rows
from ivis_spark.spark.rows import columns, ids, ingest

pytestmark = pytest.mark.spark


def stored(frame: DataFrame, folder: Path, **config: Any) -> tuple[dict[str, Any], pa.Table]:
    data = DataConfig(**config)
    with storage.RunFolder(str(folder)).build("rows", {}) as build:
        info = ingest.ingest(columns.resolve(frame, data), data, build)
    return info, pq.read_table(published(folder, "rows") / "data").sort_by("id")


def test_copies_are_numbered_in_groups_that_no_partitioning_changes(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ids, "_GROUP_BYTES", 8 * 16)  # groups of 16 rows of two features
    groups = []

    def deal(*arguments: Any, **more: Any) -> Any:
        dealt = deal_as_it_is(*arguments, **more)
        groups.append(dealt[1])
        return dealt

    deal_as_it_is = ids.deal
    monkeypatch.setattr(ids, "deal", deal)
    rng = np.random.default_rng(0)
    values = np.where(rng.random(160)[:, None] < 0.7, [7.0, 7.0], rng.normal(size=(160, 2)))
    rows = [(row.tolist(), int(i % 3)) for i, row in enumerate(values)]
    results = []
    for cut in (1, 5):
        frame = spark.createDataFrame(rows, "features array<double>, y int").repartition(cut)
        results.append(stored(frame, tmp_path / str(cut), label_col="y", drop_columns=("y",))[1])
    assert results[0].equals(results[1])
    assert results[0]["id"].to_pylist() == list(range(160))
    assert {tuple(np.frombuffer(row, "<f4")) for row in results[0]["features"].to_pylist()} == {
        tuple(row) for row in ((values - values.min(axis=0)) / (values.max(axis=0) - values.min(axis=0))).astype("<f4")
    }
    assert all(found.rows.sum() == 160 and found.rows.max() < 3 * 16 and len(found.rows) > 10 for found in groups)


KEYS = {
    "string": [f"cell {i:03d}" for i in range(40)],
    "date": [datetime.date(2020, 1, 1) + datetime.timedelta(days=i) for i in range(40)],
    "double": [i / 4 for i in range(40)],
    "decimal(9,2)": [__import__("decimal").Decimal(i) for i in range(40)],
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_column_of_any_type_is_the_key(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    rows = [(key, [float(i % 4), 1.0 * i], f"note {i}") for i, key in enumerate(KEYS[kind])]
    frame = spark.createDataFrame(rows, f"`cell id` {kind}, features array<double>, `free text` string")
    info, table = stored(frame.repartition(3), tmp_path, id_col="cell id")
    assert table["id"].to_pylist() == list(range(40)) and info["columns"] == ["cell id", "free text"]
    source = input_of_rows(spark.read.parquet(str(published(tmp_path, "rows") / "data")), info)
    assert source.columns == ["cell id", "free text", "id"]
    read = source.read([])
    assert read.schema["cell id"].dataType.simpleString() == kind
    found = {row["cell id"]: row for row in read.collect()}
    for i, key in enumerate(KEYS[kind]):
        features = np.frombuffer(found[key]["features"], "<f4")
        assert found[key]["free text"] == f"note {i}" and features[1] == pytest.approx(i / 39)


def test_several_columns_are_the_key_and_repeat_only_together(spark: SparkSession, tmp_path: Path) -> None:
    rows = [(f"s{i // 4}", i % 4, float(i), 0.0) for i in range(16)]
    frame = spark.createDataFrame(rows, "sample string, id int, a double, b double")
    info, table = stored(frame, tmp_path / "good", id_cols=("sample", "id"))
    assert info["features"] == ["a", "b"] and table["id"].to_pylist() == list(range(16))
    source = input_of_rows(spark.read.parquet(str(published(tmp_path / "good", "rows") / "data")), info)
    assert source.columns == ["sample", "id", "_id"]  # `id` is the user's
    with pytest.raises(InputError, match=r"id \('s0', 0\) occurs 2 times in id columns 'sample', 'id'"):
        stored(frame.union(frame.limit(1)), tmp_path / "twice", id_cols=("sample", "id"))


def test_ids_that_are_no_ids_are_named_as_that(spark: SparkSession, tmp_path: Path) -> None:
    rows = [(5, [1.0, 2.0]), (-(2**63), [2.0, 3.0]), (None, [3.0, 4.0]), (None, [4.0, 4.0])]
    frame = spark.createDataFrame(rows, "k long, features array<double>")
    with pytest.raises(InputError, match=r"2 rows have null in id column 'k'; 1 row has -92233720"):
        stored(frame, tmp_path, id_col="k")
    info, table = stored(frame, tmp_path, id_col="k", invalid="drop")
    assert table["id"].to_pylist() == [5] and info["dropped"] == 3
    with pytest.raises(InputError, match=r"2 rows have null in id column 'k': fix"):
        stored(frame.select(F.col("k").cast("string"), "features"), tmp_path / "text", id_col="k")


def test_columns_are_kept_and_dropped(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.range(8).selectExpr(
        "id", "array(double(id), 1d) features", "'x' || id name", "map('a', id) m", "struct(id s) `columns`", "1 hash"
    )
    info, table = stored(frame, tmp_path / "all", id_col="id", drop_columns=("hash",))
    assert info["columns"] == ["id", "name", "m", "columns"]
    kept = table["columns"].to_pylist()[3]
    assert (kept["c1"], kept["c2"], kept["c3"]) == ("x3", [("a", 3)], {"s": 3})
    info, _ = stored(frame, tmp_path / "one", id_col="id", keep_columns=("name",))
    assert info["columns"] == ["id", "name"]
    info, table = stored(frame.select("features"), tmp_path / "none")
    assert info["columns"] == [] and table.column_names == ["id", "features"]
