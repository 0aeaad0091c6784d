"""Columns of sparse rows: Spark ML vectors, and indices and values in two arrays."""

from __future__ import annotations

from pyspark.ml.linalg import SparseVector
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark.errors import InputError

_SAMPLE, _SPARSE_SHARE = 100, 1 / 3  # vectors that are looked at; numbers that are not 0, at most, in sparse ones
_MOST_FEATURES = 2**31 - 1  # indices are kept as int32


def check_types(values: str, kind: T.DataType, indices: str, places: T.DataType) -> None:
    """Check that two columns are arrays of numbers, and of whole numbers.

    Raises:
        InputError: if they are not.
    """
    whole = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
    if not (isinstance(places, T.ArrayType) and isinstance(places.elementType, whole)):
        raise InputError(f"indices column {indices!r} is {places.simpleString()}; it must be an array of whole numbers")
    if not (isinstance(kind, T.ArrayType) and isinstance(kind.elementType, T.NumericType)):
        raise InputError(f"features column {values!r} is {kind.simpleString()}; it must be an array of numbers")


def width_of_vectors(frame: DataFrame, column: Column, name: str) -> tuple[int, bool]:
    """Return the size of Spark ML vectors, and whether they are sparse. Runs on: driver.

    A few tell, by what they hold: VectorAssembler stores single rows of dense data as sparse vectors.
    """
    rows = frame.select(column.alias("vector")).where(F.col("vector").isNotNull()).limit(_SAMPLE).collect()
    if not rows:
        raise InputError(f"the input has no row with features in column {name!r}; at least 3 rows are needed")
    vectors = [row["vector"] for row in rows]
    if not len(vectors[0]):
        raise InputError(f"features column {name!r} holds an empty vector; every row needs the same number >= 1")
    stored = sum(len(vector.values) for vector in vectors)
    is_sparse = any(isinstance(vector, SparseVector) for vector in vectors)
    return len(vectors[0]), is_sparse and stored <= _SPARSE_SHARE * sum(map(len, vectors))


def largest_index(frame: DataFrame, places: Column, name: str) -> int:
    """Return the largest index of a table. Runs on: driver; reads the column."""
    largest = frame.select(F.max(F.array_max(places))).first()
    if largest is None or largest[0] is None or largest[0] < 0:
        raise InputError(f"indices column {name!r} holds no index of a feature; name another with data.indices_col")
    if largest[0] >= _MOST_FEATURES:
        raise InputError(
            f"indices column {name!r} holds {largest[0]}, and rows have at most {_MOST_FEATURES} features: fix it, or "
            "set data.n_features to the number of features"
        )
    return int(largest[0])


def indexed(places: Column, values: Column, width: int | None) -> Column:
    """Return indices and values as one column, as Spark gives its sparse vectors to Arrow."""
    fields = {
        "type": F.lit(0).cast("byte"),
        "size": F.lit(width).cast("int"),
        "indices": places.cast("array<long>"),  # as int, those that are too large would wrap
        "values": values.cast("array<double>"),
    }
    return F.struct(*[column.alias(name) for name, column in fields.items()])
