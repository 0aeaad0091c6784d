"""`plot`: plots an embedding in one call, like umap.plot."""

from __future__ import annotations

import dataclasses
import logging
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivis_spark.data.arrays import warn_of_other_order
from ivis_spark.data.labels import is_missing, warn_of_words, with_plain_text
from ivis_spark.errors import ConfigError, DependencyError, InputError, NotFittedError
from ivis_spark.report.figures import (
    LEGEND_CHARS,
    Shaded,
    axis_titles,
    draw_embedding,
    figure_size,
    place_points,
    scale_colour,
)
from ivis_spark.report.labels import MOST_LAYERS, Labels, plan_layers, read_labels, scale_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

log = logging.getLogger(__name__)

# Above so many rows points hide one another, and datashader mixes their colours.
_MOST_POINTS = 100_000
_MOST_COLUMNS = 3  # of a frame that is an embedding, not a table with one
_PIXELS = (900, 700)
# Pixels of a plotly figure, whose own default leaves a legend of ten classes hardly any map.
_HEIGHT, _MARGIN = 650, 40
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

    Of more than two dimensions the first two are drawn, as the titles of the axes say; one dimension is drawn as a
    strip. Both axes have one scale. More than 40 classes share 39 colours and grey. More than 100,000 rows are
    drawn by datashader if it is installed, which blends the colours of overlapping points.

    Args:
        model_or_embedding: An embedding, shape (n, e): an array, a data frame, or a series of vectors, as a column of
            embeddings of a Spark table is in pandas; or a fitted `Ivis`, which draws the rows that it was fitted on, or
            `X`.
        labels: A class per row, of any type, numbers too; None or NaN means unlabelled. Ordered categories of pandas
            keep their order.
        values: A number per row, drawn on a colour scale.
        X: Rows for the model to embed.
        interactive: Return a plotly figure, which zooms and shows the row of a point, by the index of a data frame.
        ax: Matplotlib axes to draw into; None creates a figure. A figure without a layout engine gets the constrained
            one, so that the legend beside the axes is not cut off.
        title: Title of the plot.

    Returns:
        The matplotlib axes, or a `plotly.graph_objects.Figure`.

    Raises:
        ConfigError: if arguments exclude each other.
        InputError: if there is not one finite row per label, or the model has no embedding to draw.
        NotFittedError: if the model was not fitted.
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
    for given, name in ((labels, "labels"), (values, "values")):
        warn_of_other_order(model_or_embedding if X is None else X, given, name)
    colours = _read_colours(labels, values, len(embedding))
    if interactive:
        return _interactive(embedding, colours, title, _row_names(model_or_embedding if X is None else X))
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as err:
            raise DependencyError(f"plot needs matplotlib: {_REMEDY}") from err
        size = figure_size(colours, len(embedding))
        _, ax = pyplot.subplots(figsize=size, layout="constrained")
    figure: Any = ax.get_figure()
    if hasattr(figure, "set_layout_engine") and figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
    shaded = _shade(embedding, colours) if len(embedding) > _MOST_POINTS else None
    draw_embedding(ax, embedding, colours, name="value" if labels is None else "label", shaded=shaded)
    if title is not None:
        ax.set_title(title, parse_math=False)
    return ax


def _embedding_of(source: Any, X: Any) -> NDArray[np.float64]:
    if hasattr(source, "transform") and not hasattr(source, "to_numpy"):  # data frames have a method of that name
        if not getattr(source, "__sklearn_is_fitted__", lambda: True)():
            raise NotFittedError("the model was not fitted yet: call fit first, then plot")
        if X is None and getattr(source, "embedding_", None) is None:
            where = "; of a model of Spark ML: plot(model.to_local(), X=rows)" if hasattr(source, "to_local") else ""
            raise InputError(
                f"the model did not keep the embedding of the rows it was fitted on: pass X, the rows to embed{where}"
            )
        source = source.embedding_ if X is None else source.transform(X)
    elif X is not None:
        raise ConfigError("X holds rows for a model to embed, but an embedding was passed: omit X")
    if hasattr(source, "toPandas"):
        raise InputError(
            "a Spark DataFrame is not an embedding: pass the column of embeddings as an array, "
            "frame.toPandas()['embedding'], of a sample if the table is large"
        )
    columns: Any = getattr(source, "columns", ())
    if len(columns) > _MOST_COLUMNS:
        log.warning("the frame has %d columns, of which the first two are drawn: %s", len(columns), list(columns[:2]))
    try:
        if getattr(getattr(source, "dtype", None), "kind", "") == "O" and np.ndim(source) == 1 and len(source):
            source = np.stack([each.toArray() if hasattr(each, "toArray") else each for each in source])
        embedding = np.asarray(source, np.float64)
    except (TypeError, ValueError) as err:
        raise InputError(f"a {type(source).__name__} is not an embedding: pass an array of numbers, (n, e)") from err
    if embedding.ndim != 2 or 0 in embedding.shape:
        raise InputError(f"the embedding has shape {embedding.shape}; it must be (n, e), as returned by Ivis.transform")
    if not np.isfinite(embedding).all():
        bad = ~np.isfinite(embedding).all(axis=1)
        raise InputError(f"{bad.sum()} rows of the embedding hold NaN or infinity, first row {bad.argmax()}")
    return embedding


