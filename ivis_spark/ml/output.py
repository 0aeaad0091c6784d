"""The embedding in the form that the next stage of a Spark ML pipeline takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.param import Param, Params
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark.errors import ConfigError
from ivis_spark.spark.embedding.embed import Outputs
from ivis_spark.spark.rows.columns import quoted
from ivis_spark.spark.rows.images import is_image

VECTOR, ARRAY = "vector", "array"
_OURS, _MADE_FROM = "ivis_spark", "made_from"  # in the metadata of a column


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


def with_outputs(
    schema: T.StructType, outputs: Outputs, *, vectors: bool, made_from: Sequence[str] = ()
) -> T.StructType:
    """Return a schema with the columns of an embedding behind it.

    Args:
        schema: The table's.
        outputs: The columns.
        vectors: Whether they are Spark ML vectors.
        made_from: The columns of the features, which the metadata of the embedding names unless they are images.

    Raises: InputError: if one is there already, but for case.
    """
    outputs.check_free(schema.fieldNames(), "set outputCol, scoresCol or classCol to another")
    fields = {item.name: item for item in outputs.fields}
    if vectors:
        fields |= {name: T.StructField(name, VectorUDT()) for name in outputs.vectors}
    if outputs.label is not None:
        fields[outputs.label] = T.StructField(outputs.label, _type_of(outputs.label_type))
    if made_from and not is_image(schema[made_from[0]].dataType):
        fields[outputs.embedding].metadata = {_OURS: {_MADE_FROM: list(made_from)}}
    return T.StructType([*schema.fields, *fields.values()])


def made_from(field: T.StructField) -> list[str]:
    """Return the columns of the features that an embedding was made from; none if its metadata does not tell."""
    return list((field.metadata.get(_OURS) or {}).get(_MADE_FROM, ()))


def _type_of(name: str) -> T.DataType:
    """Return the type of a simple name, like bigint: Spark's own parser needs a session."""
    json_name = {"tinyint": "byte", "smallint": "short", "int": "integer", "bigint": "long"}.get(name, name)
    fields = [{"name": "label", "type": json_name, "nullable": True, "metadata": {}}]
    return T.StructType.fromJson({"type": "struct", "fields": fields})[0].dataType


def to_schema(frame: DataFrame, schema: T.StructType) -> DataFrame:
    """Return a frame as `with_outputs` has it: arrays made vectors, a null array stays null. Lazy, without Python."""
    pairs = zip(frame.schema.fields, schema.fields, strict=True)
    return frame.select(*[_as(field, found.dataType) for found, field in pairs])


def _as(field: T.StructField, found: T.DataType) -> Column | str:
    name = quoted(field.name)
    if field.dataType == found and not field.metadata:
        return name
    column = F.col(name)
    if field.dataType != found:
        column = F.when(column.isNotNull(), array_to_vector(column.cast("array<double>")))
    return column.alias(field.name, metadata=field.metadata)
