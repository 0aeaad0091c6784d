"""PNG pictures of a report, drawn by matplotlib without a display."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.core.metrics import PairDistances
from ivis_spark.errors import DependencyError
from ivis_spark.report.labels import MISSING_COLOUR, PALETTE, Labels, Layer, plan_layers, shortened
from ivis_spark.report.sample import Density

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

COLOUR_SCALE = "viridis"  # its order is kept without colour vision and in grey
DISTANCE_BINS = 10
_MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D"}
_DPI = 144
_NAME_SIZE, _NAME_ROWS = 11, 3  # points, of class names in the map, and rows that one may be moved
_LEGEND_ROWS, _LEGEND_POINTS = 20, 14.0  # most names below one another, and the height of each
LEGEND_CHARS = 28  # of a line; longer names are wrapped
_NEAREST, _MOST_SEARCHED = 30, 2_000  # rows by whose distance the densest place of a class is found


@dataclass(frozen=True)
class Shaded:
    """Points as a picture: RGBA of shape (height, width, 4), the first row at the top, and the ends of its axes."""

    pixels: NDArray[np.uint8]
    extent: tuple[float, float, float, float]


def place_points(embedding: Floats, labels: Labels | None) -> tuple[Floats, Floats]:
    """Return x and y to draw: the first two dimensions, or for a single one a strip, a lane for each class.

    The jitter of a strip is that of the row's place in the sample, so it is the same on a rerun.
    """
    x = embedding[:, 0]
    if embedding.shape[1] > 1:
        return x, embedding[:, 1]
    jitter = np.random.default_rng(0).uniform(-0.4, 0.4, len(x))
    lane = np.zeros(len(x)) if labels is None or labels.continuous else labels.codes
    return x, lane + jitter


def axis_titles(dims: int) -> tuple[str, str]:
    """Return the titles of the axes for an embedding of `dims` dimensions."""
    if dims == 1:
        return "dimension 1", "spread for reading only"
    of = f" of {dims}" if dims > 2 else ""
    return f"dimension 1{of}", f"dimension 2{of}"


def scale_colour(share: float) -> str:
    """Return the colour at a share of 1 of the colour scale, as #rrggbb."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return str(to_hex(colormaps[COLOUR_SCALE](share)))


def describe_dims(dims: int) -> str:
    """Return which dimensions a picture shows."""
    return f"first 2 of {dims} dimensions" if dims > 2 else "1 dimension" if dims == 1 else "2 dimensions"


def save_embedding(path: str, embedding: Floats, labels: Labels | None, title: str) -> None:
    """Draw the sampled rows, coloured by label.

    Raises: DependencyError: if matplotlib is missing.
    """
    figure, axes = _new_figure(title, size=figure_size(labels, len(embedding)))
    draw_embedding(axes, embedding, labels)
    _save(figure, path)


def figure_size(labels: Labels | None, n_rows: int) -> tuple[float, float]:
    """Return the inches that a picture of an embedding takes with its legend."""
    _, columns = _legend_names(plan_layers(labels, n_rows), _LEGEND_ROWS)
    return 9.0 + 2.0 * max(columns - 1, 0), 7.0


def draw_embedding(
    axes: Axes, embedding: Floats, labels: Labels | None, *, name: str = "label", shaded: Shaded | None = None
) -> None:
    """Draw rows into axes, coloured by label, with what the colours mean.

    Args:
        axes: Where to draw.
        embedding: Shape (n, e).
        labels: Of the n rows; None draws all in one colour.
        name: Of the label, beside a colour scale.
        shaded: The points as a picture, drawn instead of them.
    """
    x, y = place_points(embedding, labels)
    scale = None if labels is None or not labels.on_scale else labels
    size = float(np.clip(20_000 / max(len(x), 1), 3.0, 24.0))
    if shaded is not None:
        axes.imshow(shaded.pixels, extent=shaded.extent, aspect="auto", interpolation="nearest")
    else:
        for layer in plan_layers(labels, len(x)):
            order = layer.rows
            axes.scatter(x[order], y[order], s=size, c=layer.colour, marker=_MARKERS[layer.marker], alpha=0.75, lw=0)
    if scale is not None and scale.numbers is not None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        colours = ScalarMappable(Normalize(*scale.ends), COLOUR_SCALE)
        if shaded is None:
            known = scale.known
            axes.scatter(x[known], y[known], s=size, c=colours.to_rgba(scale.numbers[known]), lw=0)
        figure: Any = axes.get_figure()
        figure.colorbar(colours, ax=axes, label=name, shrink=0.8, extend="both")
    _write_legend(axes, labels, len(x))
    _name_axes(axes, embedding.shape[1])
    if embedding.shape[1] > 1:  # distances mean the same in all directions
        groups = axes.get_shared_x_axes(), axes.get_shared_y_axes()
        shared = any(len(group.get_siblings(axes)) > 1 for group in groups)
        axes.set_aspect("equal", adjustable="box" if shared else "datalim")
    if scale is None and labels is not None:
        _write_names(axes, x, y, labels)


