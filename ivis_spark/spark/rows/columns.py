"""The columns of the user's table: found by name, with any names, and their types checked."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.ml.functions import vector_to_array
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark.config import DataConfig, did_you_mean, listed
from ivis_spark.errors import InputError
from ivis_spark.spark.before_spark import in_folders
from ivis_spark.spark.rows import sizes, sparse
from ivis_spark.spark.rows.ids import HASH, content_hash, hashable
from ivis_spark.spark.rows.images import is_image, pixels
from ivis_spark.spark.rows.tables import roots_of

log = logging.getLogger(__name__)

ID, FEATURES, LABEL, COLUMNS = "id", "features", "label", "columns"
IMAGE_SETTINGS = ("image_height", "image_width", "image_mode")
INTEGERS = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
_EXACT_IN_FLOAT32 = (T.FloatType, T.ByteType, T.ShortType)
_KEPT = (T.NumericType, T.StringType, T.BooleanType, T.BinaryType, T.DateType, T.TimestampType, T.TimestampNTZType)


@dataclass(frozen=True)
class Source:
    """A table whose columns are resolved.

    Attributes:
        frame: `features` array<float>, or array<double> where float32 would lose digits, or of sparse rows what
            `spark.vectors.sparse_rows` reads; `id` long if one integer
            column is the key, else `hash` long of what identifies a row; `label` if there is one; `columns`, a struct
            of the columns that are kept, if there are any, its fields called by number: names may differ in case only.
        beside: What goes to Python beside numbers: the columns that are kept, and the files of images.
        width: Features of a row.
        feature_names: The columns they come from.
        keys: The columns that identify a row; none if its content does.
        kept: The fields of `columns`, in the table's order.
        label_col: The column of the label.
        label_type: Its type.
        images: Of images, the settings of `data` by which they are read.
        sparse: Whether the features are sparse vectors, or indices and values.
        indices_col: The column of the indices.
    """

    frame: DataFrame
    beside: DataFrame
    width: int
    feature_names: tuple[str, ...]
    keys: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    label_col: str | None = None
    label_type: T.DataType = T.NullType()  # noqa: RUF009
    images: dict[str, Any] | None = None
    sparse: bool = False
    indices_col: str | None = None

    @property
    def carried(self) -> tuple[str, ...]:
        """Columns that what is made of the rows has too: those kept, else the features, which alone tell rows apart."""
        return self.kept or (*self.feature_names, *([self.indices_col] if self.indices_col else []))

    @property
    def numbered(self) -> bool:
        """Whether rows are numbered, for want of integers that identify them."""
        return ID not in self.frame.columns

    @property
    def dtype(self) -> str:
        """Numbers that hold the features without loss."""
        kind = self.frame.schema[FEATURES].dataType
        return "<f4" if isinstance(kind, T.ArrayType) and isinstance(kind.elementType, T.FloatType) else "<f8"

    def row_bytes(self, *, stays_sparse: bool) -> int:
        """Return about what a row takes in an Arrow batch; `stays_sparse` as for `sizes.features_bytes`."""
        return sizes.features_bytes(self.width, stays_sparse=stays_sparse) + sizes.mean_bytes(self.beside)

    def names_of(self, places: Any) -> str:
        """Name some features: their columns, or their places in the one column."""
        many = len(self.feature_names) > 1
        shown = ", ".join(self.feature_names[place] if many else f"#{place}" for place in places[:5])
        return shown + (", ..." if len(places) > 5 else "")

    @property
    def keys_text(self) -> str:
        """How a message names the keys."""
        return f"id column{'s' if len(self.keys) > 1 else ''} {', '.join(map(repr, self.keys))}"

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


def as_array(frame: DataFrame, names: Sequence[str], number: str = "float") -> Column:
    """Return a column of arrays or Spark ML vectors, or several of numbers, as an array of `number`.

    Raises:
        InputError: if one is of another type.
    """
    kinds = _kinds(frame.schema)
    single = len(names) == 1 and not isinstance(kinds.get(names[0]), T.NumericType)
    config = DataConfig(features_col=names[0]) if single else DataConfig(feature_cols=tuple(names))
    return _features(kinds, config)[1].cast(f"array<{number}>")


def resolve(frame: DataFrame, config: DataConfig) -> Source:
    """Find the columns that `config` names, or that stand for themselves, and check their types. Runs on: driver.

    Raises:
        InputError: if a column is missing (lists those there are), of a type that cannot be used, or has no elements.
    """
    kinds = _kinds(frame.schema)
    named_columns = {"id_col" if config.id_col else "id_cols": config.keys, "label_col": (config.label_col,)}
    named_columns |= {"keep_columns": config.keep_columns, "drop_columns": config.drop_columns}
    for option, named in named_columns.items():
        for name in named:
            if name is not None:
                _require_column(name, kinds, f"data.{option}", frame)
    for name in config.keys:
        if not (isinstance(kinds[name], T.AtomicType) and _storable(kinds[name])):
            raise InputError(
                f"id column {name!r} is {kinds[name].simpleString()}; an id must be a number, text, a date or another "
                f"single value. Without an id, rows are numbered by their content"
            )
    if config.label_col and not _is_label(kinds[config.label_col]):
        raise InputError(
            f"label column {config.label_col!r} is {kinds[config.label_col].simpleString()}; a label must be a "
            f"number, an array of numbers, text, a boolean or a date"
        )
    names, features = _features(kinds, config, frame)
    kept = _kept(kinds, (*names, *([config.indices_col] if config.indices_col else [])), config)
    is_sparse, column = config.indices_col is not None, F.col(quoted(names[0]))
    if type(kinds[names[0]]).__name__ == "VectorUDT":
        width, is_sparse = sparse.width_of_vectors(frame, column, names[0])
        features = column if is_sparse else features
    elif config.indices_col:
        places = F.col(quoted(config.indices_col))
        width = config.n_features or sparse.largest_index(frame, places, config.indices_col) + 1
        features = sparse.indexed(places, column, width)
    else:
        width = _width(frame.select(features.alias(FEATURES)), names)
    columns = {FEATURES: features}
    if len(config.keys) == 1 and isinstance(kinds[config.keys[0]], INTEGERS):
        columns[ID] = F.col(quoted(config.keys[0])).cast("long")
    if config.label_col:
        columns[LABEL] = _label(config.label_col, kinds[config.label_col], config.unlabelled)
    if kept:
        columns[COLUMNS] = F.struct(*[F.col(quoted(name)).alias(field_of(kept, name)) for name in kept])
    selected = frame.select(*[column.alias(name) for name, column in columns.items()])
    if ID not in columns:
        inside = [kept_column(kept, name) for name in kept if hashable(kinds[name])]
        keys = [kept_column(kept, name) for name in config.keys]
        content = [F.col(FEATURES), *([F.col(LABEL)] if config.label_col else []), *inside]
        selected = selected.withColumn(HASH, content_hash(keys or content))
    pictured = len(names) == 1 and is_image(kinds[names[0]])
    images = {name: getattr(config, name) for name in IMAGE_SETTINGS} if pictured else None
    return Source(
        selected,
        frame.select([quoted(name) for name in (*kept, *(names if pictured else ()))]),
        width,
        names,
        config.keys,
        kept,
        label_col=config.label_col,
        label_type=kinds.get(config.label_col or "", T.NullType()),
        images=images,
        sparse=is_sparse,
        indices_col=config.indices_col,
    )


def field_of(kept: Sequence[str], name: str) -> str:
    """Return the field of `columns` that holds a column that is kept."""
    return f"c{list(kept).index(name)}"


def kept_column(kept: Sequence[str], name: str) -> Column:
    """Return a column that is kept with the rows."""
    return F.col(COLUMNS)[field_of(kept, name)]


def _kept(kinds: dict[str, T.DataType], features: tuple[str, ...], config: DataConfig) -> tuple[str, ...]:
    """Return which columns are kept beside the features: the keys, and what the settings leave of the rest."""
    for name in config.keep_columns:
        if not _storable(kinds[name]):
            raise InputError(f"data.keep_columns: column {name!r} is {kinds[name].simpleString()} and cannot be kept")
    others = [name for name in kinds if name not in features and name not in config.drop_columns]
    lost = [name for name in others if not _storable(kinds[name])]
    if lost and not config.keep_columns:
        log.warning(
            "embedded tables will not have these columns, whose types cannot be kept: %s",
            _listed({name: kinds[name] for name in lost}),
        )
    kept = {*config.keys, *(config.keep_columns or (name for name in others if name not in lost))}
    return tuple(name for name in kinds if name in kept)


def _storable(kind: T.DataType) -> bool:
    """Return whether values of a type go through Arrow and Parquet and come back as they were."""
    if isinstance(kind, T.StructType):
        return bool(kind.fields) and all(_storable(field.dataType) for field in kind.fields)
    if isinstance(kind, T.ArrayType):
        return _storable(kind.elementType)
    if isinstance(kind, T.MapType):
        return _storable(kind.keyType) and _storable(kind.valueType)
    return isinstance(kind, _KEPT)


def decoded(frame: DataFrame, names: tuple[str, ...], config: DataConfig, *, into: str | None = None) -> DataFrame:
    """Return a table whose features can be embedded: images become pixels, and indices and values become one column.

    Args:
        frame: A table with feature columns.
        names: Of those.
        config: The size and mode of images.
        into: Column for what is made; None puts it in the place of the features.

    Raises:
        InputError: if there are images and no size.
    """
    kind = frame.schema[names[0]].dataType
    if config.indices_col:
        places, values = F.col(quoted(config.indices_col)), F.col(quoted(names[0]))
        return frame.withColumn(into or names[0], sparse.indexed(places, values, config.n_features))
    if len(names) > 1 or not is_image(kind):
        return frame
    return frame.withColumn(into or names[0], pixels(F.col(quoted(names[0])), kind, names[0], config))


def to_map(table: DataFrame, source: Source, config: DataConfig) -> tuple[DataFrame, tuple[str, ...]]:
    """Return the columns of a table that a pass over its rows needs, and which of them the features are. Lazy.

    Args:
        table: What `resolve` was given.
        source: What it gave.
        config: The size and mode of images.

    Returns:
        `source.carried` and the features; what `decoded` makes is in a column of its own.
    """
    features = source.feature_names
    if source.images or source.indices_col:
        features = (unused("decoded", table.columns),)
        config = dataclasses.replace(config, n_features=source.width if source.indices_col else None)
        table = decoded(table, source.feature_names, config, into=features[0])
    return table.select([quoted(name) for name in table.columns if name in (*source.carried, *features)]), features


def unused(name: str, names: Sequence[str]) -> str:
    """Return a name, with as few underscores before it that none of these is it, in any case."""
    taken = {other.lower() for other in names}
    while name.lower() in taken:
        name = f"_{name}"
    return name


def _features(
    kinds: dict[str, T.DataType], config: DataConfig, frame: DataFrame | None = None
) -> tuple[tuple[str, ...], Column]:
    """Return the names of the feature columns and the expression that makes them one array<float>."""
    single = config.features_col
    if single is None and not config.feature_cols and FEATURES in kinds:
        single = FEATURES
    if single is not None:
        _require_column(single, kinds, "data.features_col", frame)
        kind = kinds[single]
        column = F.col(quoted(single))
        if type(kind).__name__ == "VectorUDT":
            # Spark's function fails on null.
            return (single,), F.when(column.isNotNull(), vector_to_array(column))
        if config.indices_col:
            _require_column(config.indices_col, kinds, "data.indices_col", frame)
            sparse.check_types(single, kind, config.indices_col, kinds[config.indices_col])
        if isinstance(kind, T.ArrayType) and isinstance(kind.elementType, T.NumericType):
            return (single,), column.cast(f"array<{_number([kind.elementType])}>")
        if is_image(kind):
            return (single,), pixels(column, kind, single, config)
        raise InputError(
            f"features column {single!r} is {kind.simpleString()}; it must be an array of numbers or a Spark ML "
            "vector. Set several numeric columns with data.feature_cols"
        )
    others = (*config.keys, config.label_col)
    names = config.feature_cols or tuple(
        n for n, t in kinds.items() if isinstance(t, T.NumericType) and n not in others
    )
    if not names:
        raise InputError(
            f"no column {FEATURES!r} and no numeric column other than id and label; the table has: {_listed(kinds)}. "
            f"Set the features with data.features_col or data.feature_cols"
        )
    for name in names:
        _require_column(name, kinds, "data.feature_cols", frame)
        if not isinstance(kinds[name], (T.NumericType, T.BooleanType)):
            raise InputError(
                f"feature column {name!r} is {kinds[name].simpleString()}; it must be numeric. Remove it from "
                f"data.feature_cols or convert it to numbers first"
            )
    number = _number([kinds[name] for name in names])
    return tuple(names), F.array(*[F.col(quoted(name)).cast(number) for name in names])


def _number(kinds: list[T.DataType]) -> str:
    """Return the type of number that holds values of all these types without loss, as far as one does."""
    return "float" if all(isinstance(kind, (*_EXACT_IN_FLOAT32, T.BooleanType)) for kind in kinds) else "double"


def _is_label(kind: T.DataType) -> bool:
    if isinstance(kind, T.ArrayType):
        return isinstance(kind.elementType, (T.NumericType, T.BooleanType))
    return isinstance(kind, T.AtomicType) and _storable(kind) and not isinstance(kind, T.BinaryType)


def _label(name: str, kind: T.DataType, unlabelled: str | None) -> Column:
    """Return a label: arrays as array<double>, numbers as long or double, all others as they are; null without one."""
    column = F.col(quoted(name))
    if isinstance(kind, T.ArrayType):
        return column.cast("array<double>")
    if not isinstance(kind, T.NumericType):
        return column if unlabelled is None else F.when(column.cast("string") != unlabelled, column)
    number = column.cast("long" if isinstance(kind, INTEGERS) else "double")
    known = ~F.isnan(column.cast("double"))
    if unlabelled is not None:
        try:
            known &= column.cast("double") != F.lit(float(unlabelled))
        except ValueError:
            raise InputError(
                f"data.unlabelled={unlabelled!r} is not a number, but label column {name!r} is {kind.simpleString()}"
            ) from None
    return F.when(known, number)


def _width(frame: DataFrame, names: tuple[str, ...]) -> int:
    """Return how many features a row has: of the columns, or of the first array that is not null."""
    if len(names) > 1:
        return len(names)
    first = frame.select(F.size(FEATURES)).where(F.col(FEATURES).isNotNull()).first()
    if first is None:
        raise InputError(f"the input has no row with features in column {names[0]!r}; at least 3 rows are needed")
    if first[0] == 0:
        raise InputError(
            f"features column {names[0]!r} holds an empty array; all rows need the same number of features, at least 1"
        )
    return int(first[0])


def _kinds(schema: T.StructType) -> dict[str, T.DataType]:
    """Return the types of columns by name.

    Raises:
        InputError: if two have the same name.
    """
    names = schema.fieldNames()
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise InputError(
            f"the table has several columns called {listed([repr(name) for name in repeated])}: rename or drop them"
        )
    return {field.name: field.dataType for field in schema.fields}


def _require_column(name: str, kinds: dict[str, T.DataType], setting: str, frame: DataFrame | None = None) -> None:
    if name not in kinds:
        hint = "" if frame is None else in_folders(name, roots_of(frame), opened=True)
        hint = hint or did_you_mean(name, kinds) or f"; it has: {_listed(kinds)}"
        raise InputError(f"{setting}={name!r} is not in the table{hint}")


def _listed(kinds: dict[str, T.DataType]) -> str:
    return listed([f"{name} ({kind.simpleString()[:40]})" for name, kind in kinds.items()])


def quoted(name: str) -> str:
    """Return a column's name as Spark's expressions take it, with any characters."""
    return f"`{name.replace('`', '``')}`"
