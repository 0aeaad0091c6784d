"""Metrics and pictures of a finished run."""

from __future__ import annotations

from ivis_spark.report.evaluate import evaluate

__all__ = ["evaluate"]
