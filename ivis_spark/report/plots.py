"""Data of the interactive pictures, in the form plotly.js reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ivis_spark.errors import DependencyError
from ivis_spark.report.labels import PALETTE


def require_plotly() -> str:
    """Return the source of plotly.js.

    Raises: DependencyError: if plotly is missing.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as err:
        raise DependencyError("the report needs plotly; install it with: pip install 'ivis_spark[report]'") from err
    return str(get_plotlyjs())


def curves_of(training: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the curves by epoch in `training`: `loss`, and every list of numbers as long."""
    loss = [float(value) for value in training.get("loss") or []]
    curves = {"loss": loss}
    for name, values in training.items():
        numeric = isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)
        if name != "loss" and numeric and loss and len(values) == len(loss):
            curves[str(name)] = [float(value) for value in values]
    return curves


def loss_traces(curves: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return plotly traces of curves by epoch; other curves are hidden until selected in the legend."""
    return [
        {
            "x": list(range(1, len(values) + 1)),
            "y": [value if math.isfinite(value) else None for value in values],
            "name": escape(name, quote=False),  # plotly reads some HTML tags
            "line": {"color": PALETTE[place % len(PALETTE)]},
            "mode": "lines+markers" if len(values) < 40 else "lines",
            "visible": True if "loss" in name else "legendonly",
        }
        for place, (name, values) in enumerate(curves.items())
    ]


def to_json(data: Any) -> str:
    """Return JSON that can stand inside a script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
