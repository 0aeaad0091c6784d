"""The local API: `Ivis`."""

from ivis_spark.estimator.ivis import Ivis

__all__ = ["Ivis"]