def _row_names(source: Any) -> NDArray[Any] | None:
    """Return the index of a data frame; None for other rows, which go by number."""
    index = getattr(source, "index", None)
    return None if index is None or callable(index) else np.asarray(index)


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
    items, order = _plain_items(array), None
    whole = all(item is None or (isinstance(item, (int, float)) and float(item).is_integer()) for item in items)
    if getattr(getattr(labels, "dtype", None), "ordered", False):
        categorical: Any = getattr(labels, "cat", labels)
        order = [str(item) for item in _plain_items(np.asarray(categorical.categories))]
        # not those of the array, where integers beside missing ones are floats
        items = [order[code] if code >= 0 else None for code in np.asarray(categorical.codes)]
    if order or any(isinstance(item, str) for item in items) or array.dtype.kind not in "iuf":
        found = read_labels([None if item is None else str(item) for item in items], order=order)
        warn_of_words(found.names if found else (), stacklevel=3)
    elif whole:
        found = read_labels(items, classes=True)
    else:
        found = read_labels([None if item is None else f"{item:.15g}" for item in items])
    if found is None:
        return None
    if len(found.names) > MOST_LAYERS:
        log.warning(
            "labels have %d different values: the %d most frequent get a colour, the others are grey; pass numbers as "
            "values for a colour scale",
            *(len(found.names), MOST_LAYERS - 1),
        )
    return dataclasses.replace(found, numbers=None)  # every number is a class where labels are asked for


def _plain_items(labels: NDArray[Any]) -> list[Any]:
    """Return labels as Python's values: None where they are missing, bytes and dates as text."""
    if labels.dtype.kind == "M":  # which would be integers where the unit is nanoseconds
        return [None if day == "NaT" else day for day in np.datetime_as_string(labels, unit="auto").tolist()]
    return [None if is_missing(item) else item for item in with_plain_text(labels).tolist()]


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


def _interactive(
    embedding: NDArray[np.float64], labels: Labels | None, title: str | None, names: NDArray[Any] | None
) -> Figure:
    try:
        from plotly import graph_objects
    except ImportError as err:
        raise DependencyError(f"interactive=True needs plotly: {_REMEDY}") from err
    x, y = place_points(embedding, labels)
    names = np.arange(len(x)) if names is None else names
    size = float(np.clip(200 / np.sqrt(len(x)), 2.5, 8))
    figure = graph_objects.Figure()
    for layer in plan_layers(labels, len(x)):
        marker = {"color": layer.colour, "symbol": layer.marker, "size": size, "opacity": 0.75}
        figure.add_scattergl(
            **{"x": x[layer.rows], "y": y[layer.rows], "mode": "markers", "marker": marker},
            name="<br>".join(textwrap.wrap(layer.name, LEGEND_CHARS)),
            customdata=names[layer.rows],
            hovertemplate="row %{customdata}",
        )
    if labels is not None and labels.on_scale and labels.numbers is not None:
        rows, (low, high) = np.flatnonzero(labels.known), labels.ends
        shown = labels.numbers[rows]
        marker = {"color": shown, "colorscale": "Viridis", "cmin": low, "cmax": high, "size": size, "showscale": True}
        figure.add_scattergl(
            **{"x": x[rows], "y": y[rows], "name": "value", "mode": "markers", "marker": marker},
            customdata=np.column_stack([names[rows].astype(object), shown]),
            hovertemplate="row %{customdata[0]}: %{customdata[1]:.6g}",
        )
    x_title, y_title = axis_titles(embedding.shape[1])
    figure.update_layout(title=title, xaxis_title=x_title, yaxis_title=y_title, template="plotly_white")
    if embedding.shape[1] > 1:
        figure.update_yaxes(scaleanchor="x", scaleratio=1)
    figure.update_layout(showlegend=labels is not None and not labels.on_scale, legend_itemsizing="constant")
    figure.update_layout(hoverlabel_namelength=-1)  # else cut to 15 characters
    margin = {"l": _MARGIN, "r": _MARGIN, "b": _MARGIN, "t": 2 * _MARGIN if title else _MARGIN}
    figure.update_layout(height=_HEIGHT, margin=margin)
    return figure
