"""Principal components of the rows: learnt on the driver from a sample, with what is needed to judge them by.

The sample is of distinct rows where rows are told apart by their content: of a table that is mostly copies, components
must tell the others apart. It is drawn by a hash, so that it is the same however the table was cut.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ivis_spark import storage
from ivis_spark.core.knn.by_features import FeatureSearch, NearestByFeatures, rows_to_measure
from ivis_spark.core.projection import Projection, is_sparse, sample_rows
from ivis_spark.core.scaling import Scaler
from ivis_spark.spark.draws import DRAW, draw_rows
from ivis_spark.spark.rows.columns import FEATURES, ID, Source
from ivis_spark.spark.rows.ids import HASH
from ivis_spark.spark.session import describe_job
from ivis_spark.spark.vectors import unpack, unpack_sparse
from ivis_spark.storage import StageBuild

log = logging.getLogger(__name__)

NEAREST = "nearest.npz"
_SEED = 0  # the stage's own: run seeds belong to later stages
# Rows whose features are kept for the report, which measures them densely.
ORIGINAL_ROWS, ORIGINAL_BYTES, LEAST_ORIGINALS = 5_000, 64 << 20, 100


def with_components(
    scaler: Scaler, raw: DataFrame, source: Source, count: int, *, rows: int
) -> tuple[Scaler, dict[str, Any], FeatureSearch]:
    """Return a scaler that projects too, what the manifest says of the components, and rows to judge them by.

    Runs on: driver. Memory: a sample of rows, see `sample_rows`, and what PCA makes of it.

    Args:
        scaler: Scaling of the features.
        raw: Rows as `ingest` wrote them: checked, not scaled, packed.
        source: What they come from.
        count: Components; fewer where there are not more rows, or features, than that.
        rows: Number of rows.

    Raises:
        InputError: if sparse rows have only one feature.
    """
    describe_job(raw.sparkSession, "ingest: sample rows for principal components")
    size = sample_rows(_row_bytes(raw, source), count)
    marks, packed = _draw(raw, size, rows)
    projection, facts = learn(scaler, packed, source.width, count)
    scaler = dataclasses.replace(scaler, projection=projection)
    log.info(
        "%d principal components stand for %d features: %.1f %% of the variance of %d sampled rows",
        *(facts["count"], source.width, 100 * facts["explained_variance"], facts["sample_rows"]),
    )
    if facts["count"] < count:
        log.warning(
            "%d and not %d components: components are fewer than rows, of which %d were sampled, and features",
            *(facts["count"], count, facts["sample_rows"]),
        )
    measured = slice(0, rows_to_measure(source.width))
    some = rows_of(packed[measured], source.width)
    return scaler, facts, FeatureSearch(marks[measured], some, scaler)


def learn(scaler: Scaler, packed: list[Any], width: int, count: int) -> tuple[Projection, dict[str, Any]]:
    """Return the projection of scaled rows that a sample shows, and what the manifest says of it.

    Runs on: driver.

    Args:
        scaler: Scaling of the features.
        packed: Values of `features` of the sample, not scaled; all there is if it is one.
        width: Features of a row.
        count: Components.
    """
    sample = scaler.scale(rows_of(packed, width))
    if sample.shape[0] == 1:  # all rows are equal, and numbered by content
        sample = sample[[0, 0]]
    n_sampled = sample.shape[0]
    projection = Projection.fit(sample, count, seed=_SEED)
    # sparse samples are not shifted by the offset, which would fill them
    mean = projection.mean - scaler.offset * scaler.factor if is_sparse(sample) else projection.mean
    explained = projection.explained
    facts = {
        "count": len(explained),
        "explained_variance": float(explained.sum()),
        "explained_variance_ratio": [round(float(share), 6) for share in explained],
        "sample_rows": n_sampled,
    }
    return dataclasses.replace(projection, mean=mean), facts


def judge(nearest: NearestByFeatures, rows: int, build: StageBuild) -> dict[str, Any]:
    """Keep the neighbours by all features, and return what the manifest says of those among components."""
    kept, k = nearest.kept(rows)
    storage.write_bytes(build.path(NEAREST), nearest.to_bytes())
    log.info(
        "of the %d nearest of %d rows by all features, %.1f %% are the nearest by components",
        *(k, kept.sample, 100 * kept.value),
    )
    return {"kept_neighbours": round(kept.value, 4), "kept_neighbours_k": k}


def _row_bytes(raw: DataFrame, source: Source) -> float:
    """Return the bytes of a row, of sparse ones on average: the same however the table was cut."""
    if not source.sparse:
        return np.dtype(source.dtype).itemsize * source.width
    mean = raw.select(F.avg(F.length(F.col(FEATURES)["indices"]))).first()
    return max(1.0, 3 * float(mean[0]) if mean is not None else 0.0)  # 4 bytes of the index, 8 of the value


def _draw(raw: DataFrame, size: int, rows: int) -> tuple[NDArray[np.int64], list[Any]]:
    """Return marks and `features` of `size` rows, or all if there are fewer, in random order: by the lowest hashes."""
    key = ID if ID in raw.columns else HASH
    hashed = raw.select(F.xxhash64(key, F.lit(_SEED)).alias(DRAW), F.col(key).alias("mark"), FEATURES)
    if key == HASH:  # copies, which count among the rows, are drawn once
        hashed = hashed.groupBy(DRAW).agg(F.min("mark").alias("mark"), F.min(FEATURES).alias(FEATURES))
    records = draw_rows(hashed, size, n_rows=rows)
    marks = np.array([record["mark"] for record in records], np.int64)
    return marks, [record[FEATURES] for record in records]


def rows_of(packed: list[Any], width: int) -> Any:
    """Return collected values of `features`, of rows that were not scaled, as an array or a SciPy CSR matrix (n, d)."""
    if not packed:
        return np.empty((0, width), np.float32)
    if isinstance(packed[0], (bytes, bytearray)):
        return unpack(pa.array(packed, pa.binary()), "<f4" if len(packed[0]) == 4 * width else "<f8")
    fields = [pa.array([row[name] for row in packed], pa.binary()) for name in ("indices", "values")]
    return unpack_sparse(pa.StructArray.from_arrays(fields, ["indices", "values"]), width)


def keeps_original(numbers: NDArray[np.int64], rows: int, width: int) -> NDArray[np.bool_]:
    """Tell which rows of a table keep their features beside the components: a random sample by id, of bounded size."""
    most = min(ORIGINAL_ROWS, max(LEAST_ORIGINALS, ORIGINAL_BYTES // (4 * width)))
    if rows <= most:
        return np.ones(len(numbers), bool)
    # SplitMix64: Spark's hash is not at hand in a task
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    chosen: NDArray[np.bool_] = mixed < np.uint64(int(most / rows * 2**64))
    return chosen
