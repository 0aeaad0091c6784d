"""Tables opened and written by Spark. A path is taken as it is: it is a pattern only where the user asks for one."""

from __future__ import annotations

import dataclasses
import functools
import logging
import posixpath
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from py4j.protocol import Py4JError
from pyspark.sql import DataFrame, DataFrameReader, SparkSession
from pyspark.sql import types as T

from ivis_spark import storage
from ivis_spark.config import DataConfig
from ivis_spark.errors import InputError
from ivis_spark.spark.causes import deepest_cause

log = logging.getLogger(__name__)

# Spark's own switch, which `spark.read.table` uses: without it *, ?, [ and { in a path select other paths. It is good
# for a single path: each of several that could be patterns is then read as often as there are of them.
_LITERAL = {"__globPaths__": "false"}
_CASE = "spark.sql.caseSensitive"
_COMMIT_VERSION = "mapreduce.fileoutputcommitter.algorithm.version"  # of Hadoop's committer; others pass over it
_PATTERN_CHARACTERS = frozenset("*?[]{}\\")


def read_table(spark: SparkSession, uri: str, config: DataConfig) -> DataFrame:
    """Open a table. Runs on: driver.

    See `read_files` for a part of one.

    Raises:
        InputError: if nothing is there, or it is not of the format said.
    """
    inferred = {"inferSchema": True} if config.format == "csv" else {}
    reader = _reader(spark, config, **inferred)
    try:
        if config.format == "table":
            frame = reader.table(uri)
        else:
            with _cases_apart(spark):
                frame = reader.load(storage.normalise_uri(uri))
        frame.schema  # noqa: B018 - reads the footers, so that a wrong format is known now
        if _differ_in_case(frame.columns):
            log.info("columns of %s differ in case only: %s is set for this session", uri, _CASE)
            spark.conf.set(_CASE, "true")
        return frame
    except Exception as err:
        reason, hint = str(deepest_cause(err)), ""
        encoding = _encoding_of_names(spark)
        if encoding != "UTF-8":
            hint = (
                f", or start Spark with LC_ALL=C.UTF-8 if names are not ASCII, because its Java reads them as "
                f"{encoding}"
            )
        if "Relative path in absolute URI" in reason:
            hint += (
                ", or rename files that have a colon in their names: Hadoop's default local filesystem cannot read "
                "them (--spark-conf spark.hadoop.fs.file.impl=org.apache.hadoop.fs.RawLocalFileSystem can)"
            )
        if "NANOS" in reason:
            hint += (
                ", or read timestamps in nanoseconds as whole numbers: "
                "--spark-conf spark.sql.legacy.parquet.nanosAsLong=true; or write them in microseconds"
            )
        if _PATTERN_CHARACTERS & set(uri) and config.format != "table" and not config.glob:
            hint += ", or pass --set data.glob=true if this is a pattern"
        raise InputError(
            f"input {uri!r} cannot be read as {config.format}: {reason}. Check --input, and set the format with "
            f"--format{hint}"
        ) from err


@contextmanager
def exact_names(frame: DataFrame) -> Iterator[None]:
    """Let Spark tell the columns of a frame apart where some differ in case only, as it does not do by default."""
    if not _differ_in_case(frame.columns):
        yield
        return
    with _cases_apart(frame.sparkSession):
        yield


def _differ_in_case(names: Sequence[str]) -> bool:
    return len({name.lower() for name in names}) < len(set(names))


@contextmanager
def _cases_apart(spark: SparkSession) -> Iterator[None]:
    before = spark.conf.get(_CASE)
    spark.conf.set(_CASE, "true")
    try:
        yield
    finally:
        spark.conf.set(_CASE, str(before))


def read_files(table: DataFrame, config: DataConfig, files: Sequence[str]) -> DataFrame:
    """Open some files of a table that `read_table` opened, with its schema and its partition columns."""
    reader = _reader(table.sparkSession, dataclasses.replace(config, glob=True))
    roots = set(map(storage.normalise_uri, roots_of(table)))
    # Folders below the one that was opened, like day=1, stay columns; Spark has none below several that were.
    if "basepath" not in map(str.lower, config.options) and len(roots) == 1 and not roots & set(files):
        reader = reader.option("basePath", *roots)
    return _load(reader.schema(table.schema), files)


