"""Stages of `pyspark.ml`: an estimator, its model, and an evaluator of embeddings."""

from ivis_spark.ml.estimator import IvisEstimator
from ivis_spark.ml.evaluator import EmbeddingEvaluator
from ivis_spark.ml.model import IvisModel, Summary, embed_udf
from ivis_spark.ml.registered import pyfunc_input

__all__ = ["EmbeddingEvaluator", "IvisEstimator", "IvisModel", "Summary", "embed_udf", "pyfunc_input"]
