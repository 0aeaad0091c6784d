"""Embedding tables with a trained encoder: a forward pass a batch, without the training data and without TensorFlow."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import SparkContext, TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark.config import EmbedConfig
from ivis_spark.core.dense import DenseNetwork
from ivis_spark.core.projection import is_sparse
from ivis_spark.errors import InputError
from ivis_spark.serving.encoder import Encoder
from ivis_spark.spark.rows.columns import FEATURES, quoted
from ivis_spark.spark.session import is_connect
from ivis_spark.spark.tasks import map_arrow
from ivis_spark.spark.vectors import (
    Faults,
    describe,
    describe_invalid,
    name_faults,
    read_rows,
    to_list,
    to_packed_halves,
)

if TYPE_CHECKING:
    from pyspark.broadcast import Broadcast

EMBEDDING = "embedding"
FAULTS = ("null", "nan", "infinite", "indices")
SETTING = "embed.invalid"


@dataclass(frozen=True)
class Outputs:
    """The columns that embedding adds.

    Attributes:
        embedding: Name of the embedding.
        scores: Name of the supervised head's output, or None.
        half: Whether both are `binary` of packed float16 instead of array<float>.
        label: Name of the most probable class, or None.
        classes: The label of each class, as text.
        label_type: Spark's name of the labels' type.
    """

    embedding: str = EMBEDDING
    scores: str | None = None
    half: bool = False
    label: str | None = None
    classes: tuple[str, ...] = ()
    label_type: str = "string"

    @classmethod
    def of(cls, config: EmbedConfig, classes: Mapping[str, Any] | None) -> Outputs:
        """Return the columns that settings ask for.

        Args:
            config: Their names and precision.
            classes: Those of the model: `values` and `type` of the label; None or empty if it knows none.

        Raises:
            InputError: if the class is requested from a model without classes.
        """
        if config.class_col and not classes:
            raise InputError(
                f"embed.class_col={config.class_col!r} needs a model trained on classes: train "
                "with --label-col and train.supervision_metric=sparse_categorical_crossentropy"
            )
        return cls(
            config.output_col,
            config.scores_col,
            config.precision == "float16",
            label=config.class_col,
            classes=tuple(map(str, classes["values"])) if classes else (),
            label_type=classes["type"] if classes else "string",
        )

    @property
    def vectors(self) -> list[str]:
        """The columns that hold several numbers."""
        return [name for name in (self.embedding, self.scores) if name is not None]

    @property
    def names(self) -> list[str]:
        """The columns, in order."""
        return [*self.vectors, *([] if self.label is None else [self.label])]

    @property
    def fields(self) -> list[T.StructField]:
        """The columns with their types; that of the class is still text."""
        kind = T.BinaryType() if self.half else T.ArrayType(T.FloatType(), containsNull=False)
        return [T.StructField(name, T.StringType() if name == self.label else kind) for name in self.names]

    def check_free(self, columns: Iterable[str], remedy: str) -> None:
        """Check that a table has no such columns yet: Spark, and the tables it writes, do not tell cases apart.

        Raises:
            InputError: if it has, or two of them have one name.
        """
        there, added = {name.lower(): name for name in columns}, set[str]()
        for name in self.names:
            if name.lower() in there:
                raise InputError(f"the table already has a column {there[name.lower()]!r}: {remedy}")
            if name.lower() in added:
                raise InputError(f"two of the columns to be added are called {name!r}: {remedy}")
            added.add(name.lower())

    def make(self, encoder: Encoder, embedding: NDArray[Any]) -> list[pa.Array]:
        """Return, of embedded rows of shape (n, e), a column for each name. Runs on: executor."""
        to_column = to_packed_halves if self.half else to_list
        made = [to_column(embedding)]
        if self.scores is None and self.label is None:
            return made
        scores = encoder.score(embedding)
        if self.scores is not None:
            made.append(to_column(scores))
        if self.label is not None:
            best = scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > encoder.border).astype(np.int64)
            made.append(pa.array(self.classes, pa.string()).take(pa.array(best)))
        return made


class InvalidRows:
    """How many rows could not be embedded, by fault, over all tasks that ran so far.

    A task that Spark runs again after a lost executor counts again only if its first result was lost too.
    """

    def __init__(self, context: SparkContext) -> None:
        self._counts = {fault: context.accumulator(0) for fault in FAULTS}

    def add(self, faults: dict[str, NDArray[np.bool_]]) -> None:
        """Count the rows of a batch, each under its first fault. Runs on: executor."""
        counted: Any = False
        for fault, counter in self._counts.items():
            mask = faults.get(fault)
            if mask is not None:
                counter.add(int((mask & ~np.asarray(counted)).sum()))
                counted = mask | counted

    def value(self) -> dict[str, int]:
        """Return the rows by fault. Runs on: driver."""
        return {fault: int(counter.value) for fault, counter in self._counts.items()}


@dataclass(frozen=True)
class Carried:
    """What stands for a broadcast where there is none."""

    value: Encoder


def share(spark: SparkSession, encoder: Encoder) -> Broadcast[Encoder] | Carried:
    """Send an encoder to all executors once; Spark Connect has no broadcasts, there it goes with every function."""
    return Carried(encoder) if is_connect(spark) else spark.sparkContext.broadcast(encoder)


def embed_frame(
    frame: DataFrame,
    encoder: Encoder,
    *,
    invalid: str,
    features: Sequence[str] = (FEATURES,),
    kept: Sequence[str] | None = None,
    outputs: Outputs | None = None,
    counts: InvalidRows | None = None,
    setting: str = SETTING,
) -> DataFrame:
    """Add the embedding, and optionally the scores, to a frame; kept columns pass through unchanged.

    Lazy: nothing runs before an action; works on a streaming frame too. The encoder is broadcast once. Runs on: driver.

    Args:
        frame: The features and any other columns.
        encoder: Scales and embeds a batch.
        invalid: What to do with rows of null, NaN, infinity or indices that are not those of a row: `error`, `null` (a
            null embedding) or `drop`. Another width is always an error.
        features: One column: array of any numeric type, Spark ML vector or packed binary; or several numeric columns.
        kept: Columns that come back too; all but the features if left out, which saves their way back from Python.
        outputs: The columns to add.
        counts: Counts the invalid rows.
        setting: How a message calls `invalid`.

    Returns:
        The columns that are kept, in the frame's order, and the outputs behind them.

    Raises:
        NotFittedError: if scores are requested and the model has no head.
    """
    outputs = outputs or Outputs()
    if outputs.scores is not None or outputs.label is not None:
        encoder.score(np.zeros((0, encoder.network.n_outputs), np.float32))
    fields = frame.schema.fields
    chosen = [name for name in frame.columns if name not in features] if kept is None else kept
    places = [place for place, field in enumerate(fields) if field.name in chosen]
    shared = share(frame.sparkSession, encoder)
    embed = functools.partial(
        embed_batches,
        shared=shared,
        invalid=invalid,
        features=tuple(features),
        kept=places,
        outputs=outputs,
        counts=counts,
        setting=setting,
    )
    embedded = map_arrow(frame, embed, T.StructType([*(fields[place] for place in places), *outputs.fields]))
    if outputs.label is None:
        return embedded
    return embedded.withColumn(outputs.label, F.col(quoted(outputs.label)).cast(outputs.label_type))


def embed_batches(
    batches: Iterator[pa.RecordBatch],
    *,
    shared: Broadcast[Encoder] | Carried,
    invalid: str,
    features: tuple[str, ...],
    kept: list[int],
    outputs: Outputs,
    counts: InvalidRows | None,
    setting: str = SETTING,
) -> Iterator[pa.RecordBatch]:
    """Add the outputs to the batches of a task. Runs on: executor. Memory: one batch."""
    encoder = load_encoder(shared)
    what = describe(features)
    for batch in batches:
        columns, names = [batch.column(place) for place in kept], [batch.schema.names[place] for place in kept]
        read = [batch.column(name) for name in features]
        X, faults = read_rows(read, encoder.n_inputs, what=what, sparse=True)
        bad = np.zeros(X.shape[0], bool)
        for mask in faults.values():
            bad |= mask
        embedding = encoder.embed(X[~bad] if bad.any() else X)
        beyond = ~np.isfinite(embedding).all(axis=1)
        if beyond.any():  # so far from what the model was trained on that its layers overflow
            faults = {**faults, "infinite": faults.get("infinite", False) | _placed(beyond, ~bad)}
            bad, embedding = bad | faults["infinite"], embedding[~beyond]
        made = outputs.make(encoder, embedding)
        if bad.any():
            if invalid == "error":
                raise refusal(faults, X, describe_invalid(features, read), setting)
            if counts is not None:
                counts.add(faults)
            if invalid == "null":
                made = [spread(column, ~bad) for column in made]
            else:
                keep = pa.array(~bad)
                columns = [column.filter(keep) for column in columns]
        yield pa.RecordBatch.from_arrays([*columns, *made], [*names, *outputs.names])


def load_encoder(shared: Broadcast[Encoder] | Carried) -> Encoder:
    """Return the encoder of a task; one that needs TensorFlow sees only the GPU that Spark gave the task.

    TensorFlow cannot change it: a Python worker stays with the GPU of the first task that it embedded in.
    """
    encoder = shared.value
    if not isinstance(encoder.network, DenseNetwork) and "tensorflow" not in sys.modules:
        context = TaskContext.get()
        resources = context.resources() if context is not None else {}
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(resources["gpu"].addresses) if "gpu" in resources else "-1"
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    return encoder


def refusal(faults: Faults, X: Any, where: str, setting: str) -> InputError:
    """Return the error of rows that cannot be embedded: how many, what is wrong with them and how the first looks."""
    bad = np.logical_or.reduce(list(faults.values()))
    named = {fault: faults[fault] for fault in FAULTS if fault in faults}
    first = X[int(bad.argmax())]
    row = np.array2string(first.toarray()[0] if is_sparse(X) else first, threshold=6, separator=", ")
    unread = any(named[fault].any() for fault in ("null", "indices") if fault in named)
    shown = "" if unread else f"; the first reads {row}"
    return InputError(
        f"{int(bad.sum())} of {len(bad)} rows of a batch cannot be embedded ({name_faults(named)} in {where}{shown}): "
        f"fix them, or set {setting}=null or drop"
    )


def _placed(mask: NDArray[np.bool_], where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of the m rows of n that `where` marks as one of all n."""
    placed = np.zeros(len(where), bool)
    placed[where] = mask
    return placed


def spread(column: pa.Array, valid: NDArray[np.bool_]) -> pa.Array:
    """Return a column of m values as one of n, null where `valid`, shape (n,) with m true, is not."""
    return column.take(pa.array(np.cumsum(valid) - 1, mask=~valid))