def save_density(path: str, density: Density, dims: int, title: str) -> None:
    """Draw how many of all rows fall in each bin.

    Raises: DependencyError: if matplotlib is missing.
    """
    figure, axes = _new_figure(title)
    from matplotlib.colors import LogNorm

    counts = density.counts
    x_low, x_high, *_ = density.extent
    if counts.shape[1] == 1:
        edges = np.linspace(x_low, x_high, len(counts) + 1)
        axes.stairs(counts[:, 0], edges, fill=True, color="#3f6fa8")
        axes.set_xlabel("dimension 1")
        axes.set_ylabel("rows")
    else:
        shown = np.where(counts.T > 0, counts.T, np.nan)
        most = max(int(counts.max()), 2)
        picture = axes.imshow(
            shown, origin="lower", extent=density.extent, aspect="auto", cmap=COLOUR_SCALE, norm=LogNorm(1, most)
        )
        figure.colorbar(picture, ax=axes, label="rows in a bin (logarithmic)", shrink=0.8)
        _name_axes(axes, dims)
    _save(figure, path)


def save_loss(path: str, curves: Mapping[str, Sequence[float]]) -> None:
    """Draw the loss by epoch; curves of other scales are left to the page.

    Raises: DependencyError: if matplotlib is missing.
    """
    figure, axes = _new_figure("Loss by epoch", size=(7.0, 4.0))
    from matplotlib.ticker import MaxNLocator

    axes.set_prop_cycle(color=PALETTE)
    for name, values in curves.items():
        epochs = np.arange(1, len(values) + 1)
        axes.plot(epochs, values, marker="o" if len(values) < 40 else None, ms=4, lw=1.6, label=name)
    if not any(len(values) for values in curves.values()):
        axes.text(0.5, 0.5, "no loss was recorded", ha="center", transform=axes.transAxes)
    if len(curves) > 1:
        axes.legend(frameon=False)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    _save(figure, path)


def save_distances(path: str, pairs: PairDistances) -> None:
    """Draw a box of distances in the embedding for each bin of distances in the features.

    Raises: DependencyError: if matplotlib is missing.
    """
    figure, axes = _new_figure("Distances of random pairs of rows", size=(9.0, 5.0))
    edges, bins = pairs.bins(DISTANCE_BINS)
    boxes = [pairs.embedded[bins == place] for place in range(len(edges) - 1)]
    axes.boxplot(boxes, showfliers=False, medianprops={"color": "#a33b00"})
    names = [f"{low:.3g} to\n{high:.3g}" for low, high in itertools.pairwise(edges)]
    axes.set_xticks(range(1, len(names) + 1), names, fontsize=9)
    axes.set_xlabel("distance in the features")
    axes.set_ylabel("distance in the embedding")
    _save(figure, path)


