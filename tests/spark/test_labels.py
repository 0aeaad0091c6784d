"""Labels that are arrays, or that say who is whose neighbour, through the stages of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from runs import published

from ivis_spark import Config, Pipeline
from ivis_spark.errors import InputError
from ivis_spark.spark.neighbours.by_label import build_label_neighbours
from ivis_spark.spark.rows import labels

pytestmark = [pytest.mark.spark, pytest.mark.tf]
N, D = 300, 5
X = np.random.default_rng(0).random((N, D)).astype(np.float32)


def pipeline(spark: SparkSession, folder: Path, labels: Any, kind: str, **train: Any) -> Pipeline:
    """Write a table and return a run over it; ids are row numbers times 3."""
    rows = [(3 * i, x.tolist(), y) for i, (x, y) in enumerate(zip(X, labels, strict=True))]
    spark.createDataFrame(rows, f"id long, features array<float>, y {kind}").write.parquet(str(folder / "table"))
    settings = {
        "preset": "ivis",  # its loss reads negatives
        "data": {"id_col": "id", "label_col": "y"},
        "neighbours": {"k": 6, "by_label": True},
        "triplets": {"block_rows": 64, "positives_per_anchor": 2, "file_blocks": 2, "held_out_labels": 0.0},
        "train": {"epochs": 2, "cooldown_epochs": 0, "batch_size": 32, **train},
    }
    run = Pipeline(
        str(folder / "run"),
        Config.from_mapping(settings),
        get_spark=lambda: spark,
        input_uri=str(folder / "table"),
    )
    return run


@pytest.mark.tf
@pytest.mark.parametrize(
    ("metric", "labels", "kind"),
    [
        ("binary_crossentropy", (X[:, :3] > 0.5).astype(int).tolist(), "array<int>"),
        ("mse", X[:, 1:3].tolist(), "array<float>"),
    ],
)
def test_arrays_reach_the_head_in_order(
    spark: SparkSession, tmp_path: Path, metric: str, labels: list[Any], kind: str
) -> None:
    from ivis_spark.nn.persistence import load_model
    from ivis_spark.train.dataset.block_dataset import block_dataset
    from ivis_spark.train.dataset.blocks import TripletBlocks

    run = pipeline(spark, tmp_path, labels, kind, supervision_metric=metric)
    run.neighbours()
    run.triplets()
    info, width = run.run_folder.require("triplets", "triplets").info, len(labels[0])
    assert info["labelled"] == width
    stored = pq.read_table(published(tmp_path / "run", "rows") / "data").to_pydict()
    by_vector = {vector: label for vector, label in zip(stored["features"], stored["label"], strict=True)}
    assert by_vector[stored["features"][0]] == pytest.approx(labels[stored["id"][0] // 3])
    names = ("file_blocks", "block_rows", "dims", "draws", "labelled")
    folder = run.run_folder.data("triplets")
    more = {"group_blocks": 2} if "group_blocks" in TripletBlocks.__dataclass_fields__ else {}
    blocks = TripletBlocks(folder, **{name: info[name] for name in names}, **more)
    steps = blocks.steps_per_epoch(32)
    for batch in block_dataset(blocks, batch_size=32, random_state=0, labels=True).take(steps).as_numpy_iterator():
        anchors = np.split(batch["stacked"], 2)[0]
        expected = [by_vector[row.tobytes()] for row in anchors]
        np.testing.assert_allclose(batch["label"], expected, rtol=1e-6)
    run.train()
    assert load_model(str(published(tmp_path / "run", "model"))).head.output_shape == (None, width)


def test_arrays_of_other_lengths_are_refused_and_nulls_are_no_label(spark: SparkSession, tmp_path: Path) -> None:
    ragged = [[1.0, 2.0][: 1 + (i == 7)] for i in range(N)]
    with pytest.raises(InputError, match="label arrays of column 'y' have 1 to 2 elements"):
        pipeline(spark, tmp_path / "ragged", ragged, "array<double>").ingest()
    holes = [[1.0, None if i == 7 else 2.0] if i != 8 else None for i in range(N)]
    run = pipeline(spark, tmp_path / "holes", holes, "array<double>", supervision_metric="mse")
    assert run.ingest().info["labels"]["unlabelled"] == 2
    stored = pq.read_table(published(tmp_path / "holes" / "run", "rows") / "data").sort_by("id")["label"].to_pylist()
    np.testing.assert_array_equal(stored[6:9], [[1, 2], [1, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize("partitions", [1, 5])
def test_neighbours_by_label(spark: SparkSession, tmp_path: Path, partitions: int) -> None:
    labels = {3 * i: int(i % 3 > 0) if i else 9 for i in range(N)}  # row 0 is alone
    rows = spark.createDataFrame(list(labels.items()), "id long, label long").repartition(partitions)
    info = build_label_neighbours(rows, k=8, random_state=1, folder=f"file://{tmp_path}")
    assert info == {"by": "label", "k": 8, "classes": 3, "rows_alone": 1, "anchors": N}
    table = pq.read_table(tmp_path / "data").sort_by("id").to_pydict()
    assert table["id"] == sorted(labels)
    for row, near in zip(table["id"], table["neighbour_ids"], strict=True):
        assert {labels[other] for other in near} == {labels[row]}
        assert near == [0] if row == 0 else (len(set(near)) == 8 and row not in near)
    counts = np.unique(np.concatenate(table["neighbour_ids"]), return_counts=True)[1]
    assert counts.max() < 30  # nobody is everybody's neighbour
    if partitions == 5:
        other = tmp_path / "again"
        build_label_neighbours(rows.repartition(2), k=8, random_state=1, folder=f"file://{other}")
        again = pq.read_table(other / "data").sort_by("id").to_pydict()
        assert again["neighbour_ids"] == table["neighbour_ids"]


def test_large_classes_are_dealt_into_groups(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ivis_spark.spark.neighbours.by_label._GROUP_ROWS", 40)
    rows = spark.createDataFrame([(i, i % 2) for i in range(N)], "id long, label long")
    build_label_neighbours(rows, k=5, random_state=1, folder=f"file://{tmp_path}")
    table = pq.read_table(tmp_path / "data").to_pydict()
    assert all(len(set(near)) == 5 for near in table["neighbour_ids"])
    pairs = list(zip(table["id"], table["neighbour_ids"], strict=True))
    assert all(other % 2 == row % 2 for row, near in pairs for other in near)


@pytest.mark.tf
def test_run_by_label_draws_positives_inside_and_negatives_outside_the_class(
    spark: SparkSession, tmp_path: Path
) -> None:
    from ivis_spark.core.triplets.sampling import draw_batch_negatives, false_negatives_in_block

    labels = [int(x[0] > 0.5) for x in X]
    run = pipeline(spark, tmp_path, labels, "int")
    run.neighbours()
    run.triplets()
    stored = pq.read_table(published(tmp_path / "run", "rows") / "data").to_pydict()
    label_of = dict(zip(stored["features"], stored["label"], strict=True))
    for block in pq.read_table(published(tmp_path / "run", "triplets") / "data").to_pylist():
        rows = {name: np.frombuffer(block[name], "<f4").reshape(-1, D) for name in ("anchor", "positive_0")}
        anchor, positive = ([label_of[row.tobytes()] for row in rows[name]] for name in ("anchor", "positive_0"))
        near, n = false_negatives_in_block(np.frombuffer(block["near"], "<u4"), np.arange(len(anchor))), len(anchor)
        drawn = draw_batch_negatives(near, n, batch_size=n, rng=np.random.default_rng(0))[:, 0]
        assert anchor == positive
        assert all(anchor[i] != anchor[j] for i, j in enumerate(drawn))
    assert run.train().info["epochs"] == 2


def test_by_label_needs_labels_of_two_kinds(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the same in all rows"):
        pipeline(spark, tmp_path, [1] * N, "int").neighbours()


def test_a_value_that_no_row_has_is_told(caplog: pytest.LogCaptureFixture) -> None:
    facts = {"values": ["Unknown", "a"], "unlabelled": 3}
    for unlabelled, message in (("unknown", "label 'Unknown' of column 'y' is a class"), ("none", None), (None, None)):
        caplog.clear()
        labels.check_unlabelled(facts, "y", unlabelled)
        assert (message in caplog.text) if message else not caplog.text
    labels.check_unlabelled({"values": [1, 2], "unlabelled": 0}, "y", "3")
    assert "no row has data.unlabelled='3' in column 'y'" in caplog.text
