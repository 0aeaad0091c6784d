"""The page of a report: one file, readable offline, on a phone and by a screen reader."""

from __future__ import annotations

import base64
import functools
import gzip
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.config import listed
from ivis_spark.core.metrics import PairDistances
from ivis_spark.report.confusion import Confusion, confusion_section
from ivis_spark.report.explorer import distance_data, explorer_data
from ivis_spark.report.figures import describe_dims
from ivis_spark.report.labels import shortened
from ivis_spark.report.plots import curves_of, loss_traces, require_plotly, to_json
from ivis_spark.report.sample import Density, Sample
from ivis_spark.report.wording import DISTANCE_HINT, EXPLORER_HINT, METRIC_TEXTS, REMEDY, TOOLS, VERDICTS, VERDICTS_HINT

# 'unsafe-eval': the WebGL layer of plotly compiles its drawing commands. No network source is allowed at all.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; worker-src blob:"
)
_MOST_CLASS_NAMES = 12
_RECALLS = {"recall_at_k": "recall", "original_recall_at_k": "original_recall"}

_SIZES = ("rows", "features", "embedding_dims", "sample_rows", "plot_rows", "labelled_rows", "classes")


@dataclass(frozen=True)
class Findings:
    """All that a report shows.

    Attributes:
        title: Heading.
        metrics: Those of metrics.json.
        sample: The rows to draw.
        density: Counts of all rows, or None when all are drawn.
        pairs: Distances of pairs of measured rows, or None if there are too few.
        measured: Positions in the sample, before it was cut to the rows to draw, of the measured rows.
        confusion: True and predicted classes, or None without classes.
        training: As given to `evaluate`.
        neighbours: As given to `evaluate`.
        reasons: Why the embedding seems to have collapsed; empty if it does not.
        settings: The run's configuration, nested.
        table: Name or URI of the table.
        date: When it was measured.
    """

    title: str
    metrics: Mapping[str, Any]
    sample: Sample
    density: Density | None
    pairs: PairDistances | None
    measured: NDArray[np.int64]
    confusion: Confusion | None
    training: Mapping[str, Any]
    neighbours: Mapping[str, Any]
    reasons: Sequence[str]
    settings: Mapping[str, Any]
    table: str | None = None
    date: str | None = None


@functools.cache
def _packed_plotly() -> str:
    """Return plotly.js, compressed, in base64. It is the same in every report, and takes a third of a second."""
    return base64.b64encode(gzip.compress(require_plotly().encode(), mtime=0)).decode()


