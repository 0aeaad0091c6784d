"""Storage for which Spark lacks the jar is refused with the jar's name, before any table is read."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import s3_bucket
from pyspark.sql import SparkSession

from ivis_spark import storage
from ivis_spark.cli import main
from ivis_spark.spark.hadoop import check_filesystems

pytestmark = pytest.mark.spark


@pytest.mark.parametrize("where", ["output", "input"])
def test_s3_without_the_jar(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    table = tmp_path / "cells.parquet"
    pq.write_table(pa.table({"a": [0.0, 1.0], "b": [1.0, 0.0]}), table)
    version = spark._jvm.org.apache.hadoop.util.VersionInfo.getVersion()
    with s3_bucket(monkeypatch) as bucket:
        storage.put_file(str(table), f"{bucket}/cells.parquet")
        bucket = bucket.replace("s3:", "s3a:")
        places = {"input": str(table), "output": str(tmp_path / "run")}
        places[where] = f"{bucket}/{'cells.parquet' if where == 'input' else 'run'}"
        code = main(["run", "--quiet", "--input", places["input"], "--output", places["output"]])
    line = capsys.readouterr().err
    assert code == 2 and line.count("\n") == 1
    assert f"{places[where]}: ClassNotFoundException: Class org.apache.hadoop.fs.s3a.S3AFileSystem not found" in line
    assert f"spark.jars.packages=org.apache.hadoop:hadoop-aws:{version}" in line


def test_what_spark_reaches(spark: SparkSession, tmp_path: Path) -> None:
    check_filesystems(spark, [None, str(tmp_path), f"file://{tmp_path}", "dbfs:/a", "hdfs://host/a"])


def test_java_that_may_not_be_asked() -> None:
    """As on shared clusters of Databricks, which bring all jars."""
    session = mock.MagicMock()
    session._jvm.org.apache.hadoop.fs.FileSystem.getFileSystemClass.side_effect = RuntimeError("is not whitelisted")
    check_filesystems(session, ["s3://bucket/a"])