def roots_of(table: DataFrame) -> list[str]:
    """Return the URIs of the files and folders by which the sources of a table were opened."""
    frame: Any = table
    if not hasattr(frame, "_jdf"):  # Spark Connect
        return []
    leaves = frame._jdf.queryExecution().analyzed().collectLeaves()
    uris = []
    for number in range(leaves.size()):
        with suppress(Py4JError):  # not a relation of files
            roots = leaves.apply(number).relation().location().rootPaths()
            uris += [roots.apply(place).toString() for place in range(roots.size())]
    return uris


def read_parquet(spark: SparkSession, *uris: str, schema: T.StructType | None = None) -> DataFrame:
    """Open Parquet files or folders of ours."""
    reader = spark.read.format("parquet")
    return _load(reader if schema is None else reader.schema(schema), uris)


def write_parquet(frame: DataFrame, uri: str, partition_by: Sequence[str] = (), *, repeatable: bool = True) -> None:
    """Write Parquet files of ours. Runs on: driver.

    A task moves its files into the folder when it ends. By default the driver would move them at the end of the job,
    one after the other, and object stores copy what is moved. A job that fails would then leave no file there, which
    is not needed here: such a folder is never read. A task that runs again writes files of the same names, but with
    `partition_by` not in the same folders if it gets other rows.

    Args:
        frame: The table.
        uri: A folder that is not there yet.
        partition_by: Columns whose values become folders.
        repeatable: Whether a task that runs again gets the same rows: if not, the driver moves files in folders.

    Raises:
        AnalysisException: Spark's own, if the folder is there.
    """
    version = "2" if repeatable or not partition_by else "1"
    frame.write.partitionBy(*partition_by).option(_COMMIT_VERSION, version).parquet(uri)


def _load(reader: DataFrameReader, paths: Sequence[str]) -> DataFrame:
    """Open paths as they are."""
    characters = set("".join(path.partition("://")[2] for path in paths))
    if len(paths) == 1 or not _PATTERN_CHARACTERS & characters:
        return reader.options(**_LITERAL).load(list(paths))
    if ":" not in characters:
        return reader.load([re.sub(r"[*?\[\]{}\\]", r"\\\g<0>", path) for path in paths])
    # A pattern of Hadoop's cannot hold a colon.
    return functools.reduce(DataFrame.unionAll, [reader.options(**_LITERAL).load(path) for path in paths])


def input_files(frame: DataFrame) -> list[str]:
    """Return the URIs of a frame's files, as `as_named` does."""
    return as_named(frame.inputFiles())


def as_named(uris: Iterable[str]) -> list[str]:
    """Return URIs of files as the files are named: Spark encodes special characters, some other sources do not.

    One file of each folder that has any such is asked for, as a source does the one or the other.
    """
    given = [(str(uri), urllib.parse.unquote(str(uri))) for uri in uris]
    examples = {posixpath.dirname(uri): decoded for uri, decoded in given if decoded != uri}
    there = storage.in_parallel(lambda decoded: storage.exists(*storage.filesystem(decoded)), examples.values())
    encoded = {folder for folder, is_there in zip(examples, there, strict=True) if is_there}
    return [decoded if posixpath.dirname(uri) in encoded else uri for uri, decoded in given]


def _encoding_of_names(spark: SparkSession) -> str:
    """Return the encoding of file names on the driver, which Java takes from the locale; UTF-8 if it does not say."""
    jvm: Any = spark.sparkContext._jvm
    with suppress(Exception):  # it must not hide the error that it may explain
        return str(jvm.java.lang.System.getProperty("sun.jnu.encoding"))
    return "UTF-8"


def _reader(spark: SparkSession, config: DataConfig, **defaults: Any) -> DataFrameReader:
    header = {"header": True} if config.format == "csv" else {}
    literal = {} if config.glob else _LITERAL
    options = {**header, **defaults, **literal, **config.options}
    # A path like that of the table: Spark takes a plain one for that of its default filesystem.
    places = {name: storage.normalise_uri(str(options[name])) for name in options if name.lower() == "basepath"}
    return spark.read.format(config.format).options(**{**options, **places})
