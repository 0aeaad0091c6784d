"""Blocks in Parquet hold what was drawn, whatever the partitioning, and Petastorm reads them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from spark_tasks import most_tasks

from ivis_spark import storage
from ivis_spark.config import TripletsConfig
from ivis_spark.core.triplets.sampling import draw_batch_negatives, false_negatives_in_block
from ivis_spark.errors import InputError
from ivis_spark.spark import session, triplets
from ivis_spark.spark.triplets import build_triplets

pytestmark = pytest.mark.spark
N, K, D = 500, 4, 3


def frames(spark: SparkSession, cut: int) -> tuple[DataFrame, DataFrame]:
    vectors = [(i, bytearray(np.full(D, i, "<f4").tobytes()), i % 3) for i in range(N)]
    near = [(i, [(i + j) % N for j in range(1, K + 1)]) for i in range(N)]
    rows = spark.createDataFrame(vectors, "id long, features binary, label long").repartition(cut)
    return rows, spark.createDataFrame(near, "id long, neighbour_ids array<long>").repartition(cut)


def build(spark: SparkSession, folder: Path, cut: int = 2, **settings: Any) -> dict[str, Any]:
    rows, near = frames(spark, cut)
    config = TripletsConfig(
        **{"positives_per_anchor": 2, "block_rows": 40, "file_blocks": 3, "held_out_labels": 0.0, **settings}
    )
    return build_triplets(rows, near, config, n_rows=N, n_anchors=N, k=K, random_state=1, folder=f"file://{folder}")


def content(folder: Path) -> list[dict[str, bytes]]:
    files = sorted(folder.glob("*.parquet"), key=lambda file: file.name[:13])
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_blocks_hold_right_triplets(spark: SparkSession, tmp_path: Path) -> None:
    info = build(spark, tmp_path)
    blocks = content(tmp_path)
    assert info["blocks"] == len(blocks) == sum(info["file_blocks"].values())
    assert info["digests"] == {name: storage.digest_file(f"file://{tmp_path}/{name}") for name in info["file_blocks"]}
    seen = []
    for block in blocks:
        anchor, weight = (np.frombuffer(block[name], "<f4") for name in ("anchor", "weight"))
        anchor = anchor.reshape(-1, D)[:, 0].astype(int)
        assert len(anchor) == info["block_rows"]
        assert np.array_equal(np.frombuffer(block["label"], "<f4"), anchor % 3)
        seen += anchor[weight == 1].tolist()
        for draw in range(2):
            positive = np.frombuffer(block[f"positive_{draw}"], "<f4").reshape(-1, D)[:, 0].astype(int)
            assert set((positive - anchor) % N) <= {1, 2, 3, 4}
        near, n = np.frombuffer(block["near"], "<u4"), len(anchor)
        places = draw_batch_negatives(
            false_negatives_in_block(near, np.arange(n)), n, batch_size=n, draws=3, rng=np.random.default_rng(0)
        )
        assert not set(((anchor[places] - anchor[:, None]) % N).flat) & {0, 1, 2, 3, 4}
    assert sorted(seen) == list(range(N))


def test_a_loss_without_negatives_gets_no_list_of_near_rows(spark: SparkSession, tmp_path: Path) -> None:
    """The rest is as it is with negatives."""
    rows, near = frames(spark, 2)
    config = TripletsConfig(positives_per_anchor=2, block_rows=40, file_blocks=3)
    for name, negatives in (("with", True), ("without", False)):
        info = build_triplets(
            rows,
            near,
            config,
            n_rows=N,
            n_anchors=N,
            k=K,
            random_state=1,
            folder=f"file://{tmp_path / name}",
            negatives=negatives,
        )
        assert info["negatives"] is negatives
    full = [{name: value for name, value in row.items() if name != "near"} for row in content(tmp_path / "with")]
    assert content(tmp_path / "without") == full


def test_partitions_do_not_matter(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the tables, and those that a large table's vectors are fetched in."""
    for cut in (1, 5):
        build(spark, tmp_path / str(cut), cut)
        monkeypatch.setattr(session, "SPLIT_BYTES", 300)
        monkeypatch.setattr(triplets, "BROADCAST_BYTES", 0)
    assert content(tmp_path / "1") == content(tmp_path / "5")


def test_vectors_of_a_large_table_are_fetched_in_tasks_by_bytes(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 rows of 12 bytes and an id are 21 times 480 bytes, about."""
    monkeypatch.setattr(triplets, "BROADCAST_BYTES", 0)
    monkeypatch.setattr(session, "SPLIT_BYTES", 480)
    assert most_tasks(spark, lambda: build(spark, tmp_path)) == 21


def test_small_tables_are_not_shuffled_to_fetch_their_vectors(spark: SparkSession) -> None:
    """Unless their labels are arrays, whose bytes are not counted."""
    requests, rows = spark.range(5).withColumnRenamed("id", "other"), spark.range(5).withColumn("label", F.lit(1))
    arrays = rows.withColumn("label", F.array("label"))
    for table, n_bytes, broadcast in ((rows, 99, True), (rows, 1 << 30, False), (arrays, 99, False)):
        plan = triplets._fetch(requests.hint("merge"), table, n_bytes)._jdf.queryExecution().analyzed().toString()
        assert ("strategy=broadcast" in plan) is broadcast


def test_neighbours_outside_the_table_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    rows, near = frames(spark, 2)
    config = TripletsConfig(positives_per_anchor=2, block_rows=40)
    with pytest.raises(InputError, match="not in the table"):
        build_triplets(
            rows.where("id < 490"),
            near,
            config,
            n_rows=N,
            n_anchors=N,
            k=K,
            random_state=0,
            folder=f"file://{tmp_path}",
        )


@pytest.mark.tf
def test_petastorm_reads_every_anchor_once_an_epoch(spark: SparkSession, tmp_path: Path) -> None:
    from ivis_spark.train.dataset.block_dataset import block_dataset
    from ivis_spark.train.dataset.blocks import TripletBlocks

    info = build(spark, tmp_path)
    names = ("file_blocks", "block_rows", "draws", "labelled")
    blocks = TripletBlocks(f"file://{tmp_path}", dims=D, group_blocks=2, **{name: info[name] for name in names})
    orders = []
    for seed in (0, 0, 1):
        batches = block_dataset(blocks, batch_size=info["block_rows"], random_state=seed, labels=True).take(
            2 * info["blocks"]
        )
        order = []
        for batch in batches.as_numpy_iterator():
            anchor, positive = batch["stacked"][:, 0].astype(int).reshape(2, -1)
            negative = anchor[batch["negative"][:, 0]]
            assert np.array_equal(batch["label"], anchor % 3)
            assert set((positive - anchor) % N) <= {1, 2, 3, 4}
            assert not set((negative - anchor) % N) & {0, 1, 2, 3, 4}
            order += anchor[batch["weight"] == 1].tolist()
        assert sorted(order[:N]) == sorted(order[N:]) == list(range(N))
        assert order[:N] != order[N:]
        orders.append(order)
    assert orders[0] == orders[1] != orders[2]
