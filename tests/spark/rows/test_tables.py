"""Tables opened by path: whatever the path is called, it is that table and no other one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nasty_names import PATHS
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ivis_spark import storage
from ivis_spark.config import DataConfig
from ivis_spark.errors import InputError
from ivis_spark.spark.rows import tables

pytestmark = pytest.mark.spark

PARQUET = DataConfig(format="parquet")


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": [value]}), path)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_literal_whatever_its_characters(spark: SparkSession, tmp_path: Path, name: str) -> None:
    """As folder, as file, as value of a partition; beside others that the name would match as a pattern."""
    table = tmp_path / name
    part = table / f"day={name.replace('%', '%25')}"
    file_name = name.replace(":", ";")  # see below
    write(part / f"{file_name}.parquet", 7)
    for other in ("a1", "ab", "a", "axx", "x", "y"):
        write(tmp_path / other / "day=other" / "part.parquet", 0)
    frame = tables.read_table(spark, str(table), PARQUET)
    assert [tuple(row) for row in frame.collect()] == [(7, name)]
    files = tables.input_files(frame)
    assert [storage.digest_file(file)["bytes"] > 0 for file in files] == [True]
    again = tables.read_files(frame, PARQUET, files)
    assert [tuple(row) for row in again.collect()] == [(7, name)]
    only = tables.read_table(spark, files[0], PARQUET)
    assert [tuple(row) for row in only.collect()] == [(7,)]
    write(part / f"{file_name} 2.parquet", 8)
    frame = tables.read_table(spark, str(table), PARQUET)
    files = tables.input_files(frame)
    again = tables.read_files(frame, PARQUET, files)
    assert sorted(row.x for row in again.collect()) == sorted(row.x for row in frame.collect()) == [7, 8]
    both = tables.read_parquet(spark, *files)
    assert sorted(row.x for row in both.collect()) == [7, 8]
    out = storage.join(storage.normalise_uri(str(tmp_path / "out")), name)
    only.withColumn("day", F.lit(name)).write.partitionBy("day").parquet(out)
    assert [tuple(row) for row in tables.read_parquet(spark, out).collect()] == [(7, name)]
    [(written, _)] = storage.list_files(out)
    [file] = tables.input_files(tables.read_parquet(spark, out))
    assert storage.filesystem(file)[1] == storage.filesystem(storage.join(out, written))[1]
    assert os.path.exists(storage.filesystem(file)[1])


def test_names_are_asked_for_once_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a source encoded them, as Spark does, or not; also where a name looks encoded."""
    for folder in ("plain", "with a space", "100%25"):
        for number in range(20):
            write(tmp_path / folder / f"part%20 {number}.parquet", number)
    files = [f"file://{path}" for path in sorted(tmp_path.glob("*/*"))]
    asked: list[str] = []
    exists = storage.exists
    monkeypatch.setattr(storage, "exists", lambda fs, path: asked.append(path) or exists(fs, path))  # type: ignore[func-returns-value]
    assert tables.as_named(urllib.parse.quote(file, safe=":/") for file in files) == files
    assert tables.as_named(iter(files)) == files
    assert len(asked) == 6


