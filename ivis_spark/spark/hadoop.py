"""Hadoop's filesystems, through which Spark reads tables: whether Spark has that of a URI, and how to get it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ivis_spark import storage
from ivis_spark.errors import DependencyError
from ivis_spark.spark.causes import deepest_cause

# Maven's names of Hadoop's filesystems, by scheme.
_JARS = {
    "s3a": "org.apache.hadoop:hadoop-aws:{version}",
    **dict.fromkeys(("abfs", "abfss"), "org.apache.hadoop:hadoop-azure:{version}"),
    "gs": "com.google.cloud.bigdataoss:gcs-connector:hadoop3-VERSION",
}
_OF_EVERY_SPARK = ("file", "dbfs")
_MISSING = ("ClassNotFoundException", "No FileSystem for scheme")


def check_filesystems(spark: Any, uris: Iterable[str | None]) -> None:
    """Refuse URIs for which Spark has no filesystem. Reaches no storage. Runs on: driver.

    Args:
        spark: A classic session.
        uris: What will be read or written; None is left out.

    Raises:
        DependencyError: naming the URI and the jar that is missing.
    """
    for uri in uris:
        scheme = None if uri is None else scheme_of(uri)
        if scheme is None or scheme in _OF_EVERY_SPARK:
            continue
        try:
            settings = spark.sparkContext._jsc.hadoopConfiguration()
            spark._jvm.org.apache.hadoop.fs.FileSystem.getFileSystemClass(scheme, settings)
        except Exception as err:  # noqa: BLE001 - Databricks may not let Java be asked, and brings the jars
            if any(text in str(err) for text in _MISSING):
                raise DependencyError(f"{uri}: {deepest_cause(err)}. {how_to_reach(spark, scheme)}") from None


def how_to_reach(spark: Any, scheme: str) -> str:
    """Return what to do if Spark does not reach URIs of a scheme."""
    if scheme == "s3":
        return "Write s3a:// for s3://, which Spark has no filesystem for outside EMR"
    version = spark._jvm.org.apache.hadoop.util.VersionInfo.getVersion()
    jar = _JARS.get(scheme, "the jar of its filesystem").format(version=version)
    return (
        f"Spark reads through Hadoop: pass --spark-conf spark.jars.packages={jar} (with spark-submit: --packages "
        f"{jar}), and its credentials as --spark-conf spark.hadoop.fs.*"
    )


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI or path."""
    return storage.normalise_uri(uri).partition(":")[0]
