"""Data of the interactive pictures, in the form plotly.js reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.errors import DependencyError
from ivis_spark.report.figures import COLOUR_SCALE, place_points
from ivis_spark.report.labels import plan_layers
from ivis_spark.report.sample import Sample


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


def scatter_traces(sample: Sample) -> list[dict[str, Any]]:
    """Return plotly traces, without their type: the page picks WebGL if the browser has it."""
    labels = sample.labels
    x, y = place_points(sample.embedding, labels)
    size = float(np.clip(200 / np.sqrt(max(len(x), 1)), 3.0, 8.0))
    traces = []
    for layer in plan_layers(labels, len(x)):
        label = "" if labels is None else f"<br>label {_plotly_text(layer.name, template=True)}"
        traces.append(
            {
                **_points(sample, x, y, layer.rows),
                "name": _plotly_text(layer.name),
                "marker": {"color": layer.colour, "symbol": layer.marker, "size": size, "opacity": 0.75},
                "hovertemplate": f"id %{{text}}{label}<extra></extra>",
            }
        )
    if labels is not None and labels.on_scale and labels.numbers is not None:
        rows = np.flatnonzero(labels.known)
        scale = {"color": _short(labels.numbers[rows]), "colorscale": COLOUR_SCALE.title(), "showscale": True}
        scale |= dict(zip(("cmin", "cmax"), labels.ends, strict=True))
        scale |= {"size": size, "opacity": 0.8, "colorbar": {"title": {"text": "label"}, "thickness": 14}}
        hover = "id %{text}<br>label %{marker.color}<extra></extra>"
        traces.append(
            {**_points(sample, x, y, rows), "name": "label", "showlegend": False, "marker": scale}
            | {"hovertemplate": hover}
        )
    return traces


def _points(sample: Sample, x: NDArray[Any], y: NDArray[Any], rows: NDArray[Any]) -> dict[str, Any]:
    # Ids as text: JavaScript rounds whole numbers beyond 2^53.
    return {"x": _short(x[rows]), "y": _short(y[rows]), "text": [str(key) for key in sample.ids[rows]]}


def loss_traces(curves: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return plotly traces of curves by epoch; those that are no loss are hidden until chosen in the legend."""
    return [
        {
            "x": list(range(1, len(values) + 1)),
            "y": [value if math.isfinite(value) else None for value in values],
            "name": _plotly_text(name),
            "mode": "lines+markers" if len(values) < 40 else "lines",
            "visible": True if "loss" in name else "legendonly",
        }
        for name, values in curves.items()
    ]


def _plotly_text(text: str, *, template: bool = False) -> str:
    """Return text that plotly shows as it is: it reads some HTML tags, and `%{` in templates."""
    shown = escape(text, quote=False)
    return shown.replace("%", "&#37;") if template else shown


def to_json(data: Any) -> str:
    """Return JSON that can stand inside a script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _short(values: NDArray[Any]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
