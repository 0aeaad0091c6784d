"""Which columns the points of a report can be coloured by, beside the label, and how Spark reads them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.config import listed
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import ConfigError, InputError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

log = logging.getLogger(__name__)

_MOST_COLUMNS = 12  # each adds 5 bytes a drawn row to the page
_MOST_ELEMENTS = 4
_MOST_TEXT_CHARS = 200
_SETTING = "evaluate.colour_by"


@dataclass(frozen=True)
class Wanted:
    """The requested colourings.

    Attributes:
        features: Position in `features` of the rows by the name to show.
        table: `id` and further columns, or None.
        scaler: How the features were scaled; None if they were not.
    """

    features: Mapping[str, int] = field(default_factory=dict)
    table: DataFrame | None = None
    scaler: Scaler | None = None


def find_columns(
    names: Sequence[str],
    *,
    features: Sequence[str],
    width: int,
    scaler: Scaler | None,
    kept: Sequence[str],
    read_table: Callable[[], DataFrame],
) -> Wanted:
    """Find columns among the features, else among those that were kept with the rows. Runs on: driver.

    Args:
        names: As the user named them.
        features: Names of the feature columns, or of the one array, whose elements are `name[0]`, `name[1]`, ...; none
            if the rows hold principal components.
        width: Features of a row.
        scaler: How they were scaled; values are shown as the user had them.
        kept: Names of the columns that were kept.
        read_table: Returns `id` and those columns; called only if a name is not a feature.

    Raises: ConfigError: if a name is found nowhere.
    """
    position_of = {name: place for place, name in enumerate(features)} if len(features) == width else {}
    positions, others = {}, []
    for name in names:
        element = re.fullmatch(r"(.+)\[([0-9]+)\]", name)
        if name in position_of:
            positions[name] = position_of[name]
        elif element and list(features) == [element[1]] and int(element[2]) < width:
            positions[name] = int(element[2])
        else:
            others.append(name)
    if not others:
        return Wanted(positions, scaler=scaler)
    missing = [name for name in others if name not in kept]
    if missing:
        if features:
            what = f"neither features ({listed(features)}; name[0] etc. for an array) nor"
        else:
            what = "not features, since rows hold principal components (data.keep_columns keeps numeric columns), nor"
        raise ConfigError(f"{_SETTING} names {', '.join(missing)}: {what} columns kept with the rows ({listed(kept)})")
    from ivis_spark.spark.rows.columns import quoted

    return Wanted(positions, read_table().select("id", *map(quoted, others)), scaler)


def readable(table: DataFrame, *, without: Sequence[str]) -> dict[str, Column]:
    """Return by the name to show what can be read of a table: numbers as double, text and dates as text.

    An array of numbers, like the scores of a supervised model, is its elements if it has up to four, and which of them
    is the largest; a longer one is its largest and which it is. At most twelve columns are returned; the log names the
    others. Runs on: driver.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    from ivis_spark.spark.rows.columns import quoted

    plain, arrays = {}, []
    for item in table.schema.fields:
        kind, column = item.dataType, F.col(quoted(item.name))
        if item.name in without:
            continue
        if isinstance(kind, T.NumericType):
            plain[item.name] = column.cast("double")
        elif isinstance(kind, (T.StringType, T.BooleanType, T.DateType)):
            plain[item.name] = F.substring(column.cast("string"), 1, _MOST_TEXT_CHARS)
        elif isinstance(kind, T.ArrayType) and isinstance(kind.elementType, T.NumericType):
            arrays.append(item.name)
    columns = {**_elements(table, arrays), **plain}
    names = list(columns)[:_MOST_COLUMNS]
    if len(columns) > len(names):
        log.warning(
            "points can be coloured by at most %s columns; left out: %s", len(names), list(columns)[len(names) :]
        )
    return {name: columns[name] for name in names}


def _elements(table: DataFrame, names: Sequence[str]) -> dict[str, Column]:
    from pyspark.sql import functions as F

    from ivis_spark.spark.rows.columns import quoted

    first: Any = table.select(*[F.size(quoted(name)) for name in names]).head() if names else None
    columns: dict[str, Column] = {}
    for name, size in zip(names, first or (), strict=False):
        text = quoted(name)
        column = F.col(text)
        if size == 1:
            columns[name] = column[0].cast("double")
        if size > 1:
            columns[f"{name}: largest"] = F.expr(f"double(array_position({text}, array_max({text})) - 1)")
        if 1 < size <= _MOST_ELEMENTS:
            columns |= {f"{name}[{place}]": column[place].cast("double") for place in range(size)}
        if size > _MOST_ELEMENTS:
            columns[f"{name}: value of the largest"] = F.array_max(column).cast("double")
    return columns


def packed_features(positions: Sequence[int]) -> Column:
    """Return the float32 at these positions of packed `features`, packed again: the rest stays where it is."""
    from pyspark.sql import functions as F

    return F.concat(*[F.substring("features", 4 * place + 1, 4) for place in positions])


def unpack_features(packed: Sequence[bytes | None], width: int) -> NDArray[np.float64]:
    """Return what `packed_features` made, float64 (n, width); rows that lack it are NaN.

    Raises: InputError: if a row is shorter.
    """
    out = np.full((len(packed), width), np.nan)
    for row, values in enumerate(packed):
        if values is not None:
            row_values = np.frombuffer(values, "<f4")
            if len(row_values) != width:
                raise InputError(f"a row of features has {len(row_values)} of the {width} features to colour by")
            out[row] = row_values
    return out
