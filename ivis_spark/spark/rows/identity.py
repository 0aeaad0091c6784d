"""What identifies the content of a table: its files, or the plan that makes it from things that have an identity."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.sql import DataFrame, SparkSession

from ivis_spark import storage
from ivis_spark.config import without_secrets
from ivis_spark.errors import InputError
from ivis_spark.spark.rows import tables

_FIELDS_SHOWN = "spark.sql.debug.maxToStringFields"
# Leaves of a plan whose text says all that there is to know of them.
_SPELLED_OUT = frozenset({"Range", "OneRowRelation", "CTERelationRef"})
# Functions that stand in a plan by their name only.
_CODE = re.compile(
    r'"class":"[^"]*(UDF|UDAF|UDTF|Python|Pandas|Arrow|Aggregator|Typed|MapPartitions|MapElements|MapGroups|CoGroup)'
)


def content_of(table: DataFrame) -> dict[str, Any]:
    """Return what differs whenever the content of a table does, and is the same in every process while it does not.

    Runs on: driver; lists the files, reads none.

    Args:
        table: Any frame; whether it is cached does not matter.

    Returns:
        `{"files", "bytes", "digest"}`: how many files it is made from, and one digest of their full paths, sizes and
        times of change and of the plan over them.

    Raises:
        InputError: if a source of it has no identity that Spark knows of, like a database behind JDBC.
    """
    plan = _plan(table)
    leaves = plan.collectLeaves()
    sources = [_source(table.sparkSession, leaves.apply(number)) for number in range(leaves.size())]
    with _full_text(table.sparkSession):
        text = plan.canonicalized().toString()
    code = [table.semanticHash()] if _CODE.search(plan.toJSON()) else []  # of this process only
    files = [file for _, files in sources for file in files]
    digest = storage.fingerprint([text, code, sources])
    return {"files": len(files), "bytes": sum(size for _, size, _ in files), "digest": digest}


def files_of(table: DataFrame) -> list[str]:
    """Return the URIs of the files that a table is made from, also where it is cached."""
    leaves = _plan(table).collectLeaves()
    return [uri for number in range(leaves.size()) for uri in _files(leaves.apply(number)) or []]


def _plan(table: DataFrame) -> Any:
    frame: Any = table
    return frame._jdf.queryExecution().analyzed()


def _source(spark: SparkSession, leaf: Any) -> tuple[list[Any], list[list[Any]]]:
    """Return what identifies a leaf of a plan, and its files."""
    kind = leaf.getClass().getSimpleName()
    if kind in _SPELLED_OUT:
        return [kind], []
    if kind == "LocalRelation":
        return [kind, leaf.data().size(), leaf.data().hashCode()], []
    if kind in ("LogicalRDD", "ExternalRDD"):  # rows that this program made: the same while it runs
        return [kind, spark.sparkContext.applicationId, leaf.rdd().id()], []
    files = _files(leaf)
    if files is None:
        name = leaf.relation().toString() if kind == "LogicalRelation" else leaf.getClass().getName()
        raise InputError(
            f"the input reads from {name}, which does not tell when its content changes, so a rerun could take old "
            "results for new: name the state that it is in with --set data.version=... (any text that you change when "
            "the content does)"
        )
    options = _options(leaf.relation().options()) if kind == "LogicalRelation" else {}
    return [kind, options], storage.describe_files(files)


def _options(scala_map: Any) -> dict[str, str]:
    """Return the options of a relation, a map of Scala's, without passwords."""
    options, entries = {}, scala_map.iterator()
    while entries.hasNext():
        entry = entries.next()
        options[str(entry._1())] = str(entry._2())
    return without_secrets(options)


def _files(leaf: Any) -> list[str] | None:
    """Return the files of a leaf of a plan, or the folder of them, or None if it does not read files."""
    if leaf.getClass().getSimpleName() == "HiveTableRelation":
        return tables.as_named([leaf.tableMeta().location().toString()])
    for path in (("relation", "location", "inputFiles"), ("table", "fileIndex", "inputFiles")):
        value = leaf
        try:
            for name in path:
                value = getattr(value, name)()
        except Py4JJavaError:
            raise
        except Py4JError:  # there is no such method
            continue
        return tables.as_named(value)
    return None


@contextmanager
def _full_text(spark: SparkSession) -> Iterator[None]:
    """Let the text of a plan name all of its columns, in any thread of Python."""
    # Text is limited by the session active in Java's thread, of which new threads and those after an interrupt have
    # none. This is how Python makes one active in every version of Spark.
    spark.createDataFrame([], "nothing int")
    before = spark.conf.get(_FIELDS_SHOWN)
    spark.conf.set(_FIELDS_SHOWN, str(2**31 - 1))
    try:
        yield
    finally:
        spark.conf.set(_FIELDS_SHOWN, str(before))
