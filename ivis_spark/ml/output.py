"""The embedding in the form that the next stage of a Spark ML pipeline takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.param import Param, Params
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark.errors import ConfigError
from ivis_spark.spark.embedding.embed import Outputs
from ivis_spark.spark.rows.columns import quoted

VECTOR, ARRAY = "vector", "array"


def _kind(value: Any) -> str:
    if value not in (VECTOR, ARRAY):
        raise ConfigError(f"outputType={value!r} is not one of: {VECTOR}, {ARRAY}")
    return str(value)


OUTPUT_TYPE: Param[str] = Param(
    Params._dummy(),
    "outputType",
    "vector: outputCol and scoresCol are Spark ML vectors, which all stages of Spark ML accept; array: array<float>, "
    "half the bytes. With precision float16 both are binary.",
    typeConverter=_kind,
)


def returns_vectors(params: Params) -> bool:
    """Tell whether the outputs are vectors.

    Raises: ConfigError: if vectors of float16 were asked for.
    """
    half = params.getOrDefault("precision") == "float16"
    if half and params.isSet("outputType") and params.getOrDefault("outputType") == VECTOR:
        raise ConfigError("outputType=vector holds doubles: remove precision=float16, or set outputType=array")
    return not half and bool(params.getOrDefault("outputType") == VECTOR)


def with_outputs(schema: T.StructType, outputs: Outputs, *, vectors: bool) -> T.StructType:
    """Return a schema with the columns of an embedding behind it.

    Raises: InputError: if one is there already, but for case.
    """
    outputs.check_free(schema.fieldNames(), "set outputCol, scoresCol or classCol to another")
    fields = {item.name: item for item in outputs.fields}
    if vectors:
        fields |= {name: T.StructField(name, VectorUDT()) for name in outputs.vectors}
    if outputs.label is not None:
        fields[outputs.label] = T.StructField(outputs.label, _type_of(outputs.label_type))
    return T.StructType([*schema.fields, *fields.values()])


def _type_of(name: str) -> T.DataType:
    """Return the type of a simple name, like bigint: Spark's own parser needs a session."""
    json_name = {"tinyint": "byte", "smallint": "short", "int": "integer", "bigint": "long"}.get(name, name)
    fields = [{"name": "label", "type": json_name, "nullable": True, "metadata": {}}]
    return T.StructType.fromJson({"type": "struct", "fields": fields})[0].dataType


def to_vectors(frame: DataFrame, names: Sequence[str]) -> DataFrame:
    """Return a frame with columns of arrays made vectors; a null array stays null. Lazy, and without Python."""
    columns = {name: F.col(quoted(name)) for name in names}
    columns_made = [
        F.when(column.isNotNull(), array_to_vector(column.cast("array<double>"))).alias(name)
        if (column := columns.get(name)) is not None
        else F.col(quoted(name))
        for name in frame.columns
    ]
    return frame.select(*columns_made)
