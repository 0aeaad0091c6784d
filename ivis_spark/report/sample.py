"""What the driver takes from the tables: a bounded sample of rows, and counts of all rows in bounded bins."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.config import EvaluateConfig
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import InputError
from ivis_spark.report.colouring import Wanted, packed_features, readable, unpack_features
from ivis_spark.report.labels import Labels, read_labels

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

log = logging.getLogger(__name__)

FEATURE_BYTES = 256 * 2**20
_TAILS = (0.0005, 0.9995)


@dataclass(frozen=True)
class Sample:
    """Rows drawn by a hash of their id: the same for any partitioning, in an order that means nothing.

    Attributes:
        ids: int64 (n,).
        embedding: float64 (n, e).
        labels: Labels of the n rows, or None.
        measured: int64 (m,), positions in the sample of the rows whose features were read; m <= n.
        features: float32 (m, d), scaled.
        columns: Further columns of the n rows by name, read as labels are.
        held_out: bool (n,), rows whose labels training did not see; None if it saw no label.
        predicted: Classes that the model predicts for the n rows, or None.
    """

    ids: NDArray[np.int64]
    embedding: NDArray[np.float64]
    labels: Labels | None
    measured: NDArray[np.int64]
    features: NDArray[np.float32]
    columns: Mapping[str, Labels] = field(default_factory=dict)
    held_out: NDArray[np.bool_] | None = None
    predicted: Labels | None = None

    def head(self, n: int) -> Sample:
        """Return the first n rows."""
        inside = self.measured < n
        labels = None if self.labels is None else self.labels.head(n)
        columns = {name: column.head(n) for name, column in self.columns.items()}
        held_out = None if self.held_out is None else self.held_out[:n]
        measured, features = self.measured[inside], self.features[inside]
        predicted = None if self.predicted is None else self.predicted.head(n)
        return Sample(self.ids[:n], self.embedding[:n], labels, measured, features, columns, held_out, predicted)


@dataclass(frozen=True)
class Originals:
    """Features of some rows as the user has them, where the rows hold principal components.

    Attributes:
        table: `id` and `features`, not scaled.
        scaler: Of the features, without the projection.
    """

    table: DataFrame
    scaler: Scaler


@dataclass(frozen=True)
class Density:
    """All rows counted in equal bins of the first two dimensions (or the only one).

    Attributes:
        counts: int64 (bins, bins), or (bins, 1) for an embedding of one dimension; [x, y].
        extent: Ends of the axes: x low, x high, y low, y high.
        outside: Rows beyond the ends: the outermost tails, left out so that outliers do not shrink the picture.
    """

    counts: NDArray[np.int64]
    extent: tuple[float, float, float, float]
    outside: int


def draw_sample(
    spark: SparkSession,
    *,
    rows: DataFrame,
    embeddings: DataFrame,
    n_rows: int,
    config: EvaluateConfig,
    random_state: int,
    wanted: Wanted | None = None,
    held_out: tuple[float, int] | None = None,
    predicted: str | None = None,
    originals: Originals | None = None,
) -> Sample:
    """Draw rows by id from the `n_rows` embeddings; features for at most `config.sample_rows` of them, and 256 MiB.

    With `originals`, the rows that these are of come first, and they alone are measured.

    Runs on: driver. Collects at most max(sample_rows, plot_rows) embeddings, with the columns to colour them by.

    Raises: InputError: if there are no embeddings, they differ in length or hold null, NaN or infinity.
    """
    from pyspark.sql import functions as F

    from ivis_spark.spark.draws import DRAW, draw_rows
    from ivis_spark.spark.held_out import is_held_out
    from ivis_spark.spark.rows.columns import unused

    labelled = "label" in embeddings.columns
    further = readable(embeddings, without=("id", "embedding", "label"))
    columns = [F.col("id"), F.col("embedding"), *([_plain(embeddings, "label", "label")] if labelled else [])]
    columns += [column.alias(f"column{place}") for place, column in enumerate(further.values())]
    hidden = F.lit(False) if held_out is None else is_held_out(F.col("id"), *held_out)
    columns.append(hidden.alias("held_out"))
    columns += [] if predicted is None else [_plain(embeddings, predicted, "predicted")]
    columns.append(F.xxhash64(F.lit(random_state), F.col("id")).alias(DRAW))
    if originals is not None:
        is_original = unused("original", embeddings.columns)
        original_ids = F.broadcast(originals.table.select("id", F.lit(True).alias(is_original)))
        embeddings = embeddings.join(original_ids, "id", "left")
        columns.append(F.col(is_original).alias("original"))
    size = max(config.sample_rows, config.plot_rows)
    first = None if originals is None else "original"
    records = draw_rows(embeddings.select(*columns), size, n_rows=n_rows, first=first)
    if not records:
        raise InputError("the table of embeddings has no rows, so there is nothing to evaluate")
    drawn = dict(zip(records[0].asDict(), zip(*records, strict=True), strict=True))
    ids = np.array(drawn["id"], np.int64)
    embedding = _stack(ids, drawn["embedding"])
    if labelled:
        labels = read_labels(drawn["label"])
    elif "label" in rows.columns:
        labels = read_labels(_by_id(spark, rows.select("id", _plain(rows, "label", "label")), ids)["label"])
    else:
        labels = None
    column_values = {name: list(drawn[f"column{place}"]) for place, name in enumerate(further)}
    column_values |= _draw_colours(spark, rows, wanted or Wanted(), ids)
    read = {name: read_labels(values) for name, values in column_values.items()}
    measured, features = _draw_features(spark, rows, originals, ids[: config.sample_rows])
    read_columns = {name: column for name, column in read.items() if column is not None}
    tested = None if held_out is None else np.array(drawn["held_out"], np.bool_)
    of_model = None if predicted is None else read_labels(drawn["predicted"], classes=True)
    return Sample(ids, embedding, labels, measured, features, read_columns, tested, of_model)


def _draw_colours(
    spark: SparkSession, rows: DataFrame, colours: Wanted, ids: NDArray[np.int64]
) -> dict[str, list[Any]]:
    column_values: dict[str, list[Any]] = {}
    if colours.features:
        packed = rows.select("id", packed_features(list(colours.features.values())).alias("packed"))
        values = unpack_features(_by_id(spark, packed, ids)["packed"], len(colours.features))
        if colours.scaler is not None:
            values = colours.scaler.inverse(values, list(colours.features.values()))
        column_values |= {name: list(values[:, place]) for place, name in enumerate(colours.features)}
    if colours.table is not None:
        columns = readable(colours.table, without=("id",))
        named = [column.alias(f"column{place}") for place, column in enumerate(columns.values())]
        drawn = _by_id(spark, colours.table.select("id", *named), ids)
        column_values |= {name: drawn[f"column{place}"] for place, name in enumerate(columns)}
    return column_values


def density_bins(n_rows: int) -> int:
    """Return the bins of an axis: finer with more rows, at most 400, so that a bin holds more than single rows."""
    return min(max(round(math.sqrt(n_rows) / 2), 50), 400)


def count_density(embeddings: DataFrame, bins: int) -> Density:
    """Count all rows of finite embeddings in bins of the first two dimensions, in Spark.

    The counts are those of datashader's `Canvas.points` with `count()` over the same ends (compared on 2 million
    rows in 400 x 400 bins: all equal), but no process sees all rows.

    Runs on: driver; collects at most bins^2 counts.
    """
    from pyspark.sql import functions as F

    first = embeddings.select(F.size("embedding").alias("dims")).head()
    names = ["x", "y"][: min(2, first["dims"] if first else 1)]
    points = embeddings.select(*[F.col("embedding")[i].cast("double").alias(name) for i, name in enumerate(names)])
    for name in names:
        points = points.filter(F.abs(F.col(name)) <= F.lit(float(np.finfo(np.float32).max)))  # NaN is above all
    extent = _ranges(points, names)
    counts = np.zeros((bins, bins if len(names) == 2 else 1), np.int64)
    if extent is None:
        return Density(counts, (0.0, 1.0, 0.0, 1.0), 0)
    binned = []
    for name, (low, high) in zip(names, extent, strict=True):
        bin_number = F.floor((F.col(name) - F.lit(low)) * F.lit(bins / (high - low))).cast("long")
        inside = (F.col(name) >= F.lit(low)) & (F.col(name) <= F.lit(high))
        binned.append(F.when(inside, F.least(bin_number, F.lit(bins - 1))).alias(name))
    counted: Any = points.select(*binned).groupBy(*names).count().toPandas()
    gone = counted[names].isna().any(axis=1)
    bin_numbers = counted.loc[~gone, names].to_numpy(np.int64)
    counts[bin_numbers[:, 0], bin_numbers[:, 1] if len(names) == 2 else 0] = counted.loc[~gone, "count"]
    y_extent = extent[1] if len(names) == 2 else (0.0, 1.0)
    return Density(counts, (*extent[0], *y_extent), int(counted.loc[gone, "count"].sum()))


def _ranges(points: DataFrame, names: list[str]) -> list[tuple[float, float]] | None:
    """Return the ends of each axis: the quantiles of all but the outermost .1 % of rows, and half as much again."""
    from pyspark.sql import functions as F

    aggregates = []
    for name in names:
        aggregates += [F.min(name), F.max(name), F.percentile_approx(name, list(_TAILS), 10_000)]
    values = points.agg(*aggregates).collect()[0]
    ends = []
    for place in range(len(names)):
        least, most, tails = values[3 * place : 3 * place + 3]
        if least is None:
            return None
        room = 0.25 * (tails[1] - tails[0])
        low, high = max(least, tails[0] - room), min(most, tails[1] + room)
        if not high > low:
            half = max(abs(low) * 1e-3, 1e-6)
            low, high = low - half, low + half
        ends.append((float(low), float(high)))
    return ends


def _plain(table: DataFrame, name: str, alias: str) -> Column:
    """Return a column of classes as double if it is a number, else as text."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import NumericType

    from ivis_spark.spark.rows.columns import quoted

    numeric = isinstance(table.schema[name].dataType, NumericType)
    return F.col(quoted(name)).cast("double" if numeric else "string").alias(alias)


