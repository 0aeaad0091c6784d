"""Which columns of a table are its features, which are not and why, and what in that choice looks like a mistake."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Sequence
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark.config import DataConfig, listed
from ivis_spark.errors import InputError, advice
from ivis_spark.spark.rows.columns import FEATURES, feature_names
from ivis_spark.spark.rows.identity import files_of

log = logging.getLogger(__name__)

_SAMPLE_ROWS, _SAMPLE_CELLS = 1000, 200_000
_MOST_SUSPECTS = 20  # columns of a kind that are then read whole
_FEWEST_IDS = 10  # fewer whole numbers differ by chance
_UNIQUE_SHARE = 0.95  # of an estimate with an error of 2 %
_NAMES_SHOWN = 20
# A cell that is a number, for Python and Java alike.
_NUMBER = r"^\s*[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[nN][aA][nN]|[iI]nf(inity)?)\s*$"


def explain_columns(table: DataFrame, config: DataConfig) -> dict[str, str]:
    """Say which columns are features and which are not, and warn of those that look like a mistake.

    Runs on: driver. Reads at most 1,000 rows where the features were not named, and all of the columns that then look
    like ids or like numbers with a few bad cells among them.

    Args:
        table: The user's table.
        config: Which columns were named.

    Returns:
        By the name of each column that is not a feature, the reason.

    Raises:
        InputError: if a feature that was named is text; shows a cell that is not a number.
    """
    _refuse_text(table, config)
    features = feature_names(table.schema, config)
    named = config.features_col or config.feature_cols
    others = "not named as a feature" if named else f"column {FEATURES!r} is used" if features == (FEATURES,) else ""
    left_out = {
        field.name: _reason(field, config, others)
        for field in table.schema.fields
        if field.name not in (*features, config.indices_col)
    }
    if not others:
        _warn_of_partitions(table, features)
        _warn_of_ids(table, features)
        text = [name for name in left_out if isinstance(table.schema[name].dataType, T.StringType)]
        keys = (*config.keys, config.label_col)
        for name, fault in _text_faults(table, [name for name in text if name not in keys]).items():
            left_out[name] = fault
            log.warning("column %r is not among the features: %s", name, fault)
    shown = [f"{name} ({reason})" for name, reason in left_out.items()]
    log.info("features: %s; left out: %s", listed(features, _NAMES_SHOWN), listed(shown, _NAMES_SHOWN) or "nothing")
    return left_out


def _reason(field: T.StructField, config: DataConfig, others: str) -> str:
    if field.name in config.keys:
        return "the id"
    if field.name == config.label_col:
        return "the label"
    return others or f"{field.dataType.simpleString()}, not a number"


def _warn_of_partitions(table: DataFrame, features: Sequence[str]) -> None:
    """Warn of features that are partition columns: folders like day=1, which tell how a table is stored."""
    folders = {
        part.partition("=")[0].lower() for uri in files_of(table)[:1] for part in uri.split("/")[:-1] if "=" in part
    }
    partition_columns = [name for name in features if name.lower() in folders]
    if partition_columns:
        log.warning(
            advice(
                "%s: partition columns of the table are used as features. If this is not intended, set the features "
                "with --feature-cols"
            ),
            listed(partition_columns),
        )


def _warn_of_ids(table: DataFrame, features: Sequence[str]) -> None:
    """Warn of features that are whole numbers, another in every row."""
    numbered, columns = _numbered(table, features)
    sample = _sample(numbered, columns)
    like_ids = [(name, column) for name, column in zip(features, columns, strict=True) if _like_ids(sample, column)]
    suspects = dict(like_ids[:_MOST_SUSPECTS])
    if not suspects:
        return
    counts = [F.approx_count_distinct(column, 0.02).alias(column) for column in suspects.values()]
    counted = numbered.agg(F.count(F.lit(1)).alias("rows"), *counts).first()
    unique = [
        name for name, column in suspects.items() if counted and counted[column] >= _UNIQUE_SHARE * counted["rows"]
    ]
    if unique:
        log.warning(
            advice(
                "%s: columns of distinct whole numbers, possibly ids, are used as features. If they are ids, set the "
                "id with --id-col, or the features with --feature-cols"
            ),
            listed(unique),
        )


def _like_ids(sample: list[Any], column: str) -> bool:
    values = [row[column] for row in sample if row[column] is not None and row[column] == row[column]]
    whole = all(value == value // 1 for value in values)
    return whole and len(values) >= _FEWEST_IDS and len(set(values)) == len(values)


def _refuse_text(table: DataFrame, config: DataConfig) -> None:
    text = {field.name for field in table.schema.fields if isinstance(field.dataType, T.StringType)}
    for name, fault in _text_faults(table, [name for name in config.feature_cols if name in text]).items():
        raise InputError(f"feature column {name!r} is not numeric: {fault}")


def _text_faults(table: DataFrame, names: Sequence[str]) -> dict[str, str]:
    """Say, of text columns whose cells are numbers for the most part, how many are not and how one looks."""
    if not names:
        return {}
    numbered, columns = _numbered(table, names)
    sample = _sample(numbered, columns)
    faults: dict[str, str] = {}
    for name, column in zip(names, columns, strict=True):
        texts = [row[column] for row in sample if row[column] is not None]
        if (
            len(faults) == _MOST_SUSPECTS
            or not texts
            or 2 * sum(re.match(_NUMBER, text) is not None for text in texts) < len(texts)
        ):
            continue
        bad = F.col(column).isNotNull() & ~F.col(column).rlike(_NUMBER)
        example: Column = F.min(F.when(bad, F.col(column)))
        counted = numbered.agg(F.count(column), F.count(F.when(bad, 1)), example).collect()[0]
        faults[name] = "text, although all its cells are numbers: cast it"
        if counted[1]:
            text = str(counted[2])[:40]
            setting = shlex.quote(f"data.options={{nullValue: {json.dumps(text, ensure_ascii=False)}}}")
            verb = "is" if counted[1] == 1 else "are"
            faults[name] = (
                f"text, since {counted[1]:,} of {counted[0]:,} cells {verb} not a number, for example {text!r}. "
                f"Correct them, or read them as null: --set {setting}"
            )
    return faults


def _sample(numbered: DataFrame, columns: Sequence[str]) -> list[Any]:
    """Return the first rows, fewer of very wide tables."""
    rows = max(2 * _FEWEST_IDS, min(_SAMPLE_ROWS, _SAMPLE_CELLS // len(columns)))
    return numbered.select(*columns).limit(rows).collect()


def _numbered(table: DataFrame, names: Sequence[str]) -> tuple[DataFrame, list[str]]:
    """Return a frame whose columns are called by number, and how some of them are called then."""
    numbered = table.toDF(*[f"c{place}" for place in range(len(table.columns))])
    return numbered, [f"c{table.columns.index(name)}" for name in names]
