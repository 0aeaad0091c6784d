"""Anchors: a part of the rows is trained on, all are embedded, and what was made for others is not taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from runs import ids, published

from ivis_spark import Config, Pipeline
from ivis_spark.config import load_config
from ivis_spark.config.sections import AUTO_ANCHORS
from ivis_spark.errors import ArtifactError, ConfigError

N = 2000


@pytest.mark.parametrize(
    ("given", "rows", "anchors"),
    [
        ("auto", AUTO_ANCHORS, None),
        ("auto", 10**9, AUTO_ANCHORS),
        ("all", 10**9, None),
        (300, 299, None),
        (300, 301, 300),
    ],
)
def test_how_many_rows_are_anchors(given: Any, rows: int, anchors: int | None) -> None:
    config = load_config(None, [f"triplets.anchors={given}"])
    assert config.triplets.anchors_of(rows) == anchors
    assert config.for_rows(rows).triplets.anchors_of(rows) == anchors


def test_what_is_no_number_of_anchors() -> None:
    with pytest.raises(
        ConfigError, match=r"triplets.anchors='some' must be a whole number, for example 15, or auto or all"
    ):
        load_config(None, ["triplets.anchors=some"])
    with pytest.raises(ConfigError, match=r"triplets.anchors=1 is out of range"):
        load_config(None, ["triplets.anchors=1"])


def test_epochs_follow_the_anchors() -> None:
    """Training takes as many steps for 100,000 anchors of a billion rows as for 100,000 rows."""
    few = Config(triplets={"anchors": 100_000}).for_rows(10**9)
    assert few.train.epochs == Config().for_rows(100_000).train.epochs > Config().for_rows(10**9).train.epochs


@pytest.fixture
def table(spark: SparkSession, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, N)
    X = (rng.normal(size=(3, 4))[labels] * 4 + rng.normal(size=(N, 4))).astype(np.float32)
    rows = [(7 * i, x.tolist(), int(y)) for i, (x, y) in enumerate(zip(X, labels, strict=True))]
    spark.createDataFrame(rows, "id long, features array<float>, y int").write.parquet(str(tmp_path / "table"))
    return tmp_path / "table"


def pipeline(spark: SparkSession, table: Path, name: str, *settings: str, overwrite: bool = False) -> Pipeline:
    given = ["data.id_col=id", "data.label_col=y", "neighbours.k=5", "train.epochs=1", "train.batch_size=128"]
    config = load_config(None, [*given, "triplets.block_rows=128", *settings])
    output = str(table.parent / name)
    return Pipeline(output, config, get_spark=lambda: spark, input_uri=str(table), overwrite=overwrite)


@pytest.mark.spark
@pytest.mark.tf
def test_anchors_are_trained_on_and_all_rows_are_embedded(spark: SparkSession, table: Path) -> None:
    few = pipeline(spark, table, "few", "triplets.anchors=600")
    manifests = few.run()
    for stage in ("neighbours", "triplets", "model"):
        assert manifests[stage].info["anchors"] == 600, stage
    assert manifests["neighbours"].info["rows"] == manifests["embeddings"].info["rows"] == N
    anchors = set(ids(published(table.parent / "few", "neighbours") / "data"))
    vectors = dict(zip(*read(published(table.parent / "few", "rows") / "data", "features", "id"), strict=True))
    trained = set()
    for block in pq.read_table(published(table.parent / "few", "triplets") / "data").to_pylist():
        rows = np.frombuffer(block["anchor"], "<f4").reshape(-1, 4)
        trained |= {vectors[row.tobytes()] for row in rows}
    assert len(anchors) == 600 and trained == anchors
    assert len(set(ids(published(table.parent / "few", "embeddings") / "data"))) == N
    assert "600" in (published(table.parent / "few", "report") / "report.html").read_text()
    full = pipeline(spark, table, "full")
    assert full.neighbours(for_training=True).info["anchors"] == full.triplets().info["anchors"] == N
    assert full.train().info["anchors"] == N
    dense = [published(table.parent / name, "model") / "dense.npz" for name in ("few", "full")]
    assert dense[0].read_bytes() != dense[1].read_bytes()


def read(folder: Path, *names: str) -> tuple[list[Any], ...]:
    return tuple(pq.read_table(folder)[name].to_pylist() for name in names)


@pytest.mark.spark
def test_neighbours_of_anchors_are_not_those_of_all_rows(spark: SparkSession, table: Path) -> None:
    """Those of all rows serve any anchors; those of some serve no others."""
    made = pipeline(spark, table, "out", "triplets.anchors=600").neighbours(for_training=True)
    assert pipeline(spark, table, "out", "triplets.anchors=600").neighbours(for_training=True).created == made.created
    for other, training in (
        ("triplets.anchors=600", False),
        ("triplets.anchors=500", True),
        ("triplets.anchors=all", True),
    ):
        with pytest.raises(
            ArtifactError,
            match=r"neighbours of 600 anchors, not of (all rows|500 anchors)\. Build them with --overwrite",
        ):
            pipeline(spark, table, "out", other).neighbours(for_training=training)
    with pytest.raises(
        ArtifactError, match=r"neighbours of 600 anchors, but triplets.anchors selects 2,000 of 2,000 rows"
    ):
        pipeline(spark, table, "out").triplets()
    every = pipeline(spark, table, "out", "triplets.anchors=600", overwrite=True).neighbours()
    assert every.info["anchors"] == N and "anchors" not in every.spec["inputs"]
    again = pipeline(spark, table, "out", "triplets.anchors=500")
    assert again.neighbours(for_training=True).fingerprint == every.fingerprint
    assert again.triplets().info["anchors"] == 500
    with pytest.raises(ArtifactError, match=r"triplets.anchors: 500 -> 600"):
        pipeline(spark, table, "out", "triplets.anchors=600").triplets()
    asked = ("triplets.anchors=600", "neighbours.query_rows=anchors")
    assert pipeline(spark, table, "alone", *asked).neighbours().info["anchors"] == 600


@pytest.mark.spark
def test_anchors_by_label_and_of_a_given_table(spark: SparkSession, table: Path) -> None:
    """Lists of rows that are no anchors may be missing in the table, and are not kept."""
    by_label = pipeline(spark, table, "label", "neighbours.by_label=true", "triplets.anchors=600")
    found = by_label.neighbours(for_training=True).info
    assert found["anchors"] == 600 and len(ids(by_label.run_folder.data("neighbours"))) == 600
    assert by_label.triplets().info["anchors"] == 600
    pipeline(spark, table, "searched", "triplets.anchors=700").neighbours(for_training=True)
    given = str(published(table.parent / "searched", "neighbours") / "data")
    taken = pipeline(spark, table, "taken", f"neighbours.table={given}", "triplets.anchors=600")
    info = taken.neighbours(for_training=True).info
    assert (info["anchors"], info["rows"], info["recall"]["value"]) == (600, N, 1.0)
    assert len(ids(taken.run_folder.data("neighbours"))) == 600
