"""Data of the explorer: the drawn rows, what they can be coloured by, and the pairs whose distances are compared.

Numbers are packed as base64 of little-endian arrays: as text, 200,000 points would be three times as long, and slower
to read than to draw.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ivis_spark.core.metrics import PairDistances
from ivis_spark.report.figures import DISTANCE_BINS, axis_titles, place_points, scale_colour
from ivis_spark.report.labels import Labels, plan_layers, scale_steps
from ivis_spark.report.sample import Sample

_NO_LABEL = "nothing"


def explorer_data(sample: Sample) -> dict[str, Any]:
    """Return the rows of a sample, each colouring with a layer for every row, and the axes.

    The keys: `ids` int64, `x` and `y` float32, `colourings` with `name`, `plain` (one colour), `layers` (name, colour,
    symbol), `codes` (uint8, the layer of each row) and, of numbers, `values` (float32).
    """
    dims = sample.embedding.shape[1]
    x, y = place_points(sample.embedding, sample.labels)
    named: dict[str, Labels | None] = {"label": sample.labels} if sample.labels is not None else {_NO_LABEL: None}
    named |= sample.columns
    x_title, y_title = axis_titles(dims)
    return {
        "ids": _packed(sample.ids, "<i8"),
        "x": _packed(x, "<f4"),
        "y": _packed(y, "<f4"),
        "titles": [x_title, y_title],
        "strip": dims == 1,
        "colourings": [_colouring(name, labels, len(x)) for name, labels in named.items()],
    }


def _colouring(name: str, labels: Labels | None, n_rows: int) -> dict[str, Any]:
    layers = plan_layers(labels, n_rows) + ([] if labels is None else scale_steps(labels, scale_colour))
    codes = np.zeros(n_rows, np.uint8)
    for place, layer in enumerate(layers):
        codes[layer.rows] = place
    found: dict[str, Any] = {"name": name, "plain": labels is None, "codes": _packed(codes, "u1")}
    found["layers"] = [{"name": layer.name, "colour": layer.colour, "symbol": layer.marker} for layer in layers]
    if labels is not None and labels.on_scale and labels.numbers is not None:
        found["values"] = _packed(labels.numbers, "<f4")
    return found


def distance_data(pairs: PairDistances, measured: ArrayLike) -> dict[str, Any]:
    """Return the pairs' distances in the embedding by bins of those in the features, and their rows in the sample.

    Args:
        pairs: Of measured rows.
        measured: Positions of the measured rows in the sample.
    """
    edges, bins = pairs.bins(DISTANCE_BINS)
    places = np.asarray(measured)
    return {
        "edges": [float(f"{edge:.3g}") for edge in edges],
        "bins": _packed(bins, "u1"),
        "distances": _packed(pairs.embedded, "<f4"),
        "first": _packed(places[pairs.first], "<i4"),
        "second": _packed(places[pairs.second], "<i4"),
    }


def _packed(values: ArrayLike, kind: str) -> str:
    return base64.b64encode(np.asarray(values).astype(kind).tobytes()).decode("ascii")
