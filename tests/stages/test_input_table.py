"""The same input is recognised, another one is not mistaken for it, and their results have names of their own."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ivis_spark.config import Config, DataConfig
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.manifest import fingerprint as digest
from ivis_spark.runtime.publishing import StageRunner
from ivis_spark.stages.input_table import InputTable
from ivis_spark.stages.run import Run


def fingerprint(spark: SparkSession, uri: str | None = None, frame: DataFrame | None = None, **data: Any) -> Any:
    table = InputTable(DataConfig(**{"format": "parquet", **data}), lambda: spark, uri, frame)
    read = table.read()
    assert read is not None
    return table.fingerprint(read)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for day in (1, 2):
        (tmp_path / "t" / f"day={day}").mkdir(parents=True)
        pq.write_table(pa.table({"x": [day, day]}), tmp_path / "t" / f"day={day}" / f"part-{day}.parquet")
    return tmp_path / "t"


def move(table: Path) -> None:
    os.rename(table / "day=1" / "part-1.parquet", table / "day=2" / "part-1.parquet")


def swap(table: Path) -> None:
    """Two partitions take each other's files, names and times unchanged."""
    for old, new in (("day=1", "day=3"), ("day=2", "day=1"), ("day=3", "day=2")):
        os.rename(table / old, table / new)


def rewrite(table: Path) -> None:
    path = table / "day=1" / "part-1.parquet"
    pq.write_table(pa.table({"x": [9, 9]}), path)
    os.utime(path, ns=(10**18, 10**18))


def add(table: Path) -> None:
    shutil.copy2(table / "day=1" / "part-1.parquet", table / "day=1" / "part-3.parquet")


@pytest.mark.spark
@pytest.mark.parametrize("change", [move, swap, rewrite, add])
@pytest.mark.parametrize("form", ["uri", "frame", "cached", "view"])
def test_whatever_changes_in_a_folder_is_seen(
    spark: SparkSession, table: Path, change: Callable[[Path], None], form: str
) -> None:
    def found() -> Any:
        if form == "uri":
            return fingerprint(spark, str(table))
        frame = spark.read.parquet(str(table)).where("x > 0")
        if form == "view":
            frame.createOrReplaceTempView("v")
            return fingerprint(spark, "v", format="table")
        return fingerprint(spark, frame=frame.cache() if form == "cached" else frame)

    before = found()
    assert found() == before
    change(table)
    spark.catalog.clearCache()
    assert found() != before


@pytest.mark.spark
def test_other_tables_of_equal_files_and_other_ways_to_read_are_others(spark: SparkSession, table: Path) -> None:
    shutil.copytree(table, table.parent / "u")
    found = [fingerprint(spark, str(table)), fingerprint(spark, str(table.parent / "u"))]
    (table.parent / "t.csv").write_text("a;b\n1;2\n")
    for options in ({}, {"sep": ";"}, {"header": False}):
        found.append(fingerprint(spark, str(table.parent / "t.csv"), format="csv", options=options))
    assert all(one != other for place, one in enumerate(found) for other in found[:place])
    assert fingerprint(spark, f"file:{table}/../t/") == found[0]


@pytest.mark.spark
def test_a_wide_frame_is_the_same_in_every_thread(spark: SparkSession) -> None:
    """After an interrupt, PySpark too continues in another thread of Java."""
    frame = spark.range(3).select(*[F.lit(place).alias(f"px{place}") for place in range(60)])
    with ThreadPoolExecutor(1) as other:
        assert other.submit(fingerprint, spark, frame=frame).result() == fingerprint(spark, frame=frame)


@pytest.mark.spark
def test_passwords_are_neither_kept_nor_part_of_what_a_table_is(spark: SparkSession, table: Path) -> None:
    def settings(password: str, mode: str) -> dict[str, Any]:
        return {
            "options": {"password": password, "apiKey": password, "url": f"jdbc:x;password={password}", "mode": mode}
        }

    first, other, changed = (
        fingerprint(spark, str(table), **settings(*how)) for how in (("a", "x"), ("b", "x"), ("a", "y"))
    )
    assert first == other != changed
    kept = Config(data=DataConfig(**settings("a", "x"))).result_settings("data")
    assert kept["options"] == {"mode": "x"}


@pytest.mark.spark
def test_a_run_that_a_former_version_began_knows_its_input(spark: SparkSession, table: Path, tmp_path: Path) -> None:
    """It had noted names, sizes and times of change of the files."""
    run = run_of(tmp_path / "run", str(table), format="parquet")
    run = dataclasses.replace(run, input=dataclasses.replace(run.input, get_spark=lambda: spark))
    files = [[path.name, path.stat().st_size, str(path.stat().st_mtime)] for path in sorted(table.rglob("*.parquet"))]
    source = {"files": 2, "bytes": sum(size for _, size, _ in files), "digest": digest(files)}
    with run.folder.build("rows", run.spec("data", source=source)):
        pass

    def found() -> dict[str, Any]:
        read = run.input.read()
        assert read is not None
        return run.source(read)

    assert found() == source
    rewrite(table)
    assert found().keys() == {"uri", "read_as", "files", "bytes", "digest"}


