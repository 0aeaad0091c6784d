"""Rows whose labels training never sees, so that what it predicts for them can be measured."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

_PARTS = 10_000


def is_held_out(key: Column, share: float, random_state: int) -> Column:
    """Return whether a row is held out, by a hash of its id: the same in every stage and for any partitioning."""
    return F.pmod(F.xxhash64(F.lit("held out"), key, F.lit(random_state)), F.lit(_PARTS)) < round(share * _PARTS)


def hide_labels(rows: DataFrame, share: float, random_state: int) -> DataFrame:
    """Return rows whose `label` is missing where it is held out: null, or of arrays NaN in every place."""
    if "label" not in rows.columns or not share:
        return rows
    label, is_array = F.col("label"), isinstance(rows.schema["label"].dataType, T.ArrayType)
    hidden = F.transform(label, lambda _: F.lit(float("nan"))) if is_array else F.lit(None)
    return rows.withColumn("label", F.when(is_held_out(F.col("id"), share, random_state), hidden).otherwise(label))
