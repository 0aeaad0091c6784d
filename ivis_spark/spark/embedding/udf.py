"""A pandas UDF that embeds a column, for `withColumn` and SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from pyspark.sql.pandas.functions import pandas_udf

from ivis_spark.config import listed
from ivis_spark.errors import InputError
from ivis_spark.serving.encoder import Encoder
from ivis_spark.spark.embedding.embed import SETTING, Outputs, load_encoder, refusal, share
from ivis_spark.spark.vectors import Faults, read_rows

_VECTOR = ("type", "size", "indices", "values")  # fields of a Spark ML vector


def embed_udf(
    spark: SparkSession,
    encoder: Encoder,
    *,
    invalid: str = "error",
    half: bool = False,
    names: Sequence[str] = (),
    setting: str = SETTING,
) -> Any:
    """Return a pandas UDF that embeds a column, for `withColumn` and, registered, for SQL.

    `embed_frame` is faster where a whole table is embedded: pandas holds one array object a row. Runs on: driver.

    Args:
        spark: The session that broadcasts the encoder.
        encoder: Scales and embeds a batch.
        invalid: `error` or `null`: what to do with rows that hold null, NaN or infinity.
        half: Return `binary` of packed float16 instead of array<float>.
        names: Of the features, by which those of a struct are found; without names the order of its fields counts.
        setting: How a message calls `invalid`.

    Returns:
        A UDF to the embedding, of an array of numbers, a Spark ML vector, or a struct of numbers; null stays null. A
        task fails with InputError if the column is of another type, a row has another width than the model's, or is
        invalid and that is an error.
    """
    import pandas as pd

    shared = share(spark, encoder)

    def embed(*given: pd.Series) -> pd.Series:
        if len(given) != 1:
            raise InputError(
                f"embed_udf takes one column, not {len(given)}: an array, a Spark ML vector, or struct(...) of them"
            )
        loaded, features = load_encoder(shared), given[0]
        if isinstance(features, pd.DataFrame):
            X, faults, known = read_struct(features, loaded.n_inputs, names)
        else:
            known = features.notna().to_numpy()
            X = _matrix(features[known].to_list(), loaded.n_inputs)
            faults = {"nan": np.isnan(X).any(axis=1), "infinite": np.isinf(X).any(axis=1)}
        bad = np.logical_or.reduce(list(faults.values()))
        if bad.any():
            if invalid == "error":
                raise refusal(faults, X, "the features", setting)
            X = X[~bad]
        embedding = loaded(X)
        rows = [row.tobytes() for row in embedding.astype("<f2")] if half else list(embedding)
        values: list[Any] = [None] * len(features)
        for place, row in zip(np.flatnonzero(known)[~bad], rows, strict=True):
            values[place] = row
        return pd.Series(values, dtype=object)

    embed.__annotations__ = {"given": pd.Series, "return": pd.Series}
    return pandas_udf(embed, Outputs(half=half).fields[0].dataType)  # type: ignore[call-overload]


def read_struct(frame: Any, width: int, names: Sequence[str]) -> tuple[Any, Faults, NDArray[np.bool_]]:
    """Return the rows of a struct, as pandas has it, that are not null, their faults, and which they are of n.

    Runs on: executor.

    Args:
        frame: A Spark ML vector, or numbers. In a struct of numbers null cannot be told from NaN.
        width: Features of a row.
        names: Of the features.

    Raises:
        InputError: if fields are missing or not numbers, or a row has another width.
    """
    known = np.ones(len(frame), bool)
    if tuple(frame.columns) == _VECTOR:
        known = frame["type"].notna().to_numpy()
        frame = frame[known]
        types = (pa.int8(), pa.int32(), pa.list_(pa.int32()), pa.list_(pa.float64()))
        columns = [pa.array(frame[name], kind, from_pandas=True) for name, kind in zip(_VECTOR, types, strict=True)]
        columns = [pa.StructArray.from_arrays(columns, _VECTOR)]
    else:
        missing = [name for name in names if name not in frame.columns]
        if missing:
            raise InputError(f"the struct lacks {listed(missing)}; it has: {listed(frame.columns)}")
        chosen = [frame[name] for name in names] if names else [frame.iloc[:, place] for place in range(frame.shape[1])]
        columns = [pa.array(column, from_pandas=False) for column in chosen]
        for name, column in zip(names or frame.columns, columns, strict=True):
            kind = column.type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
                if not (pa.types.is_boolean(kind) or pa.types.is_null(kind)):
                    raise InputError(
                        f"field {name!r} of the struct is {str(kind).removeprefix('large_')}: all must be numbers"
                    )
        columns = [column.cast(pa.float64()) for column in columns]
    X, faults = read_rows(columns, width, what="the column")
    return X, {fault: mask for fault, mask in faults.items() if fault != "width"}, known


def _matrix(rows: list[NDArray[Any]], width: int) -> NDArray[Any]:
    """Return rows of a UDF's batch as one matrix of shape (n, width). Runs on: executor.

    Raises:
        InputError: if a row has another width.
    """
    if rows and not isinstance(rows[0], np.ndarray):
        raise InputError("embed_udf takes an array of numbers, a Spark ML vector, or struct(...) of numeric columns")
    widths = {len(row) for row in rows}
    if widths - {width}:
        raise InputError(f"rows have {sorted(widths)} features; the model was trained on {width}")
    if not rows:
        return np.empty((0, width), np.float32)
    numbers = np.concatenate(rows)
    return numbers.astype(np.float32 if numbers.dtype == np.float32 else np.float64, copy=False).reshape(-1, width)
