"""Bytes of a row on its way to Python, by which Arrow batches are sized."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

_SPARSE_BYTES = 32 << 10  # a sparse row takes, as a rule, far less than a dense one
_FIXED_BYTES = 16  # of a number, a date or a time, at most
_FIRST_ROWS = 100


def features_bytes(width: int, *, stays_sparse: bool) -> int:
    """Return about what the features of a row take.

    Args:
        width: How many there are.
        stays_sparse: Whether they come sparse and are never made dense.
    """
    dense = 8 * width
    return min(dense, _SPARSE_BYTES) if stays_sparse else dense


def mean_bytes(table: DataFrame) -> int:
    """Return about what a row of a table takes: of text, lists and the like, the mean of the first rows.

    Runs on: driver; a job that reads these rows, unless the types tell. It collects a number of each.
    """
    numbered = table.toDF(*[f"c{place}" for place in range(len(table.columns))])  # the user's names may be any
    wide = [field.name for field in numbered.schema.fields if not _is_fixed(field.dataType)]
    fixed = _FIXED_BYTES * (len(numbered.columns) - len(wide))
    if not wide:
        return fixed
    # JSON is the one form that Spark writes of any type. Text is as long in Arrow, files take a third more here, and
    # short numbers in lists are a fraction: a batch may be some times 64 MiB then, far from the 2 GiB that Arrow takes.
    sizes = numbered.select(F.octet_length(F.to_json(F.struct(*wide)))).limit(_FIRST_ROWS).collect()
    return fixed + sum(size for (size,) in sizes) // max(1, len(sizes))


def _is_fixed(kind: T.DataType) -> bool:
    return isinstance(kind, T.AtomicType) and not isinstance(kind, (T.StringType, T.BinaryType))
