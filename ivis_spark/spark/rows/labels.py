"""Labels of rows: what kind they are, which classes there are, and their numbers.

Text, booleans and dates are classes, stored in the stage `rows` as their numbers 0, 1, 2, ... in order. Numbers stay
as they are, since they may be quantities; where training takes them for classes, they are numbered for the triplets.
Either way the values behind the numbers are among the facts.
"""

from __future__ import annotations

import logging
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark.errors import InputError, advice
from ivis_spark.spark.rows.columns import FEATURES, ID, LABEL
from ivis_spark.spark.session import describe_job

log = logging.getLogger(__name__)

NAMES, NUMBERS, ARRAYS = "names", "numbers", "arrays"
MOST_CLASSES = 100_000  # the driver holds their values, and a model one output for each


def label_facts(table: DataFrame, name: str, kind: T.DataType) -> dict[str, Any]:
    """Return what the labels of a table are. Runs on: driver; two jobs that read `label` alone.

    Args:
        table: `label`, null where a row has none.
        name: What the user calls the column, for messages.
        kind: Its type in the user's table.

    Returns:
        `kind`: names, numbers or arrays; `type`: of the user's column; `count`: different labels; `unlabelled`: rows
        without one; `width`: numbers a row; `values`: the labels in order, names as text, or None if they are arrays or
        more than 100,000 numbers.

    Raises:
        InputError: if labels are infinite, arrays differ in length, there are too many names, or no row has a label.
    """
    describe_job(table.sparkSession, "ingest: list labels")
    facts: dict[str, Any] = {"type": kind.simpleString(), "width": 1, "values": None}
    if isinstance(kind, T.ArrayType):
        return {**facts, "kind": ARRAYS, **_array_facts(table, name)}
    facts["kind"] = NUMBERS if isinstance(kind, T.NumericType) else NAMES
    counts = table.groupBy(LABEL).count()
    known = F.col(LABEL).isNotNull()
    infinite = _infinite(F.col(LABEL)) if facts["kind"] == NUMBERS else F.lit(False)
    row = counts.agg(
        F.sum(F.when(known, 1)).alias("labels"),
        F.sum(F.when(~known, F.col("count"))).alias("gone"),
        F.sum(F.when(infinite, F.col("count"))).alias("infinite"),
    ).collect()[0]
    _refuse_infinite(name, row["infinite"])
    facts |= {"count": row["labels"] or 0, "unlabelled": row["gone"] or 0}
    if not facts["count"]:
        raise InputError(f"no row has a label in column {name!r}; remove data.label_col, or label some rows")
    if facts["count"] <= MOST_CLASSES:
        text = F.col(LABEL).cast("string") if facts["kind"] == NAMES else F.col(LABEL)
        facts["values"] = sorted(row[0] for row in counts.where(known).select(text).collect())
        if isinstance(kind, T.BooleanType):
            facts["values"] = ["false", "true"]
    elif facts["kind"] == NAMES:
        raise InputError(
            f"label column {name!r} has {facts['count']} distinct values; at most {MOST_CLASSES} classes are "
            f"supported: is it the right column?"
        )
    if facts["unlabelled"]:
        log.info("%d rows have no label in column %r", facts["unlabelled"], name)
    return facts


def check_unlabelled(facts: dict[str, Any], name: str, unlabelled: str | None) -> None:
    """Warn if a value that stands for no label seems to be misspelt: no row has it, or one that differs in case alone.

    Args:
        facts: As `label_facts` returned them.
        name: What the user calls the column.
        unlabelled: The value.
    """
    if unlabelled is None:
        return
    alike = [v for v in facts["values"] or () if isinstance(v, str) and v.strip().lower() == unlabelled.strip().lower()]
    if alike:
        log.warning(advice("label %r of column %r is a class; data.unlabelled is %r"), alike[0], name, unlabelled)
    elif not facts["unlabelled"]:
        log.warning(advice("no row has data.unlabelled=%r in column %r: all rows are labelled"), unlabelled, name)


def _array_facts(table: DataFrame, name: str) -> dict[str, Any]:
    """Return the length that all label arrays have, and how many rows lack one or hold null in it."""
    lacks = F.coalesce(F.exists(LABEL, lambda value: value.isNull()), F.lit(True))
    sizes = F.when(F.col(LABEL).isNotNull(), F.size(LABEL))
    infinite = F.sum(F.when(F.exists(LABEL, _infinite), 1))
    counted = table.agg(F.min(sizes), F.max(sizes), F.sum(F.when(lacks, 1).otherwise(0)), infinite).collect()[0]
    _refuse_infinite(name, counted[3])
    if counted[0] != counted[1] or not counted[0]:
        raise InputError(
            f"the label arrays of column {name!r} have {counted[0] or 0} to {counted[1] or 0} elements; all rows need "
            f"the same number, at least 1"
        )
    return {"count": None, "width": int(counted[0]), "unlabelled": int(counted[2])}


def _infinite(value: Column) -> Column:
    return value.cast("double").isin(float("inf"), -float("inf"))


def _refuse_infinite(name: str, rows: int | None) -> None:
    """Raise for rows whose label is infinite: no loss can be trained on them."""
    if rows:
        raise InputError(
            f"label column {name!r} holds infinity in {rows} rows: correct them, or set them to null, which means "
            f"unlabelled"
        )


def encoded(table: DataFrame, facts: dict[str, Any]) -> DataFrame:
    """Return a table whose labels are the numbers, from 0, of the facts' values: long, null without one. Lazy.

    Arrays stay as they are, but for what is missing.
    """
    if facts["kind"] == ARRAYS:  # of one length, with NaN for what is missing
        nothing = F.lit(float("nan"))
        known = F.transform(LABEL, lambda value: F.coalesce(value, nothing))
        return table.withColumn(LABEL, F.coalesce(known, F.array_repeat(nothing, facts["width"])))
    values = facts["values"]
    text = facts["kind"] == NAMES
    schema = f"value {'string' if text else table.schema[LABEL].dataType.simpleString()}, code long"
    codes = table.sparkSession.createDataFrame(list(zip(values, range(len(values)), strict=True)), schema)
    key = F.col(LABEL).cast("string") if text else F.col(LABEL)
    others = [F.col(name) for name in table.columns if name != LABEL]
    joined = table.withColumn("value", key).join(F.broadcast(codes), "value", "left")
    return joined.select(*others, F.col("code").alias(LABEL))


def needs_encoding(facts: dict[str, Any] | None) -> bool:
    """Return whether labels do not stand in the stage `rows` as the user has them."""
    return facts is not None and (facts["kind"] == NAMES or (facts["kind"] == ARRAYS and facts["unlabelled"] > 0))


def as_classes(rows: DataFrame, classes: list[Any]) -> DataFrame:
    """Return `id`, `features` and `label` of rows with class numbers, from 0, for labels that are numbers. Lazy.

    Args:
        rows: With numbers for labels.
        classes: Their values in order; others become null, which means unlabelled.
    """
    return encoded(rows.select(ID, FEATURES, LABEL), {"kind": NUMBERS, "values": classes})
