"""The job that embeds tables: units done once, other columns kept, and a user's table as its target."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from runs import published
from spark_tasks import batches_asked_for

from ivis_spark import storage
from ivis_spark.config import load_config
from ivis_spark.core.dense import DenseLayer, DenseNetwork
from ivis_spark.errors import ArtifactError, InputError, IvisError
from ivis_spark.pipeline import Pipeline
from ivis_spark.runtime.lock import RunLock
from ivis_spark.serving.folder import ModelFolder, read_model, write_model
from ivis_spark.spark.embedding import job as embed_job
from ivis_spark.spark.embedding import units
from ivis_spark.storage import RunFolder

pytestmark = pytest.mark.spark

X = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
NETWORK = DenseNetwork((DenseLayer.of(np.random.default_rng(2).normal(size=(4, 2)), None, "tanh"),))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a model."""
    serving = {"format": 1, "input_shape": [4], "n_outputs": 2, "features": ["features"]}
    files = {"serving.json": json.dumps(serving).encode(), "dense.npz": NETWORK.to_bytes()}
    write_model(str(tmp_path / "run"), ModelFolder({"config": {}, "inputs": {}}, {}, files))
    return tmp_path / "run"


def write(folder: Path, first: int = 0, last: int = 60, files: int = 6, **more: Any) -> Path:
    for number, rows in enumerate(np.array_split(np.arange(first, last), files)):
        columns = {"key": [f"k{i}" for i in rows], "features": X[rows].tolist(), "n": rows, **more}
        columns = {name: value if len(value) == len(rows) else value * len(rows) for name, value in columns.items()}
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / f"part-{first}-{number}.parquet")
    return folder


def pipeline(spark: SparkSession, run: Path, table: Path, *settings: str) -> Pipeline:
    config = load_config(None, ["embed.unit_bytes=1", *settings])
    return Pipeline(str(run), config, get_spark=lambda: spark, input_uri=str(table))


def check(table: pa.Table, rows: range) -> None:
    table = table.sort_by("n")
    assert table["n"].to_pylist() == list(rows)
    assert table["key"].to_pylist() == [f"k{i}" for i in rows]
    np.testing.assert_allclose(table["embedding"].to_pylist(), NETWORK(X[rows.start : rows.stop]), atol=1e-6)


def test_other_columns_pass_and_nothing_is_left(spark: SparkSession, run: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "table")
    manifest = pipeline(spark, run, table).embed()
    assert manifest.stage == "embeddings-table" and manifest.info["rows"] == 60
    assert manifest.info["invalid"] == {"null": 0, "nan": 0, "infinite": 0, "indices": 0}
    found = pq.read_table(published(run, "embeddings-table") / "data")
    assert found.column_names == ["key", "n", "embedding"]
    check(found, range(60))
    assert not list(run.glob("*/work-*"))


