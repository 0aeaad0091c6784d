"""Embedding tables with a trained encoder: a forward pass a batch, without the training data and without TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T
from pyspark.sql.pandas.functions import pandas_udf

from ivis_spark.core.dense import DenseNetwork
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import InputError
from ivis_spark.spark.frames import FEATURES
from ivis_spark.spark.vectors import to_list, unpack, valid_rows

if TYPE_CHECKING:
    from pyspark.broadcast import Broadcast

EMBEDDING = "embedding"


class Encoder:
    """What an executor needs to embed: the network as arrays and, for rows as the user has them, the scaler.

    Args:
        network: Forward pass in NumPy.
        scaler: Scaling of raw rows; None for rows that are scaled already.
    """

    def __init__(self, network: DenseNetwork, scaler: Scaler | None) -> None:
        self.network = network
        self.scaler = scaler

    def __call__(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Embed rows of shape (n, d): float32, shape (n, e).

        Raises:
            InputError: if d is not the width the network was trained on.
        """
        if len(X) == 0:
            return np.empty((0, self.network.n_outputs), np.float32)
        return self.network(X if self.scaler is None else self.scaler.transform(X))


def embed_frame(frame: DataFrame, encoder: Encoder, *, invalid: str) -> DataFrame:
    """Replace the column `features` by `embedding` array<float>; the other columns pass through.

    Lazy: nothing runs before an action. The encoder is broadcast once. Runs on: driver.

    Args:
        frame: `features` as packed binary or array<float>, and any other columns.
        encoder: Scales and embeds a batch.
        invalid: `error` or `drop`: what to do with null, NaN and infinite rows. Another width is always an error.

    Returns:
        The frame with the embedding in place of the features.
    """
    kept = [field for field in frame.schema.fields if field.name != FEATURES]
    schema = T.StructType([*kept, T.StructField(EMBEDDING, T.ArrayType(T.FloatType()))])
    shared = frame.sparkSession.sparkContext.broadcast(encoder)
    return frame.mapInArrow(functools.partial(embed_batches, shared=shared, invalid=invalid), schema)


def embed_batches(
    batches: Iterator[pa.RecordBatch], *, shared: Broadcast[Encoder], invalid: str
) -> Iterator[pa.RecordBatch]:
    """Embed the batches of a task. Runs on: executor. Memory: one batch."""
    encoder = shared.value
    for batch in batches:
        names = [name for name in batch.schema.names if name != FEATURES]
        others = [batch.column(name) for name in names]
        features = batch.column(FEATURES)
        if pa.types.is_binary(features.type):
            X = unpack(features)
        else:
            X, keep = valid_rows(features, encoder.network.n_inputs, invalid=invalid)
            if keep is not None:
                others = [column.filter(keep) for column in others]
        yield pa.RecordBatch.from_arrays([*others, to_list(encoder(X))], [*names, EMBEDDING])


def embed_udf(spark: SparkSession, encoder: Encoder) -> Any:
    """Return a pandas UDF that embeds an array or vector-as-array column, for `withColumn` and SQL.

    `embed_frame` is faster where a whole table is embedded: pandas holds one array object a row. Runs on: driver.

    Args:
        spark: The session that broadcasts the encoder.
        encoder: Scales and embeds a batch.

    Returns:
        A UDF from array<float> to array<float>; null rows stay null. A task fails with InputError if a row has another
        width than the model's or holds NaN or infinity.
    """
    import pandas as pd

    shared = spark.sparkContext.broadcast(encoder)

    def embed(features: pd.Series) -> pd.Series:
        loaded = shared.value
        known = np.flatnonzero(features.notna())
        embeddings: list[NDArray[np.float32] | None] = [None] * len(features)
        if len(known):
            matrix = _matrix(features.iloc[known].to_list(), loaded.network.n_inputs)
            for place, row in zip(known, loaded(matrix), strict=True):
                embeddings[place] = row
        return pd.Series(embeddings, dtype=object)

    embed.__annotations__ = {"features": pd.Series, "return": pd.Series}
    return pandas_udf(embed, "array<float>")  # type: ignore[call-overload]


def _matrix(rows: list[NDArray[Any]], width: int) -> NDArray[np.float32]:
    """Return rows of a UDF's batch as one matrix of shape (n, width). Runs on: executor.

    Raises:
        InputError: if a row has another width, or holds NaN (which a null element is by now) or infinity.
    """
    widths = {len(row) for row in rows}
    if widths != {width}:
        raise InputError(f"rows have {sorted(widths)} features; the model was trained on {width}")
    matrix = np.concatenate(rows).astype(np.float32, copy=False).reshape(-1, width)
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        first = matrix[int(finite.argmin())]
        raise InputError(
            f"{int((~finite).sum())} of {len(matrix)} rows of a batch hold null, NaN or infinity (the first is "
            f"{np.array2string(first, threshold=6, separator=', ')}): mend them, or leave them out with a filter"
        )
    return matrix