def test_a_finished_task_s_files_are_in_place_while_others_run(spark: SparkSession, tmp_path: Path) -> None:
    """The second task waits for the first one's file: the driver moves none when all are done."""
    folder = tmp_path / "t"

    def wait(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch["id"][0].as_py():
                deadline = time.monotonic() + 60
                while not list(folder.glob("day=0/part-00000-*.parquet")):
                    assert time.monotonic() < deadline, list(folder.rglob("*.parquet"))
                    time.sleep(0.05)
            yield batch

    frame = spark.range(0, 2, 1, 2).select("id", F.col("id").alias("day"))
    tables.write_parquet(frame.mapInArrow(wait, frame.schema), str(folder), ["day"])
    assert sorted(path.name[:10] for path in folder.glob("day=*/*.parquet")) == ["part-00000", "part-00001"]


def test_a_colon_in_a_file_name_is_what_hadoop_cannot_read(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path / "t" / "a:b.parquet", 1)
    with pytest.raises(InputError, match="rename files that have a colon in their names"):
        tables.read_table(spark, str(tmp_path / "t"), PARQUET)


def test_a_pattern_is_one_only_when_asked_for(spark: SparkSession, tmp_path: Path) -> None:
    for value in (1, 2):
        write(tmp_path / f"t{value}" / "part.parquet", value)
    pattern = str(tmp_path / "t?")
    with pytest.raises(InputError, match=r"or pass (--set )?data\.glob=true"):
        tables.read_table(spark, pattern, PARQUET)
    globbed = DataConfig(format="parquet", glob=True)
    frame = tables.read_table(spark, pattern, globbed)
    assert sorted(row.x for row in frame.collect()) == [1, 2]
    files = tables.input_files(frame)
    assert sorted(row.x for row in tables.read_files(frame, globbed, files).collect()) == [1, 2]
    with pytest.raises(InputError) as refused:
        tables.read_table(spark, str(tmp_path / "nothing"), PARQUET)
    assert "glob" not in str(refused.value)


@pytest.mark.parametrize(
    ("path", "options", "columns"),
    [
        ("t", {}, ["x", "day", "hour"]),
        ("t/day=01", {}, ["x", "hour"]),
        ("t/day=01", {"basePath": "t"}, ["x", "day", "hour"]),
        ("t/day=01", {"BASEPATH": "t"}, ["x", "day", "hour"]),
        ("t/day=01/hour=1/a.parquet", {"basePath": "t"}, ["x", "day", "hour"]),
        ("t/day=01/hour=1/a.parquet", {}, ["x"]),
        ("t/day=0*", {}, ["x", "hour"]),
        ("t/*/*", {}, ["x"]),
        ("t/*/*/*.parquet", {}, ["x"]),
        ("t/*/hour=1", {"basePath": "t/"}, ["x", "day", "hour"]),
        ("t", {"recursiveFileLookup": "true"}, ["x"]),
        ("t/", {"pathGlobFilter": "a*"}, ["x", "day", "hour"]),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_files_of_a_table_have_its_columns(
    spark: SparkSession, tmp_path: Path, path: str, options: dict[str, str], columns: list[str], together: bool
) -> None:
    for value, place in enumerate(("day=01/hour=1/a", "day=01/hour=2/b", "day=x/hour=1/a", "day=x/hour=3/a")):
        write(tmp_path / "t" / f"{place}.parquet", value)
    options = {name: str(tmp_path / value) if value.startswith("t") and name.lower() == "basepath" else value
               for name, value in options.items()}  # fmt: skip
    config = DataConfig(format="parquet", glob="*" in path, options=options)
    frame = tables.read_table(spark, str(tmp_path / path), config)
    files = tables.input_files(frame)
    units = [tables.read_files(frame, config, each) for each in ([files] if together else [[file] for file in files])]
    assert {tuple(unit.columns) for unit in units} == {tuple(frame.columns)} == {tuple(columns)}
    rows = [tuple(row) for unit in units for row in unit.collect()]
    assert sorted(rows) == sorted(map(tuple, frame.collect())) and rows


_READ = """
import sys
from ivis_spark.config import DataConfig
from ivis_spark.spark.rows import tables
from ivis_spark.spark.session import get_session
spark = get_session("test", master="local[1]")
print(tables.read_table(spark, sys.argv[1], DataConfig(format="parquet")).count(), "rows")
"""


@pytest.mark.slow
def test_names_beyond_ascii_in_the_plainest_locale(tmp_path: Path) -> None:
    write(tmp_path / "größe" / "日本.parquet", 1)
    command = [sys.executable, "-c", _READ, str(tmp_path / "größe")]
    done = subprocess.run(command, env={**os.environ, "LC_ALL": "POSIX"}, capture_output=True, check=False)
    assert done.stdout.decode().strip() == "1 rows", done.stderr.decode()[-2000:]


def test_timestamps_in_nanoseconds_come_with_what_helps(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(pa.table({"t": pa.array([1], pa.timestamp("ns"))}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"--spark-conf spark\.sql\.legacy\.parquet\.nanosAsLong=true"):
        tables.read_table(spark, str(tmp_path), PARQUET)
