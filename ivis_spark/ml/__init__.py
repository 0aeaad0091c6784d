"""Stages of `pyspark.ml`: an estimator, its model, and an evaluator of embeddings."""

from ivis_spark.ml.estimator import IvisEstimator
from ivis_spark.ml.evaluator import EmbeddingEvaluator
from ivis_spark.ml.model import IvisModel, Summary, embed_udf

__all__ = ["EmbeddingEvaluator", "IvisEstimator", "IvisModel", "Summary", "embed_udf"]
