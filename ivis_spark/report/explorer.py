"""Data of the explorer: the drawn rows, what they can be coloured by, and the pairs whose distances are compared.

Numbers are packed as base64 of little-endian arrays: as text, 200,000 points would be three times as long, and slower
to read than to draw.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.core.metrics import PairDistances
from ivis_spark.report.figures import DISTANCE_BINS, axis_titles, place_points, scale_colour
from ivis_spark.report.labels import Labels, plan_layers, scale_steps
from ivis_spark.report.sample import Sample

_NO_LABEL, _DENSITY = "nothing", "density"
_MOST_BINS = 128


def explorer_data(sample: Sample) -> dict[str, Any]:
    """Return the rows of a sample, each colouring with a layer for every row, and the axes.

    The keys: `ids` int64, `x` and `y` float32, `colourings` with `name`, `plain` (tells nothing of a row), `layers`
    (name, colour, symbol), `codes` (uint8, the layer of each row) and, of numbers, `values` (float32).
    """
    dims = sample.embedding.shape[1]
    x, y = place_points(sample.embedding, sample.labels)
    density = Labels((), np.full(len(x), -1, np.int64), _density(x, y))
    named: dict[str, Labels | None] = {} if sample.labels is None else {"label": sample.labels}
    named |= {**sample.columns, _DENSITY: density} if named else {_DENSITY: density, **sample.columns, _NO_LABEL: None}
    x_title, y_title = axis_titles(dims)
    return {
        "ids": _packed(sample.ids, "<i8"),
        "x": _packed(x, "<f4"),
        "y": _packed(y, "<f4"),
        "titles": [x_title, y_title],
        "strip": dims == 1,
        "colourings": [_colouring(name, labels, len(x)) for name, labels in named.items()],
    }


def _density(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return how many drawn rows lie about each, in its bin of the picture and those that touch it; float64 (n,)."""
    points = np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    n_bins = int(np.clip(np.sqrt(len(points)) / 2, 8, _MOST_BINS))
    low, high = (np.percentile(points, share, axis=0) if len(points) else np.zeros(2) for share in (1, 99))
    step = np.where(high > low, (high - low) / n_bins, 1.0)
    bins = np.clip(((points - low) / step).astype(np.int64), -1, n_bins) + 1
    counts = np.zeros((n_bins + 2, n_bins + 2))
    np.add.at(counts, (bins[:, 0], bins[:, 1]), 1)
    padded = np.pad(counts, 1)
    size = n_bins + 2
    around = sum(padded[i : i + size, j : j + size] for i in range(3) for j in range(3))
    return np.asarray(around)[bins[:, 0], bins[:, 1]]


def _colouring(name: str, labels: Labels | None, n_rows: int) -> dict[str, Any]:
    layers = plan_layers(labels, n_rows) + ([] if labels is None else scale_steps(labels, scale_colour))
    codes = np.zeros(n_rows, np.uint8)
    for place, layer in enumerate(layers):
        codes[layer.rows] = place
    colouring: dict[str, Any] = {"name": name, "plain": name in (_DENSITY, _NO_LABEL), "codes": _packed(codes, "u1")}
    colouring["layers"] = [{"name": layer.name, "colour": layer.colour, "symbol": layer.marker} for layer in layers]
    if not colouring["plain"] and labels is not None and labels.on_scale and labels.numbers is not None:
        colouring["values"] = _packed(labels.numbers, "<f4")
    return colouring


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