def _by_id(spark: SparkSession, table: DataFrame, ids: NDArray[np.int64]) -> dict[str, list[Any]]:
    """Return the columns of a table for these ids, in their order; None where an id is missing."""
    records = _of_ids(spark, table, ids)
    place = {key: row for row, key in enumerate(records["id"])}
    rows = [place.get(key) for key in ids]
    columns = {name: list(records[name]) for name in table.columns if name != "id"}
    return {name: [None if row is None else values[row] for row in rows] for name, values in columns.items()}


def _of_ids(spark: SparkSession, table: DataFrame, ids: NDArray[np.int64]) -> Any:
    from pyspark.sql import functions as F

    id_table = spark.createDataFrame([(int(key),) for key in ids], "id long")
    return table.join(F.broadcast(id_table), "id").toPandas()


def _draw_features(
    spark: SparkSession, rows: DataFrame, originals: Originals | None, ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from pyspark.sql import functions as F

    rows = rows if originals is None else originals.table
    first: Any = rows.select(F.length("features").alias("size") if originals is None else "id").head()
    if first is None:
        return np.empty(0, np.int64), np.empty((0, 1), np.float32)
    size = first["size"] if originals is None else 4 * originals.scaler.n_inputs
    most = max(100, math.floor(FEATURE_BYTES / max(size, 1)))
    if most < len(ids):
        log.warning(
            "metrics are measured on %s rows instead of %s, whose features would exceed 256 MiB", most, len(ids)
        )
        ids = ids[:most]
    rows = rows.select("id", "features")
    found = _of_ids(spark, rows, ids) if originals is None else rows.toPandas()  # those are few
    by_id = dict(zip(found["id"], found["features"], strict=True))
    positions = np.array([place for place, key in enumerate(ids) if key in by_id], np.int64)
    if len(positions) < len(ids):
        log.info(
            "metrics are measured on %d rows instead of %d: only these keep their features", len(positions), len(ids)
        )
    if not len(positions):
        return positions, np.empty((0, 1), np.float32)
    packed = [by_id[ids[place]] for place in positions]
    if originals is None:
        return positions, np.stack([np.frombuffer(row, "<f4") for row in packed])
    from ivis_spark.spark.rows.components import rows_of

    return positions, originals.scaler.transform(rows_of(packed, originals.scaler.n_inputs))


def _stack(ids: NDArray[np.int64], vectors: Any) -> NDArray[np.float64]:
    dims = max(0 if vector is None else len(vector) for vector in vectors)
    out = np.full((len(ids), max(dims, 1)), np.nan)
    for row, vector in enumerate(vectors):
        if vector is not None and len(vector) == dims:
            out[row] = [np.nan if value is None else value for value in vector]
    bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(ids)} sampled embeddings hold null, NaN or infinity or do not have {dims} "
            f"dimensions, first id {ids[bad[0]]}; train again with scaled features or a lower learning rate"
        )
    return out