def _new_figure(title: str, size: tuple[float, float] = (9.0, 7.0)) -> tuple[Figure, Axes]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as err:
        raise DependencyError("pictures need matplotlib; install it with: pip install 'ivis_spark[report]'") from err
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: that would choose a backend for the user's whole process
    axes = figure.add_subplot()
    axes.set_title(title, parse_math=False, fontsize=12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _name_axes(axes: Axes, dims: int) -> None:
    x_title, y_title = axis_titles(dims)
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    if dims == 1:
        axes.set_yticks([])


def _write_names(axes: Axes, x: Floats, y: Floats, labels: Labels) -> None:
    """Write each class at its densest place, or a little above it, so that the picture can be read without colours."""
    from matplotlib import patheffects

    figure: Any = axes.get_figure()
    figure.draw_without_rendering()  # which places the axes
    points = figure.dpi / 72
    height, taken = _NAME_SIZE * 1.2 * points, list[tuple[float, float, float]]()
    for layer in plan_layers(labels, len(x)):
        if layer.colour == MISSING_COLOUR or len(layer.name) > 16 or not len(layer.rows):
            continue
        at = _densest(np.column_stack([x[layer.rows], y[layer.rows]]))
        left, low = (float(each) for each in axes.transData.transform(at))
        width, shift = 0.65 * _NAME_SIZE * points * len(layer.name), 0.0
        while any(abs(left - a) < (width + w) / 2 and abs(low + shift - b) < height for a, b, w in taken):
            shift += height / 4
        if shift > _NAME_ROWS * height:
            continue  # the legend has it
        taken.append((left, low + shift, width))
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": _NAME_SIZE, "weight": "bold"}
        text = axes.annotate(
            layer.name, at, xytext=(0, shift / points), textcoords="offset points", parse_math=False, **style
        )
        text.set_in_layout(False)
        text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])


def _densest(points: Floats) -> tuple[float, float]:
    """Return the point whose nearest others are closest: in a class of several groups no average is in one of them."""
    from sklearn.neighbors import NearestNeighbors

    places = np.unique(np.linspace(0, len(points) - 1, _MOST_SEARCHED).astype(np.int64))
    sample = points[places]
    nearest = min(max(_NEAREST, len(sample) // 10), len(sample) // 2)
    if nearest:
        distances, _ = NearestNeighbors(n_neighbors=nearest).fit(sample).kneighbors()
        sample = sample[[distances[:, -1].argmin()]]
    return float(sample[0, 0]), float(sample[0, 1])


def _legend_names(layers: Sequence[Layer], rows: int) -> tuple[list[str], int]:
    """Return the names of a legend, wrapped, and in how many columns `rows` lines hold them.

    Names are shortened to one line, as far as they still differ, where they need more than two columns otherwise.
    """
    full = [layer.name for layer in layers]
    for names in (full, shortened(full, LEGEND_CHARS)):
        wrapped = [textwrap.fill(name, LEGEND_CHARS) for name in names]
        lines = [name.count("\n") + 1 for name in wrapped]
        # matplotlib fills columns like this
        fits = (n for n in range(1, len(lines)) if max(part.sum() for part in np.array_split(lines, n)) <= rows)
        columns = next(fits, max(len(lines), 1))
        if columns <= 2:
            break
    # matplotlib leaves out names that begin with an underscore.
    return [(" " if name.startswith("_") else "") + name for name in wrapped], columns


def _write_legend(axes: Axes, labels: Labels | None, n_rows: int) -> None:
    from matplotlib.lines import Line2D

    layers = plan_layers(labels, n_rows)
    if labels is None or not layers:
        return
    handles = [Line2D([], [], ls="", marker=_MARKERS[layer.marker], color=layer.colour, ms=7) for layer in layers]
    names, columns = _legend_names(layers, _legend_rows(axes))
    at = (0.0, -0.05) if labels.on_scale else (1.01, 1.0)  # the place beside is taken by the colour scale
    legend: Any = axes.legend(
        handles, names, loc="upper left", bbox_to_anchor=at, frameon=False, ncols=columns, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _legend_rows(axes: Axes) -> int:
    """Return how many names fit below one another beside the axes."""
    figure: Any = axes.get_figure()
    points = axes.get_window_extent().height / figure.dpi * 72
    return int(np.clip(points / _LEGEND_POINTS, 1, _LEGEND_ROWS))


def _save(figure: Figure, path: str) -> None:
    figure.savefig(path, metadata={"Software": "ivis_spark"})
