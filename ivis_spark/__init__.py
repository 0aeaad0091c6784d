"""ivis for tables that no machine holds, and ivis itself for the rest.

Importing this package loads neither TensorFlow nor PySpark; they are loaded when a name that needs them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ivis_spark.config import Config, load_config
from ivis_spark.errors import IvisError

if TYPE_CHECKING:
    from ivis_spark.estimator import Ivis
    from ivis_spark.pipeline import Pipeline

__all__ = ["Config", "Ivis", "IvisError", "Pipeline", "load_config"]

_LAZY = {"Ivis": "ivis_spark.estimator", "Pipeline": "ivis_spark.pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