FRAMES: dict[str, Callable[[SparkSession, str], list[DataFrame]]] = {
    "filters": lambda s, t: [s.read.parquet(t).where(f"x > {n}") for n in (0, 1)],
    "names": lambda s, t: [s.read.parquet(t).select(F.col("x").alias(n)) for n in "ab"],
    "ranges": lambda s, t: [s.range(n) for n in (5, 6)],
    "rows": lambda s, t: [s.createDataFrame([(n,)], "x int") for n in (5, 6)],
    "values": lambda s, t: [s.sql(f"select * from values (1), ({n}) as t(x)") for n in (5, 6)],
    "functions": lambda s, t: [s.range(9).select(F.udf(lambda x, n=n: x + n, "long")("id")) for n in (5, 6)],
    "wide": lambda s, t: [s.range(9).select(*[(F.col("id") + i * (i != n)) for i in range(60)]) for n in (50, 51)],
    "checkpoints": lambda s, t: [s.range(n).localCheckpoint() for n in (5, 6)],
    "sides": lambda s, t: [
        s.read.parquet(f"{t}/day={a}").where("x < 9").union(s.read.parquet(f"{t}/day={b}")) for a, b in ((1, 2), (2, 1))
    ],
}


@pytest.mark.spark
@pytest.mark.parametrize("kind", FRAMES)
def test_frames_that_differ_are_told_apart(spark: SparkSession, table: Path, kind: str) -> None:
    one, two = FRAMES[kind](spark, str(table))
    assert fingerprint(spark, frame=one) == fingerprint(spark, frame=one)
    assert fingerprint(spark, frame=one) != fingerprint(spark, frame=two)
    if kind in ("ranges", "rows"):  # by the name of a view too
        one.createOrReplaceTempView("v")
        before = fingerprint(spark, "v", format="table")
        two.createOrReplaceTempView("v")
        assert fingerprint(spark, "v", format="table") != before


_PRINT = """
import sys
from ivis_spark.config import DataConfig
from ivis_spark.spark.session import get_session
from ivis_spark.stages.input_table import InputTable
spark = get_session("test", master="local[1]")
frame = spark.read.parquet(sys.argv[1]).where("x > 0")
print(InputTable(DataConfig(), lambda: spark, frame=frame).fingerprint(frame)["digest"])
"""


@pytest.mark.spark
@pytest.mark.slow
def test_a_frame_of_files_is_recognised_in_another_process(spark: SparkSession, table: Path) -> None:
    command = [sys.executable, "-c", _PRINT, str(table)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    frame = spark.read.parquet(str(table)).where("x > 0")
    assert done.stdout.strip() == fingerprint(spark, frame=frame)["digest"]


@pytest.mark.spark
def test_a_source_that_does_not_tell_its_state_needs_a_version(spark: SparkSession, tmp_path: Path) -> None:
    options = {"url": f"jdbc:derby:{tmp_path}/db;create=true", "dbtable": "t"}
    spark.range(3).write.format("jdbc").options(**options).save()
    jdbc = spark.read.format("jdbc").options(**options).load()
    for frame in (jdbc, jdbc.union(spark.range(3))):
        with pytest.raises(InputError, match=r"reads from JDBCRelation.*data\.version="):
            fingerprint(spark, frame=frame)
    first, second = (fingerprint(spark, frame=jdbc, version=version) for version in ("1", "2"))
    assert first == fingerprint(spark, frame=jdbc, version="1") and first != second


def run_of(folder: Path, uri: str | None, **data: Any) -> Run:
    config = Config(data=DataConfig(**data))
    no_spark: Any = None
    return Run(StageRunner(str(folder), {}), config, no_spark, InputTable(config.data, no_spark, uri))


def test_tables_of_other_names_have_other_folders(tmp_path: Path) -> None:
    tables = [
        ("main.a.cells", "table"),
        ("main.b.cells", "table"),
        ("cells", "table"),
        ("/d/cells.v1.parquet", "parquet"),
    ]
    tables += [("/d/cells.v2.parquet", "parquet"), ("s3://b/d/cells.csv", "parquet"), ("/d/what is #1?/", "parquet")]
    names = [run_of(tmp_path, uri, format=form).name_of("query", "queries", None) for uri, form in tables]
    assert names[:3] == ["queries-main.a.cells", "queries-main.b.cells", "queries-cells"]
    assert names[3:] == ["queries-cells.v1", "queries-cells.v2", "queries-cells.csv", "queries-what is #1?"]


@pytest.mark.parametrize(
    "name", ["model", "Model", "rows", "embeddings", "", ".", "..", "a/b", "/a", ".x", "_x", "a\nb"]
)
def test_a_name_takes_no_other_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="choose another name with --name"):
        run_of(tmp_path, "/d/t").name_of("embed", "embeddings", name)


def test_a_frame_without_a_name_and_what_another_command_published(tmp_path: Path) -> None:
    run = run_of(tmp_path, None)
    with pytest.raises(InputError, match="a DataFrame and has no name"):
        run.name_of("query", "queries", None)
    assert run.name_of("embed", "embeddings", "embeddings", own=True) == "embeddings"
    with run.folder.build("new", {"config": {"query": {}}, "inputs": {}}):
        pass
    assert run.name_of("query", "queries", "new") == "new"
    with pytest.raises(InputError, match="'new' was published by another command"):
        run.name_of("embed", "embeddings", "new")


def test_other_settings_than_published_ones_are_refused_before_spark_starts(tmp_path: Path) -> None:
    run = run_of(tmp_path, "/d/t", format="parquet")
    with run.folder.build("neighbours", run.spec("neighbours", "random_state", rows="x")):
        pass
    run.check_settings("rows", "neighbours")
    neighbours = dataclasses.replace(run.config.neighbours, target_recall=0.5)
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, neighbours=neighbours))
    other.check_settings("rows")
    with pytest.raises(ArtifactError, match=r"config\.neighbours\.target_recall: .* -> 0\.5"):
        other.check_settings("rows", "neighbours")
    other.runner.overwrite = True
    other.check_settings("rows", "neighbours")