def build_page(findings: Findings, folder: str) -> str:
    """Return the report as one HTML document, with the pictures in `folder` inside it.

    Raises: DependencyError: if plotly is missing.
    """
    title = escape(findings.title)
    style, script = (
        resources.files(__package__).joinpath(name).read_text("utf-8") for name in ("style.css", "explorer.js")
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{_facts(findings)}
</header>
<main>
{_notice(findings.reasons)}
{_verdicts(findings)}
{_explorer(findings, folder)}
{confusion_section(findings.confusion, seen=findings.metrics["labels"] == "trained on")}
{_distances(findings, folder)}
{_density(findings, folder)}
{_loss(findings, folder)}
{_run(findings)}
</main>
<script type="text/plain" id="plotly">{_packed_plotly()}</script>
<script>{script}</script>
</body>
</html>
"""


def _notice(reasons: Sequence[str]) -> str:
    if not reasons:
        return ""
    items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return f"""<section class="notice" role="alert">
<h2>The embedding seems to have collapsed</h2>
<ul>{items}</ul>
<p>{escape(REMEDY)}.</p>
</section>"""


def _facts(findings: Findings) -> str:
    """Return what is shown: table, date, sizes, and the names of the classes."""
    metrics, labels = findings.metrics, findings.sample.labels
    dims = metrics["embedding_dims"]
    sizes = f"{metrics['rows']:,} rows, {_shown(metrics['features'])} features, "
    sizes += f"{dims} embedding {_plural(dims, 'dimension')}"
    table = posixpath.basename((findings.table or "").rstrip("/"))
    facts = [("Table", f"{table}: {sizes}" if table else sizes), ("Date", findings.date)]
    if labels is not None and labels.names:
        first = shortened(labels.names[:_MOST_CLASS_NAMES])
        shown = listed([*first, *labels.names[_MOST_CLASS_NAMES:]], _MOST_CLASS_NAMES)
        facts.append((f"{len(labels.names)} {_plural(len(labels.names), 'class', 'classes')}", shown))
    elif labels is not None:
        facts.append(("Label", "a quantity"))
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in facts if text)
    return f'<dl class="facts">{items}</dl>'


def _verdicts(findings: Findings) -> str:
    metrics, body = findings.metrics, []
    for key, name, meaning, chance in _metrics_of(metrics):
        value = metrics[key]
        if value is None:
            continue
        verdict, linear = metrics.get(f"{key}_verdict"), metrics.get(f"pca_{key}")
        note = _recall_note(metrics, key) if key in _RECALLS else ""
        judged = f'<span class="verdict {verdict}">{VERDICTS[verdict]}</span>' if verdict else ""
        against = "" if linear is None else f'<span class="soft">PCA {_shown(linear)}</span>'
        bar = "" if key == "final_loss" else _bar(metrics, key, value, linear)
        cell = f"<b>{_shown(value)}</b> {against}{bar}"
        body.append(
            f'<tr><th scope="row">{name}</th><td>{judged}</td><td class="value">{cell}</td>'
            f'<td>{meaning}{note} <span class="soft">{chance}</span></td></tr>'
        )
    basis = f"Measured on a sample of {metrics['sample_rows']:,} rows, Euclidean distances between scaled features"
    basis += (
        f", k = {metrics['k']}, {metrics['n_triplets']:,} random triples and {metrics['n_pairs']:,} pairs."
        if metrics["k"]
        else "."
    )
    return f"""<section>
<h2>How good it is</h2>
<p>{_counted(metrics)} {VERDICTS_HINT}</p>
<table class="quality">
<thead><tr><th scope="col">Metric</th><th scope="col">Verdict</th><th scope="col">Value</th>
<th scope="col">Meaning</th></tr></thead>
<tbody>{"".join(body)}</tbody>
</table>
<p class="soft">{basis} {_label_note(metrics)}</p>
</section>"""


def _metrics_of(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return key, name, meaning and chance of each metric; of the user's own, the name and text of their functions."""
    own = (
        (key, key.replace("_", " ").capitalize(), meaning, "")
        for key, meaning in metrics.get("own_metrics", {}).items()
    )
    return [*METRIC_TEXTS, *((key, *map(escape, texts)) for key, *texts in own)]


def _counted(metrics: Mapping[str, Any]) -> str:
    verdicts = [metrics.get(f"{key}_verdict") for key, *_ in _metrics_of(metrics)]
    parts = [f"{verdicts.count(key)} {name.lower()}" for key, name in VERDICTS.items() if key in verdicts]
    return f"<b>{', '.join(parts)}.</b>" if parts else ""


def _bar(metrics: Mapping[str, Any], key: str, value: float, linear: float | None) -> str:
    def share(number: float) -> float:
        return 100 * min(max(number, 0.0), 1.0)

    inner = f'<i style="width:{share(value):.1f}%"></i>'
    if key in _RECALLS and None not in (ends := [metrics[f"{_RECALLS[key]}_{end}"] for end in ("low", "high")]):
        low, high = map(share, ends)
        inner += f'<i class="interval" style="left:{low:.1f}%;width:{max(high - low, 1):.1f}%"></i>'
    if linear is not None:
        inner += f'<i class="mark" style="left:{share(linear):.1f}%"></i>'
    return f'<span class="bar" aria-hidden="true">{inner}</span>'


def _label_note(metrics: Mapping[str, Any]) -> str:
    tested = metrics.get("tested_rows")
    if not tested:
        return ""
    if metrics["labels"] == "held out":
        return (
            f"Accuracies and centroid correlation: on the {tested:,} {_plural(tested, 'row')} whose labels were held "
            "out of training."
        )
    if metrics["labels"] == "trained on":
        return (
            "Accuracies and centroid correlation have no verdict: training used the labels of all rows. To measure on "
            "held-out labels, set triplets.held_out_labels=0.1 and train again."
        )
    return f"Accuracies: on {tested:,} {_plural(tested, 'row')}; the others were used to fit the classifiers."


def _explorer(findings: Findings, folder: str) -> str:
    metrics, labels = findings.metrics, findings.sample.labels
    dims, plotted = metrics["embedding_dims"], metrics["plot_rows"]
    some = plotted < metrics["rows"]
    share = f"a sample of {plotted:,} of {metrics['rows']:,} rows" if some else f"all {plotted:,} rows"
    colour = ", coloured by density" if labels is None else ", coloured by label"
    alt = f"Scatter plot of the embedding, {describe_dims(dims)}, {share}{colour}"
    data = explorer_data(findings.sample)
    names = [colouring["name"] for colouring in data["colourings"]]
    options = "".join(f'<option value="{place}">{escape(name)}</option>' for place, name in enumerate(names))
    buttons = "".join(f'<button type="button" id="{key}">{text}</button>' for key, text in TOOLS)
    return f"""<section id="explorer">
<h2>Embedding: {describe_dims(dims)}, {share}</h2>
<p class="soft">{EXPLORER_HINT}</p>
<div class="tools"><label>Colour by <select id="colour-by">{options}</select></label>
<div role="group" aria-label="Tools of the picture">{buttons}</div></div>
<p id="fallback" class="soft" hidden><span id="fewer"></span>
<button type="button" id="draw-all">Draw all</button></p>
<div class="explorer">
<div class="stage"><div id="scatter" class="plot" role="img" aria-label="{alt}"></div><div id="tip" hidden></div></div>
<div class="side"><p><output id="selection"></output>
<button type="button" id="clear" hidden>Clear selection</button></p>
<ul id="layers" aria-label="Colours of the picture"></ul></div>
</div>
<noscript>{_image(folder, "embedding.png", alt)}</noscript>
<script type="application/json" id="explorer-data">{to_json(data)}</script>
</section>"""


def _distances(findings: Findings, folder: str) -> str:
    if findings.pairs is None:
        return ""
    alt = f"Boxes of distances in the embedding by distance in the features, {len(findings.pairs.first):,} random pairs"
    return f"""<section>
<h2>Distance preservation</h2>
<p class="soft">{DISTANCE_HINT}</p>
<div id="distances" class="plot middle" role="img" aria-label="{alt}"></div>
<noscript>{_image(folder, "distances.png", alt)}</noscript>
<script type="application/json" id="distance-data">{to_json(distance_data(findings.pairs, findings.measured))}</script>
</section>"""


def _density(findings: Findings, folder: str) -> str:
    if findings.density is None:
        return ""
    dims, rows = findings.metrics["embedding_dims"], findings.metrics["rows"]
    beyond = findings.density.outside
    note = f" {beyond:,} outlying {_plural(beyond, 'row')} beyond the edges left out." if beyond else ""
    alt = f"Density of all {rows:,} rows in the embedding, {describe_dims(dims)}"
    return f"""<section>
<h2>Density of all {rows:,} rows: {describe_dims(dims)}</h2>
<figure>{_image(folder, "density.png", alt)}
<figcaption>Rows counted in bins; brighter is denser, white is empty.{note}</figcaption></figure>
</section>"""


def _recall_note(found: Mapping[str, Any], key: str) -> str:
    low, high, sample = (found[f"{_RECALLS[key]}_{part}"] for part in ("low", "high", "sample"))
    parts = [f"k = {found['neighbours_k']}"] if found["neighbours_k"] is not None else []
    if low is not None and high is not None:
        parts.append(f"95 % interval {low:.4f} to {high:.4f}")
    if sample is not None:
        parts.append(f"{sample:,} sampled rows against exact search among all rows")
    if key == "recall_at_k" and found.get("components") is not None:
        parts.append(
            f"among {found['components']} principal components with {100 * found['explained_variance']:.1f} % of the "
            "variance"
        )
    return f" ({escape('; '.join(parts))}.)" if parts else ""


def _loss(findings: Findings, folder: str) -> str:
    curves = {name: values for name, values in curves_of(findings.training).items() if values}
    last = f" The last of {len(curves['loss']):,} epochs ended at {_shown(curves['loss'][-1])}." if curves else ""
    alt = f"Line chart of the loss by epoch.{last}"
    plot = (
        f'<div id="loss" class="plot low" role="img" aria-label="{alt}"></div>'
        if curves
        else "<p>No loss was recorded.</p>"
    )
    return f"""<section>
<h2>Loss by epoch</h2>
{plot}
<noscript>{_image(folder, "loss.png", alt)}</noscript>
<script type="application/json" id="loss-data">{to_json(loss_traces(curves))}</script>
</section>"""


def _run(findings: Findings) -> str:
    tables = [
        _table("Sizes", [(name, findings.metrics[name]) for name in _SIZES]),
        _table("Training", _scalars(findings.training)),
        _table("Neighbours", _scalars(findings.neighbours)),
    ]
    settings = _table("Configuration", _scalars(findings.settings))
    inner = f'<div class="columns">{"".join(tables)}</div>{settings}'
    return f"<section><details><summary><h2>How this run was made</h2></summary>{inner}</details></section>"


def _scalars(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the values of nested mappings under dotted names, without curves and the like."""
    entries: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            entries += _scalars(value, f"{prefix}{name}.")
        elif not isinstance(value, (list, tuple)) or (prefix and len(value) <= 20):
            entries.append((f"{prefix}{name}", value))
    return entries


def _table(caption: str, entries: Iterable[tuple[str, Any]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(str(name).replace("_", " "))}</th><td>{_shown(value)}</td></tr>'
        for name, value in entries
        if value is not None
    )
    return f"<table><caption><b>{caption}</b></caption><tbody>{body}</tbody></table>" if body else ""


def _image(folder: str, name: str, alt: str) -> str:
    with open(os.path.join(folder, name), "rb") as file:
        data = base64.b64encode(file.read()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _plural(count: int, word: str, many: str | None = None) -> str:
    return word if count == 1 else many or f"{word}s"


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    return (
        f"{value:,.1f}"
        if abs(value) >= 100
        else f"{value:.3f}"
        if abs(value) >= 0.001 or value == 0
        else f"{value:.3g}"
    )
