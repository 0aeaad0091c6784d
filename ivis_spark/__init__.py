"""ivis for tables too large for one machine, and for all others.

Importing this package loads neither TensorFlow nor PySpark; they are loaded when a name that needs them is used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from typing import TYPE_CHECKING, Any

from ivis_spark.config import Config, load_config
from ivis_spark.errors import IvisError, speak_python

if TYPE_CHECKING:
    from ivis_spark.estimator import Ivis
    from ivis_spark.ml import EmbeddingEvaluator, IvisEstimator, IvisModel, embed_udf, pyfunc_input
    from ivis_spark.pipeline import Pipeline
    from ivis_spark.report.plotting import plot

__all__ = [
    "Config",
    "EmbeddingEvaluator",
    "Ivis",
    "IvisError",
    "IvisEstimator",
    "IvisModel",
    "Pipeline",
    "embed_udf",
    "load_config",
    "plot",
    "pyfunc_input",
]

_LAZY = {
    "EmbeddingEvaluator": "ivis_spark.ml",
    "Ivis": "ivis_spark.estimator",
    "IvisEstimator": "ivis_spark.ml",
    "IvisModel": "ivis_spark.ml",
    "Pipeline": "ivis_spark.pipeline",
    "embed_udf": "ivis_spark.ml",
    "plot": "ivis_spark.report.plotting",
    "pyfunc_input": "ivis_spark.ml",
}


# TensorFlow reports CPU features and every dataset that ends early, some as errors; what fails is raised. 0 shows all.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return importlib.metadata.version(__name__)
        except importlib.metadata.PackageNotFoundError:  # a zip on the path of Python
            return "not installed"
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    speak_python(True)
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
