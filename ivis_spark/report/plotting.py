"""`plot`: plots an embedding in one call, like umap.plot."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.errors import ConfigError, DependencyError, InputError
from ivis_spark.report.figures import Shaded, axis_titles, draw_embedding, figure_size, place_points, scale_colour
from ivis_spark.report.labels import Labels, plan_layers, read_labels, scale_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

log = logging.getLogger(__name__)

# Above so many rows points hide one another, and datashader mixes their colours.
_MOST_POINTS = 100_000
_PIXELS = (900, 700)
_REMEDY = "pip install 'ivis_spark[report]'"


def plot(
    model_or_embedding: Any,
    labels: ArrayLike | None = None,
    values: ArrayLike | None = None,
    *,
    X: Any = None,
    interactive: bool = False,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes | Figure:
    """Draw an embedding, coloured by class or by quantity.

    Of more than two dimensions the first two are drawn; one dimension is drawn as a strip. More than 100,000 rows are
    drawn by datashader if it is installed, which blends the colours of overlapping points.

    Args:
        model_or_embedding: An embedding, shape (n, e): an array or a data frame; or a fitted `Ivis`, which draws the
            rows that it was fitted on, or `X`.
        labels: A class per row, of any type; None or NaN means unlabelled.
        values: A number per row, drawn on a colour scale.
        X: Rows for the model to embed.
        interactive: Return a plotly figure, which zooms and shows the row of a point.
        ax: Matplotlib axes to draw into; None creates a figure.
        title: Title of the plot.

    Returns:
        The matplotlib axes, or a `plotly.graph_objects.Figure`.

    Raises:
        ConfigError: if arguments exclude each other.
        InputError: if there is not one finite row per label, or the model has no embedding to draw.
        DependencyError: if matplotlib or plotly is missing.

    Example:
        >>> import numpy as np
        >>> from ivis_spark import plot
        >>> embedding = np.random.default_rng(0).normal(size=(100, 2))
        >>> axes = plot(embedding, labels=np.where(embedding[:, 0] > 0, "right", "left"), title="Two halves")
        >>> axes.get_title()
        'Two halves'
        >>> type(plot(embedding, values=embedding[:, 1], interactive=True)).__name__
        'Figure'
    """
    if labels is not None and values is not None:
        raise ConfigError("labels and values both colour the points: pass only one of them")
    if interactive and ax is not None:
        raise ConfigError("ax is of matplotlib and interactive=True draws with plotly: pass one of them")
    embedding = _embedding_of(model_or_embedding, X)
    colours = _read_colours(labels, values, len(embedding))
    if interactive:
        return _interactive(embedding, colours, title)
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as err:
            raise DependencyError(f"plot needs matplotlib: {_REMEDY}") from err
        size = figure_size(colours, len(embedding))
        _, ax = pyplot.subplots(figsize=size, layout="constrained")
    shaded = _shade(embedding, colours) if len(embedding) > _MOST_POINTS else None
    draw_embedding(ax, embedding, colours, name="value" if labels is None else "label", shaded=shaded)
    if title is not None:
        ax.set_title(title, parse_math=False)
    return ax


def _embedding_of(source: Any, X: Any) -> NDArray[np.float64]:
    if hasattr(source, "transform"):
        if X is None and getattr(source, "embedding_", None) is None:
            raise InputError(
                "the model did not keep the embedding of the rows it was fitted on: pass X, the rows to embed"
            )
        source = source.embedding_ if X is None else source.transform(X)
    elif X is not None:
        raise ConfigError("X holds rows for a model to embed, but an embedding was passed: omit X")
    try:
        embedding = np.asarray(source, np.float64)
    except (TypeError, ValueError) as err:
        raise InputError(f"a {type(source).__name__} is not an embedding: pass an array of numbers, (n, e)") from err
    if embedding.ndim != 2 or 0 in embedding.shape:
        raise InputError(f"the embedding has shape {embedding.shape}; it must be (n, e), as returned by Ivis.transform")
    if not np.isfinite(embedding).all():
        bad = ~np.isfinite(embedding).all(axis=1)
        raise InputError(f"{bad.sum()} rows of the embedding hold NaN or infinity, first row {bad.argmax()}")
    return embedding


def _read_colours(labels: ArrayLike | None, values: ArrayLike | None, n_rows: int) -> Labels | None:
    source, name = (labels, "labels") if values is None else (values, "values")
    if source is None:
        return None
    array = np.asarray(source)
    if array.shape != (n_rows,):
        raise InputError(f"{name} has shape {array.shape}; it must be ({n_rows},), one per row of the embedding")
    if values is not None:
        try:
            numbers = array.astype(np.float64)
        except (TypeError, ValueError) as err:
            raise InputError("values must be numbers; pass classes as labels") from err
        numbers[~np.isfinite(numbers)] = np.nan
        return Labels((), np.full(n_rows, -1, np.int64), numbers)
    items = [
        None if item is None or type(item).__name__ == "NAType" or item != item else item for item in array.tolist()
    ]
    if any(isinstance(item, str) for item in items) or array.dtype.kind not in "iuf":
        return read_labels([None if item is None else str(item) for item in items])
    read = read_labels(items)
    if read is not None and read.continuous:  # every number is a class where labels are asked for
        return read_labels([None if item is None else f"{item:g}" for item in items])
    return read


def _shade(embedding: NDArray[np.float64], labels: Labels | None) -> Shaded | None:
    """Return the points mixed by datashader; None without it."""
    try:
        import datashader
        import pandas as pd
        from datashader import transfer_functions
    except ImportError:
        log.warning(
            "%s points overlap; with datashader installed (pip install datashader) their colours are blended",
            f"{len(embedding):,}",
        )
        return None
    x, y = place_points(embedding, labels)
    layers = plan_layers(labels, len(x)) + ([] if labels is None else scale_steps(labels, scale_colour))
    codes = np.zeros(len(x), np.int64)
    for place, layer in enumerate(layers):
        codes[layer.rows] = place
    used = np.unique(codes)
    layer_of_row = pd.Categorical.from_codes(np.searchsorted(used, codes), [f"{place}" for place in used])
    frame = pd.DataFrame({"x": x, "y": y, "layer": layer_of_row})
    canvas = datashader.Canvas(*_PIXELS)
    counts = canvas.points(frame, "x", "y", datashader.count_cat("layer"))
    key = {f"{place}": layers[place].colour for place in used}
    image = transfer_functions.shade(counts, color_key=key, how="eq_hist", min_alpha=60)
    pixels = np.asarray(transfer_functions.dynspread(image).to_pil().convert("RGBA"))
    return Shaded(pixels, (float(x.min()), float(x.max()), float(y.min()), float(y.max())))


def _interactive(embedding: NDArray[np.float64], labels: Labels | None, title: str | None) -> Figure:
    try:
        from plotly import graph_objects
    except ImportError as err:
        raise DependencyError(f"interactive=True needs plotly: {_REMEDY}") from err
    x, y = place_points(embedding, labels)
    size = float(np.clip(200 / np.sqrt(len(x)), 2.5, 8))
    figure = graph_objects.Figure()
    for layer in plan_layers(labels, len(x)):
        marker = {"color": layer.colour, "symbol": layer.marker, "size": size, "opacity": 0.75}
        figure.add_scattergl(
            **{"x": x[layer.rows], "y": y[layer.rows], "name": layer.name, "mode": "markers", "marker": marker},
            customdata=layer.rows,
            hovertemplate="row %{customdata}",
        )
    if labels is not None and labels.on_scale and labels.numbers is not None:
        rows, (low, high) = np.flatnonzero(labels.known), labels.ends
        shown = labels.numbers[rows]
        marker = {"color": shown, "colorscale": "Viridis", "cmin": low, "cmax": high, "size": size, "showscale": True}
        figure.add_scattergl(
            **{"x": x[rows], "y": y[rows], "name": "value", "mode": "markers", "marker": marker},
            customdata=np.column_stack([rows, shown]),
            hovertemplate="row %{customdata[0]}: %{customdata[1]:.6g}",
        )
    x_title, y_title = axis_titles(embedding.shape[1])
    figure.update_layout(title=title, xaxis_title=x_title, yaxis_title=y_title, template="plotly_white")
    figure.update_layout(showlegend=labels is not None and not labels.on_scale)
    return figure