def test_interrupted_job_goes_on(
    spark: SparkSession, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write(tmp_path / "table")
    done: list[list[str]] = []
    original = embed_job._embed_unit

    def dying(*arguments: Any) -> dict[str, Any]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(arguments[-2])
        return original(*arguments)

    monkeypatch.setattr(embed_job, "_embed_unit", dying)
    with pytest.raises(KeyboardInterrupt):
        pipeline(spark, run, table).embed()
    assert not (run / "embeddings-table" / "manifest.json").exists()
    # a record cut off while it was written, and a part lost, make their units undone
    records = sorted(run.glob("*/work-*/units/*.json"))
    assert len(records) == 3
    records[0].write_text(records[0].read_text()[:20])
    next(run.glob("*/work-*/parts/000001-*/*.parquet")).unlink()
    first = [unit for unit in done]
    done.clear()
    monkeypatch.setattr(embed_job, "_embed_unit", lambda *a: done.append(a[-2]) or original(*a))  # type: ignore[func-returns-value]
    pipeline(spark, run, table).embed()
    assert len(done) == 5 and first[2] not in done
    check(pq.read_table(published(run, "embeddings-table") / "data"), range(60))
    assert not list(run.glob("*/work-*"))


def test_policies_and_counts_in_the_manifest(spark: SparkSession, run: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "table")
    bad = [None, [1.0, None, 0.0, 0.0], [float("nan")] * 4, [float("inf")] * 4]
    pq.write_table(pa.table({"key": list("abcd"), "features": bad, "n": range(60, 64)}), table / "bad.parquet")
    with pytest.raises(InputError, match="4 of 4 rows of a batch cannot be embedded"):
        pipeline(spark, run, table).embed()
    null = pipeline(spark, run, table, "embed.invalid=null").embed("null")
    assert null.info["rows"] == 64 and null.info["invalid"] == {"null": 2, "nan": 1, "infinite": 1, "indices": 0}
    assert pq.read_table(published(run, "null") / "data")["embedding"].null_count == 4
    drop = pipeline(spark, run, table, "embed.invalid=drop").embed("drop")
    assert drop.info["rows"] == 60 and drop.info["invalid"] == {"null": 2, "nan": 1, "infinite": 1, "indices": 0}
    check(pq.read_table(published(run, "drop") / "data"), range(60))


def test_one_file_in_a_partition_and_a_space_in_its_path(spark: SparkSession, run: Path, tmp_path: Path) -> None:
    write(tmp_path / "my table" / "day=7", files=1)
    manifest = pipeline(spark, run, tmp_path / "my table").embed("named")
    found = pq.read_table(published(run, manifest.stage) / "data")
    assert found["day"].to_pylist() == [7] * 60
    check(found, range(60))


def test_partitioned_input_and_output(spark: SparkSession, run: Path, tmp_path: Path) -> None:
    for day in (1, 2):
        write(tmp_path / "table" / f"day={day}", 30 * day - 30, 30 * day, files=2)
    pipeline(spark, run, tmp_path / "table", "embed.partition_by=day").embed()
    data = published(run, "embeddings-table") / "data"
    assert sorted(path.name for path in data.iterdir()) == ["day=1", "day=2"]
    found = pq.read_table(data)
    check(found.drop(["day"]), range(60))
    with pytest.raises(InputError, match="partition_by='month' is not in the embedded table; it has: key, n, day"):
        pipeline(spark, run, tmp_path / "table", "embed.partition_by=month").embed("other")


def test_one_day_of_a_partitioned_table(spark: SparkSession, run: Path, tmp_path: Path) -> None:
    for day in ("2026-11-27", "2026-11-28"):
        first = 30 * (day[-1] == "8")
        write(tmp_path / "new" / f"day={day}", first, first + 30, files=2)
    base = f"data.options={{basePath: {tmp_path / 'new'}}}"
    for day in ("2026-11-27", "2026-11-28"):
        rows = pipeline(spark, run, tmp_path / "new" / f"day={day}", "embed.partition_by=day", base)
        with pytest.raises(InputError, match=rf"the folder day={day} .* --set data.options.basePath=\S*/new$"):
            pipeline(spark, run, tmp_path / "new" / f"day={day}", "embed.partition_by=day").embed_into(
                str(tmp_path / "target"), "replace"
            )
        assert rows.embed_into(str(tmp_path / "target"), "replace")["rows"] == 30
    assert [path.name for path in sorted(tmp_path.glob("target/day=*"))] == ["day=2026-11-27", "day=2026-11-28"]
    check(pq.read_table(tmp_path / "target").drop(["day"]), range(60))
    manifest = rows.embed("named")
    assert [path.name for path in (published(run, manifest.stage) / "data").iterdir()] == ["day=2026-11-28"]


def test_target_append_overwrite_replace(spark: SparkSession, run: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first", 0, 30, files=2, day=[1])
    second = write(tmp_path / "second", 30, 60, files=2, day=[2])
    target = tmp_path / "target"

    def put(table: Path, mode: str) -> dict[str, Any]:
        return pipeline(spark, run, table, "embed.partition_by=day").embed_into(str(target), mode)

    def days() -> dict[int, int]:
        return {row["day"]: row["count"] for row in spark.read.parquet(str(target)).groupBy("day").count().collect()}

    assert not put(first, "append")["done_before"]
    assert put(first, "append")["done_before"]
    put(second, "append")
    check(pq.read_table(target).drop(["day"]), range(60))
    fewer = write(tmp_path / "fewer", 50, 60, files=2, day=[2])
    put(fewer, "replace")
    assert days() == {1: 30, 2: 10}
    put(second, "replace")
    assert days() == {1: 30, 2: 30}
    assert not put(fewer, "replace")["done_before"]
    assert days() == {1: 30, 2: 10}
    put(second, "overwrite")
    assert days() == {2: 30}
    put(first, "append")
    check(pq.read_table(target).drop(["day"]), range(60))
    with pytest.raises(InputError, match=r"mode.*nope.* is not one of: append, overwrite, replace"):
        put(first, "nope")
    with pytest.raises(InputError, match="replaces partitions, and none are named"):
        pipeline(spark, run, first).embed_into(str(target), "replace")


def test_append_writes_what_is_missing_and_only_of_one_model(
    spark: SparkSession, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table, target = write(tmp_path / "table", 0, 30, files=3), tmp_path / "target"

    def put(mode: str = "append") -> dict[str, Any]:
        return pipeline(spark, run, table).embed_into(str(target), mode)

    put()
    write(table, 30, 60, files=3)
    assert put()["rows"] == 30
    check(pq.read_table(target), range(60))
    next(target.glob("*.parquet")).unlink()
    assert put()["rows"] == 10 and "embedded again to restore their rows: 1" in caplog.text
    check(pq.read_table(target), range(60))
    os.utime(table / "part-0-0.parquet", (1, 1))
    assert put()["rows"] == 10 and "for example file://" in caplog.text
    assert put()["done_before"] and pq.read_table(target).num_rows == 70
    content = read_model(str(run), RunFolder(str(run)).require("model", "train"))
    network = DenseNetwork.from_bytes(content.files["dense.npz"])
    last = network.layers[-1]
    again = DenseNetwork((*network.layers[:-1], DenseLayer(2 * last.kernel, last.bias, last.activation)))
    write_model(str(run), dataclasses.replace(content, files={**content.files, "dense.npz": again.to_bytes()}))
    with pytest.raises(InputError, match=r"7 files embedded by another model \(\w+, that of \S+/run, trained \S+; the"):
        put()
    assert put("overwrite")["rows"] == pq.read_table(target).num_rows == 60


def test_a_data_frame_is_embedded_as_it_is(spark: SparkSession, run: Path, tmp_path: Path) -> None:
    table, target = spark.read.parquet(str(write(tmp_path / "table"))), tmp_path / "target"
    for condition, done_before in (("n < 10", False), ("n < 10", True), ("n >= 10", False)):
        source = table.where(condition)
        rows = Pipeline(str(run), load_config(None), get_spark=lambda: spark, source=source)
        assert rows.embed_into(str(target), "append")["done_before"] == done_before
    check(pq.read_table(target), range(60))


def test_a_target_with_other_columns(spark: SparkSession, run: Path, tmp_path: Path) -> None:
    table, target = write(tmp_path / "table"), tmp_path / "target"
    columns = {"key": ["k"], "n": ["text"], "more": [1], "embedding": pa.array([[0.0, 0.0]], pa.list_(pa.float32()))}
    target.mkdir()
    for wrong, said in {
        "other columns": "more is only in the table; n is string in the table and bigint in the embeddings",
        "no rows of ours": "^--target .* holds files that are not a Parquet table",
    }.items():
        content = pa.table(columns) if wrong == "other columns" else None
        (target / "a.parquet").write_text("text") if content is None else pq.write_table(content, target / "a.parquet")
        with pytest.raises(InputError, match=said):
            pipeline(spark, run, table).embed_into(str(target), "append")
        assert [path.name for path in target.iterdir() if not path.name.endswith(".crc")] == ["a.parquet"]
    with pytest.raises(InputError, match=r"^--target .*a\.parquet cannot be written"):
        pipeline(spark, run, table).embed_into(str(target / "a.parquet"), "append")
    pq.write_table(pa.table({**columns, "n": [60]}).drop(["more"]), target / "a.parquet")
    with pytest.raises(InputError, match=r"is partitioned by nothing, and embed\.partition_by is n"):
        pipeline(spark, run, table, "embed.partition_by=n").embed_into(str(target), "append")
    assert [path.name for path in target.iterdir() if path.name[0] not in "_."] == ["a.parquet"]
    assert pipeline(spark, run, table).embed_into(str(target), "append")["rows"] == 60
    with pytest.raises(InputError, match=r"would remove files .* that `embed` did not write: a\.parquet"):
        pipeline(spark, run, table).embed_into(str(target), "overwrite")
    assert sorted(pq.read_table(target)["n"].to_pylist()) == list(range(61))


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_target_that_is_the_input(spark: SparkSession, run: Path, tmp_path: Path, mode: str) -> None:
    table = write(tmp_path / "table")
    (tmp_path / "link").symlink_to(table)
    before = {path: path.read_bytes() for path in table.iterdir()}
    named = f"file:{table}"
    for target in (str(table), str(tmp_path / "link"), f"{table}/new", str(tmp_path)):
        with pytest.raises(InputError, match=r"(is read|input table)"):
            pipeline(spark, run, table).embed_into(target, mode)
    spark.sql(f"CREATE TABLE IF NOT EXISTS named USING parquet LOCATION '{named}'")
    try:
        config = load_config(None, ["data.format=table"])
        by_name = Pipeline(str(run), config, get_spark=lambda: spark, input_uri="named")
        for target in (table, table / "new"):  # there is no mark of a table in it
            with pytest.raises(InputError, match="the input table"):
                by_name.embed_into(str(target), mode)
        frame = Pipeline(str(run), load_config(None), get_spark=lambda: spark, source=spark.read.parquet(str(table)))
        with pytest.raises(InputError, match="lies in the input table"):
            frame.embed_into(str(table / "new"), mode)
    finally:
        spark.sql("DROP TABLE named")
    assert before == {path: path.read_bytes() for path in table.iterdir()}


def test_two_jobs_never_write_one_target(spark: SparkSession, run: Path, tmp_path: Path) -> None:
    table, target = write(tmp_path / "table"), tmp_path / "target"
    with (
        RunLock(str(target / "_ivis_spark"), "embed"),
        pytest.raises(ArtifactError, match=r"^--target \S+/target is being written by .*choose another --target,"),
    ):
        pipeline(spark, run, table).embed_into(str(target), "append")
    pipeline(spark, run, table).embed_into(str(target), "append")
    check(pq.read_table(target), range(60))
    assert {path.name for path in target.iterdir() if path.name.startswith(".")} == set()


def test_target_whose_job_died_while_moving(
    spark: SparkSession, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, target = write(tmp_path / "table"), tmp_path / "target"
    moved: list[str] = []
    original, turn = storage.files._move_file, threading.Lock()

    def dying(source: str, destination: str) -> None:
        with turn:
            if len(moved) == 2:
                raise KeyboardInterrupt
            moved.append(source)
        original(source, destination)

    monkeypatch.setattr(storage.files, "_move_file", dying)
    with pytest.raises(KeyboardInterrupt):
        pipeline(spark, run, table).embed_into(str(target), "append")
    monkeypatch.setattr(storage.files, "_move_file", original)
    assert pipeline(spark, run, table).embed_into(str(target), "append")["done_before"]
    check(pq.read_table(target), range(60))


def test_a_full_disk_names_the_target(
    spark: SparkSession, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(embed_job, "_embed_unit", full)
    target = tmp_path / "target"
    with pytest.raises(IvisError, match=f"free space on the disks of --target {target} and spark.local.dir"):
        pipeline(spark, run, write(tmp_path / "table")).embed_into(str(target), "append")


def test_no_rows_are_a_warning(
    spark: SparkSession, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = write(tmp_path / "table", 0, 2, files=1, features=[[None] * 4])
    pipeline(spark, run, table, "embed.invalid=drop").embed_into(str(tmp_path / "dropped"), "append")
    pq.write_table(pa.table({name: pa.array([], pa.float32()) for name in "abcd"}), tmp_path / "empty.parquet")
    pipeline(spark, run, tmp_path / "empty.parquet", "data.feature_cols=a,b,c,d").embed()
    said = [record.getMessage() for record in caplog.records if "no rows were embedded" in record.getMessage()]
    assert [text.partition(": ")[2] for text in said] == [
        "all 2 are invalid, and embed.invalid is drop",
        "the input has none",
    ]


def test_clashing_column_and_wrong_width(spark: SparkSession, run: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "table", embedding=[1])
    with pytest.raises(InputError, match="already has a column 'embedding'"):
        pipeline(spark, run, table).embed()
    pipeline(spark, run, table, "embed.output_col=z").embed()
    pq.write_table(pa.table({"features": [[1.0, 2.0]]}), tmp_path / "narrow.parquet")
    with pytest.raises(InputError, match=r"has 2 features in column 'features'; the model was trained on 4"):
        pipeline(spark, run, tmp_path / "narrow.parquet").embed()


def test_units_hold_about_the_bytes_asked_for(tmp_path: Path) -> None:
    for name, size in zip("abcde", (10, 10, 30, 5, 5), strict=True):
        (tmp_path / name).write_bytes(b"x" * size)
    files = [f"file://{tmp_path / name}" for name in "edcba"]
    plan = units.plan_units(files, 20)
    assert [[Path(uri).name for uri in unit] for unit in plan] == [["a", "b"], ["c"], ["d", "e"]]


@pytest.mark.parametrize("text", ["", "x" * 4000])
def test_batches_are_cut_by_bytes(
    spark: SparkSession, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Of the features, and of what is kept beside them."""
    asked = batches_asked_for(monkeypatch, embed_job)
    new = write(tmp_path / "new", files=1, text=[text])
    manifest = pipeline(spark, run, new, "embed.batch_rows=7").embed("z")
    assert len(pq.read_table(published(run, manifest.stage) / "data")) == 60
    kept = len('{"c0":"k1","c2":""}') + len(text)
    assert asked == [(8 * 4 + 16 + kept, 7)]
