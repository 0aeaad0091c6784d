"""Quality of an embedding, as a Spark ML Evaluator for `CrossValidator` and similar."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.ml.evaluation import Evaluator
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ivis_spark.config import Config, EmbedConfig, EvaluateConfig, did_you_mean, is_import_name, what_it_has
from ivis_spark.config.imports import import_named
from ivis_spark.core import metrics
from ivis_spark.errors import ConfigError, InputError
from ivis_spark.ml.output import made_from
from ivis_spark.ml.params import StoredParams, add_accessors, check_spark_frame, naming_params, set_params
from ivis_spark.spark.rows import columns as frames
from ivis_spark.spark.rows.columns import quoted
from ivis_spark.spark.rows.tables import exact_names

log = logging.getLogger(__name__)

_LABELLED = ("knn_accuracy", "linear_svm_accuracy", "centroid_correlation")
METRIC_NAMES = (
    "trustworthiness",
    "continuity",
    "knn_recall",
    "random_triplet_accuracy",
    "distance_correlation",
    *_LABELLED,
)


def _param(name: str, doc: str, convert: Any) -> Param[Any]:
    return Param(Params._dummy(), name, doc, typeConverter=convert)


class EmbeddingEvaluator(Evaluator, StoredParams):
    """Measures an embedding on a sample of rows; larger is better in every metric.

    Args:
        params: Spark ML Params by name; `explainParams()` lists them.

    Example:
        >>> from ivis_spark import EmbeddingEvaluator
        >>> value = EmbeddingEvaluator(metricName="trustworthiness", k=5).evaluate(model.transform(frame))
        >>> 0.5 < value <= 1
        True
    """

    metricName = _param(
        "metricName",
        f"One of {', '.join(METRIC_NAMES)} (knn_recall: share of a row's k neighbours that are its neighbours in the "
        "embedding too; distance_correlation: Spearman's); or package.module:function, your own function of both "
        "arrays.",
        TypeConverters.toString,
    )
    featuresCol = _param(
        "featuresCol",
        "Array or vector column with the features. Without it and featureCols, an embedding of IvisModel.transform is "
        "measured against the columns that it was made from.",
        TypeConverters.toString,
    )
    featureCols = _param(
        "featureCols", "Numeric columns used as features, instead of featuresCol.", TypeConverters.toListString
    )
    embeddingCol = _param("embeddingCol", "Column with the embedding.", TypeConverters.toString)
    labelCol = _param(
        "labelCol",
        f"Column with the class, for {', '.join(_LABELLED)}; rows where it is null or NaN are left out.",
        TypeConverters.toString,
    )
    k = _param("k", "Neighbours in neighbour metrics.", TypeConverters.toInt)
    sampleRows = _param("sampleRows", "Rows to measure on, drawn at random.", TypeConverters.toInt)
    seed = _param("seed", "Seed of all random sampling.", TypeConverters.toInt)

    def __init__(self, **params: Any) -> None:
        super().__init__()
        self._setDefault(
            metricName=METRIC_NAMES[0],
            featuresCol=frames.FEATURES,
            featureCols=[],
            embeddingCol=EmbedConfig.output_col,
            labelCol=frames.LABEL,
            k=EvaluateConfig.k,
            sampleRows=EvaluateConfig.sample_rows,
            seed=Config.random_state,
        )
        set_params(self, params)

    def isLargerBetter(self) -> bool:
        """Always True: larger is better for all metrics."""
        return True

    def _evaluate(self, dataset: DataFrame) -> float:
        check_spark_frame(dataset, "EmbeddingEvaluator.evaluate")
        if dataset.isStreaming:
            raise InputError(
                "EmbeddingEvaluator.evaluate takes a batch table, not a stream: write rows of it to a table"
            )
        name, k = self.getOrDefault("metricName"), self.getOrDefault("k")
        if is_import_name(name):
            with exact_names(dataset), naming_params():
                X, Z, _ = self._sample(dataset, labelled=False)
            return float(import_named(name, "metricName")(X, Z))
        if name not in METRIC_NAMES:
            raise ConfigError(
                f"metricName={name!r} is not one of: {', '.join(METRIC_NAMES)}{did_you_mean(name, METRIC_NAMES)}"
            )
        with exact_names(dataset), naming_params():
            X, Z, y = self._sample(dataset, labelled=name in _LABELLED)
        rng = np.random.default_rng(self.getOrDefault("seed") % 2**63)  # Spark ML's seeds may be negative
        if name == "random_triplet_accuracy":
            return metrics.random_triplet_accuracy(X, Z, n_triplets=EvaluateConfig.n_triplets, rng=rng)
        if name == "distance_correlation":
            return metrics.distance_correlation(X, Z, n_pairs=EvaluateConfig.n_pairs, rng=rng)[1]
        if name == "knn_accuracy":
            return metrics.knn_accuracy(Z, y, k=k, rng=rng)
        if name == "linear_svm_accuracy":
            return metrics.linear_svm_accuracy(Z, y, rng=rng)
        if name == "centroid_correlation":
            return metrics.centroid_correlation(X, Z, y)
        measure = {
            "trustworthiness": metrics.trustworthiness,
            "continuity": metrics.continuity,
            "knn_recall": metrics.knn_recall,
        }
        return measure[name](X, Z, k)

    def _sample(self, dataset: DataFrame, *, labelled: bool) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return features (n, d), embedding (n, e) and labels (n,) of random rows. Runs on: driver."""
        embedding = self._column(dataset, "embeddingCol")
        chosen = dataset.select(
            frames.as_array(dataset, self._features(dataset, embedding)).alias("x"),
            frames.as_array(dataset, [embedding]).alias("z"),
            (F.col(quoted(self._column(dataset, "labelCol"))) if labelled else F.lit(0)).alias("y"),
        ).where("forall(x, value -> value IS NOT NULL) AND forall(z, value -> value IS NOT NULL)")
        if labelled:  # as in training, null and NaN mean unlabelled
            nan = F.isnan("y") if isinstance(chosen.schema["y"].dataType, (T.FloatType, T.DoubleType)) else F.lit(False)
            chosen = chosen.where(F.col("y").isNotNull() & ~nan)
        first = chosen.orderBy(F.rand(self.getOrDefault("seed"))).limit(self.getOrDefault("sampleRows"))
        # In one task: the driver would take so many rows of every partition. `draw_rows` leaves most rows out, but has
        # to know how many there are, and to count rows that are being embedded is to embed them twice.
        drawn = first.coalesce(1).collect()
        if len(drawn) < 3:
            kind = "with embedding, features and a label" if labelled else "with embedding and features"
            raise InputError(
                f"the DataFrame has {len(drawn)} rows {kind} without nulls; at least 3 are needed to measure"
            )
        X, Z = (np.array([row[column] for row in drawn], np.float32) for column in ("x", "z"))
        if metrics.is_collapsed(Z):
            log.warning("the embedding collapsed: all rows of the sample are at almost the same point")
        return X, Z, np.array([row["y"] for row in drawn])

    def _features(self, dataset: DataFrame, embedding: str) -> list[str]:
        """Return the columns of the features: those set, else those that the embedding names, else the default."""
        several = self.getOrDefault("featureCols")
        if several:
            return [self._column(dataset, "featureCols", name) for name in several]
        named = made_from(dataset.schema[embedding])
        if named and not self.isSet("featuresCol") and set(named) <= set(dataset.columns):
            return named
        return [self._column(dataset, "featuresCol")]

    def _column(self, dataset: DataFrame, param: str, name: str | None = None) -> str:
        """Return a column that a Param names.

        Raises: InputError: if the DataFrame lacks it.
        """
        name = name or str(self.getOrDefault(param))
        if name in dataset.columns:
            return name
        remedy = ": set it, or featureCols=[...] for several numeric columns" if param == "featuresCol" else ""
        raise InputError(f"{param}={name!r} is not in the DataFrame{remedy}{what_it_has(name, dataset.columns)}")


for _name in ("metricName", "featuresCol", "featureCols", "embeddingCol", "labelCol", "k", "sampleRows", "seed"):
    add_accessors(EmbeddingEvaluator, _name)
