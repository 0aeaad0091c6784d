"""The columns of the user's table: found by name, whatever they are called, and their types checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.ml.functions import vector_to_array
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark.config import DataConfig
from ivis_spark.errors import InputError
from ivis_spark.spark.rows.images import is_image, pixels

ID, FEATURES, LABEL = "id", "features", "label"
IMAGE_SETTINGS = ("image_height", "image_width", "image_mode")
_INTEGERS = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)


@dataclass(frozen=True)
class Source:
    """A table whose columns are resolved: `frame` has `features` array<float> and, where given, `id` and `label`.

    Of images, `images` are the settings of `data` by which they are read.
    """

    frame: DataFrame
    width: int
    feature_names: tuple[str, ...]
    id_col: str | None
    label_col: str | None
    images: dict[str, Any] | None = None

    @property
    def features_text(self) -> str:
        """How a message names the features."""
        names = ", ".join(self.feature_names[:5]) + (", ..." if len(self.feature_names) > 5 else "")
        return f"column {names!r}" if len(self.feature_names) == 1 else f"columns {names}"


def feature_names(schema: T.StructType, config: DataConfig) -> tuple[str, ...]:
    """Return the names of the feature columns, by the rules of `resolve`, from the schema alone.

    Raises:
        InputError: if one is missing (lists those there are) or of a type that cannot be used.
    """
    return _features(_kinds(schema), config)[0]


def as_array(frame: DataFrame, name: str) -> Column:
    """Return a column of arrays or Spark ML vectors as array<float>.

    Raises:
        InputError: if it is of another type.
    """
    return _features(_kinds(frame.schema), DataConfig(features_col=name))[1]


def resolve(frame: DataFrame, config: DataConfig) -> Source:
    """Find the columns that `config` names, or that stand for themselves, and check their types. Runs on: driver.

    Raises:
        InputError: if a column is missing (lists those there are), of a type that cannot be used, or has no elements.
    """
    kinds = _kinds(frame.schema)
    for option, name in (("id", config.id_col), ("label", config.label_col)):
        if name is not None:
            _require_column(name, kinds, f"data.{option}_col")
    if config.id_col and not isinstance(kinds[config.id_col], _INTEGERS):
        raise InputError(
            f"id column {config.id_col!r} is {kinds[config.id_col].simpleString()}; an integer column is wanted. Leave "
            "it out and ids are derived from the rows"
        )
    if config.label_col and not _is_label(kinds[config.label_col]):
        raise InputError(
            f"label column {config.label_col!r} is {kinds[config.label_col].simpleString()}; a numeric column, or one "
            "of arrays of numbers, is wanted. Number the classes from 0, for example with "
            "pyspark.ml.feature.StringIndexer"
        )
    names, features = _features(kinds, config)
    columns = [features.alias(FEATURES)]
    if config.id_col:
        columns.insert(0, F.col(quoted(config.id_col)).cast("long").alias(ID))
    if config.label_col:
        columns.append(_label(config.label_col, kinds[config.label_col]).alias(LABEL))
    selected = frame.select(*columns)
    width = _width(selected, names)
    images = _image_settings(config) if len(names) == 1 and is_image(kinds[names[0]]) else None
    return Source(selected, width, names, config.id_col, config.label_col, images)


def decoded(frame: DataFrame, names: tuple[str, ...], config: DataConfig, *, into: str | None = None) -> DataFrame:
    """Return a table whose features can be embedded: a column of images becomes their pixels, all others stay.

    Args:
        frame: A table with feature columns.
        names: Of those.
        config: The size and mode of images.
        into: Column for the pixels; None puts them in the place of the images.

    Raises:
        InputError: if there are images and no size.
    """
    kind = frame.schema[names[0]].dataType
    if len(names) > 1 or not is_image(kind):
        return frame
    return frame.withColumn(into or names[0], pixels(F.col(quoted(names[0])), kind, names[0], config))


def _image_settings(config: DataConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in IMAGE_SETTINGS}


def _features(kinds: dict[str, T.DataType], config: DataConfig) -> tuple[tuple[str, ...], Column]:
    """Return the names of the feature columns and the expression that makes them one array<float>."""
    single = config.features_col
    if single is None and not config.feature_cols and FEATURES in kinds:
        single = FEATURES
    if single is not None:
        _require_column(single, kinds, "data.features_col")
        kind = kinds[single]
        column = F.col(quoted(single))
        if type(kind).__name__ == "VectorUDT":
            return (single,), vector_to_array(column, "float32")
        if isinstance(kind, T.ArrayType) and isinstance(kind.elementType, T.NumericType):
            return (single,), column.cast("array<float>")
        if is_image(kind):
            return (single,), pixels(column, kind, single, config)
        raise InputError(
            f"features column {single!r} is {kind.simpleString()}; an array of numbers or a Spark ML vector is wanted. "
            "Several numeric columns are named with data.feature_cols"
        )
    others = (config.id_col, config.label_col)
    names = config.feature_cols or tuple(
        n for n, t in kinds.items() if isinstance(t, T.NumericType) and n not in others
    )
    if not names:
        raise InputError(
            f"no column {FEATURES!r} and no numeric column beside id and label; the table has: {_listed(kinds)}. Name "
            "the features with data.features_col or data.feature_cols"
        )
    for name in names:
        _require_column(name, kinds, "data.feature_cols")
        if not isinstance(kinds[name], (T.NumericType, T.BooleanType)):
            raise InputError(
                f"feature column {name!r} is {kinds[name].simpleString()}; a numeric column is wanted. Leave it out of "
                "data.feature_cols or turn it into numbers first"
            )
    return tuple(names), F.array(*[F.col(quoted(name)).cast("float") for name in names])


def _is_label(kind: T.DataType) -> bool:
    return isinstance(kind.elementType if isinstance(kind, T.ArrayType) else kind, (T.NumericType, T.BooleanType))


def _label(name: str, kind: T.DataType) -> Column:
    column = F.col(quoted(name))
    if isinstance(kind, T.ArrayType):
        return column.cast("array<double>")
    return column.cast("long") if isinstance(kind, (T.BooleanType, *_INTEGERS)) else column.cast("double")


def _width(frame: DataFrame, names: tuple[str, ...]) -> int:
    """Return how many features a row has: of the columns, or of the first array that is not null."""
    if len(names) > 1:
        return len(names)
    first = frame.select(F.size(FEATURES)).where(F.col(FEATURES).isNotNull()).first()
    if first is None:
        raise InputError(f"the input has no row with features in column {names[0]!r}; at least 3 rows are needed")
    if first[0] == 0:
        raise InputError(f"features column {names[0]!r} holds an empty array; every row needs the same number >= 1")
    return int(first[0])


def _kinds(schema: T.StructType) -> dict[str, T.DataType]:
    """Return the types of columns by name.

    Raises:
        InputError: if two have the same name.
    """
    names = schema.fieldNames()
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise InputError(f"the table has several columns called {', '.join(map(repr, repeated))}: rename or drop them")
    return {field.name: field.dataType for field in schema.fields}


def _require_column(name: str, kinds: dict[str, T.DataType], setting: str) -> None:
    if name not in kinds:
        raise InputError(f"{setting}={name!r} is not in the table; it has: {_listed(kinds)}")


def _listed(kinds: dict[str, T.DataType]) -> str:
    shown = [f"{name} ({kind.simpleString()[:40]})" for name, kind in list(kinds.items())[:30]]
    return ", ".join(shown) + (f" and {len(kinds) - 30} more" if len(kinds) > 30 else "")


def quoted(name: str) -> str:
    """Return a column's name as Spark's expressions take it, whatever it contains."""
    return f"`{name.replace('`', '``')}`"
