"""What a model that is registered in MLflow takes of a DataFrame."""

from __future__ import annotations

from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ivis_spark.config import listed
from ivis_spark.errors import InputError
from ivis_spark.ml.params import check_spark_frame
from ivis_spark.spark.rows.columns import as_array, quoted


def pyfunc_input(table: DataFrame, signature: Any) -> Column:
    """Return what to pass to a UDF of `mlflow.pyfunc.spark_udf`: the columns that the model was trained on, by name.

    Several numeric columns become a struct, and Spark ML vectors become arrays, which is all that MLflow takes.
    Numbers become doubles, as MLflow refuses long integers for them. Runs on: driver.

    Args:
        table: The table to embed.
        signature: That of the model: `mlflow.models.get_model_info(uri).signature`.

    Raises:
        InputError: if the table lacks a column (names it), one is of another type, or the model has no signature.

    Example:
        >>> import mlflow
        >>> from ivis_spark import pyfunc_input
        >>> from ivis_spark.serving.pyfunc import save_pyfunc
        >>> save_pyfunc(model, "registered-pyfunc", overwrite=True)
        >>> signature = mlflow.models.get_model_info("registered-pyfunc").signature
        >>> frame.select(pyfunc_input(frame, signature).alias("features")).dtypes
        [('features', 'array<double>')]
    """
    check_spark_frame(table, "pyfunc_input")
    if signature is None:
        raise InputError(
            "the model has no signature, which names its columns: embed with IvisModel.from_run(...).transform, or "
            "save it with log_pyfunc or save_pyfunc; models of images get none"
        )
    names = signature.inputs.input_names()
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise InputError(
            f"the table lacks {listed([repr(name) for name in missing])} of the {len(names)} columns that the model "
            f"was trained on; it has: {listed(table.columns)}"
        )
    array = as_array(table, names, "double")
    return array if len(names) == 1 else F.struct(*[F.col(quoted(name)).cast("double").alias(name) for name in names])
