"""Neighbours found elsewhere: each fault is named, what is sound is published with its recall."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from sklearn.neighbors import NearestNeighbors
from spark_tasks import most_tasks

from ivis_spark.config import Config, NeighboursConfig
from ivis_spark.errors import InputError
from ivis_spark.pipeline import Pipeline
from ivis_spark.spark import session
from ivis_spark.spark.neighbours.from_table import take_neighbours
from ivis_spark.spark.rows.ids import KEY_BYTES

pytestmark = pytest.mark.spark
X = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
NEAR = NearestNeighbors(n_neighbors=8).fit(X).kneighbors(X, return_distance=False)[:, 1:]


def lists() -> list[tuple[int | None, list[int | None] | None]]:
    return [(i, list(map(int, near))) for i, near in enumerate(NEAR)]


def take(spark: SparkSession, given: list, folder: Path, *, schema: str = "id long, neighbour_ids array<long>") -> dict:
    rows = spark.createDataFrame([(i, bytearray(row.tobytes())) for i, row in enumerate(X)], "id long, features binary")
    table = spark.createDataFrame(given, schema)
    config = NeighboursConfig(k=5, recall_sample=40)
    return take_neighbours(rows, table, config, random_state=0, folder=f"file://{folder}")


def test_sound_lists_are_published_with_their_recall(spark: SparkSession, tmp_path: Path) -> None:
    """The first k of seven; then lists whose first neighbour is the row's farthest: one of five is wrong."""
    info = take(spark, lists(), tmp_path / "good", schema="id int, neighbour_ids array<int>")
    assert info["recall"]["value"] == 1 and info["recall"]["sample"] == 40
    assert (info["backend"], info["rows"], info["k"]) == ("given", 120, 5)
    table = pq.read_table(tmp_path / "good" / "data").sort_by("id")
    assert table["neighbour_ids"].to_pylist() == NEAR[:, :5].tolist()
    far = ((X[:, None] - X) ** 2).sum(axis=2).argmax(axis=1)
    worse = [(i, [int(far[i]), *map(int, near[:4])]) for i, near in enumerate(NEAR)]
    assert take(spark, worse, tmp_path / "worse")["recall"]["value"] == pytest.approx(0.8)


def test_ids_are_checked_in_tasks_by_bytes(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """120 lists of 5 ids."""
    monkeypatch.setattr(session, "SPLIT_BYTES", 120 * 5 * KEY_BYTES // 12)
    assert most_tasks(spark, lambda: take(spark, lists(), tmp_path)) == 12


FAULTS = {
    "one of one row is missing": (lambda t: t[:-1], r"1 rows have no neighbours in neighbours.table \(id 119 is one\)"),
    "a row too many": (lambda t: [*t, (500, [1, 2, 3, 4, 5])], r"1 ids in neighbours.table are not rows .*id 500"),
    "a stranger": (lambda t: [(0, [1, 2, 3, 4, 777]), *t[1:]], r"1 neighbours in .* are not rows .*id 777"),
    "an id twice": (lambda t: [*t, t[3]], r"1 ids are in neighbours.table more than once \(id 3"),
    "itself": (lambda t: [(0, [1, 2, 0, 4, 5]), *t[1:]], r"1 rows of .* have themselves .*id 0 is one"),
    "a duplicate neighbour": (
        lambda t: [*t[:7], (7, [1, 2, 2, 4, 5]), *t[8:]],
        r"1 rows .* have a duplicate neighbour .*id 7",
    ),
    "short": (lambda t: [(0, [1, 2, 3]), *t[1:]], r"1 rows .* fewer than neighbours.k=5 neighbours \(id 0 .*: lower"),
    "null list": (lambda t: [(0, None), *t[1:]], r"1 rows .* have null for neighbour_ids or in it \(id 0"),
    "null in a list": (lambda t: [(0, [1, None, 3, 4, 5]), *t[1:]], r"1 rows .* have null for neighbour_ids or in it"),
    "null id": (lambda t: [(None, [1, 2, 3, 4, 5]), *t[1:]], r"1 rows of neighbours.table have no id: fix"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(spark: SparkSession, tmp_path: Path, name: str) -> None:
    harm, text = FAULTS[name]
    with pytest.raises(InputError, match=text):
        take(spark, harm(lists()), tmp_path)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("schema", ["id string, neighbour_ids array<long>", "id long, near array<long>"])
def test_other_columns_are_refused(spark: SparkSession, tmp_path: Path, schema: str) -> None:
    given = [(str(i), near) for i, near in lists()] if "string" in schema else lists()
    with pytest.raises(InputError, match=r"neighbours.table needs .*; it has: id \("):
        take(spark, given, tmp_path, schema=schema)


def test_pipeline_takes_the_table(spark: SparkSession, tmp_path: Path) -> None:
    rows = [(i, row.tolist()) for i, row in enumerate(X)]
    spark.createDataFrame(rows, "id long, features array<float>").write.parquet(str(tmp_path / "rows"))
    spark.createDataFrame(lists(), "id long, neighbour_ids array<long>").write.parquet(str(tmp_path / "near"))
    settings = {"data": {"id_col": "id", "scaling": "none"}, "neighbours": {"k": 5, "table": str(tmp_path / "near")}}
    pipeline = Pipeline(
        str(tmp_path / "run"),
        Config.from_mapping(settings),
        get_spark=lambda: spark,
        input_uri=str(tmp_path / "rows"),
    )
    manifest = pipeline.neighbours()
    assert manifest.info["backend"] == "given" and manifest.info["recall"]["value"] == 1
    assert pipeline.neighbours().created == manifest.created
    pipeline.triplets()
