"""Measure a finished run and write its report."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ivis_spark.config import EvaluateConfig
from ivis_spark.config.imports import import_named
from ivis_spark.core import metrics as core_metrics
from ivis_spark.core.metrics import PairDistances
from ivis_spark.errors import ConfigError
from ivis_spark.progress import step
from ivis_spark.report import figures, html, plots
from ivis_spark.report.colouring import Wanted
from ivis_spark.report.confusion import Confusion
from ivis_spark.report.labels import Labels
from ivis_spark.report.sample import Originals, Sample, count_density, density_bins, draw_sample
from ivis_spark.report.verdicts import JUDGED, judge, principal_components
from ivis_spark.report.wording import NAMES, REMEDY

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

_MARGIN_SHARE = 0.01
# What metrics.json holds beside metrics.
_FACTS = frozenset(
    "rows embedding_dims features sample_rows k plot_rows n_pairs n_triplets own_metrics classes commonest_label "
    "labels tested_rows labelled_rows confusion components explained_variance kept_neighbours "
    "kept_neighbours_k collapsed original_recall_low original_recall_high original_recall_sample "
    "recall_low recall_high recall_sample neighbours_k epochs training_seconds seconds "
    "measured_on run_id".split()
)
_FITTED = 0.75
_KEPT = ("kept_neighbours", "kept_neighbours_k")


def evaluate(
    spark: SparkSession,
    *,
    rows: DataFrame,
    embeddings: DataFrame,
    training: Mapping[str, Any],
    neighbours: Mapping[str, Any] | None,
    config: EvaluateConfig,
    random_state: int,
    folder: str,
    title: str = "ivis_spark report",
    settings: Mapping[str, Any] | None = None,
    wanted: Wanted | None = None,
    held_out: tuple[float, int] | None = None,
    table: str | None = None,
    predicted: str | None = None,
    originals: Originals | None = None,
    components: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write report.html, metrics.json and pictures into `folder`.

    The pictures are embedding.png, loss.png, distances.png if at least 3 rows have features, and density.png if not all
    rows are drawn.

    Runs on: driver. Collects the sampled rows only; all rows are counted, and binned where more than `plot_rows`.

    Args:
        spark: The session.
        rows: id long, features binary (float32 little-endian, scaled), optional label.
        embeddings: id long, embedding array<float>, optional label (numeric or text), which wins over that of `rows`;
            points can be coloured by every other column of numbers, arrays of them, or text.
        training: `loss`, one value an epoch; optional `training_seconds` and `margin`, the loss of a collapsed
            embedding; other lists as long as `loss` are drawn as curves, and plain values are listed.
        neighbours: `recall` and, with components, `original_recall`, each with value, ci95 (low and high), sample; and
            `k`; None if they were not built here.
        config: Sizes of the samples, k.
        random_state: Seed of samples and draws.
        folder: Local folder, made if missing.
        title: Heading of the report.
        settings: The run's whole configuration, nested; listed in the report.
        wanted: Additional colourings.
        held_out: Share of the labels that training did not see, and the seed of that choice; None if it saw no label.
        table: Name of the table, for the heading.
        predicted: Column of `embeddings` with the class that the model predicts; None if it predicts none.
        originals: Of rows that hold principal components, features of some, by which the embedding is measured.
        components: What the stage `rows` says of them.

    Returns:
        The metrics, as in metrics.json: always the same keys, None for metrics that do not apply, flat except for
        `confusion`, which has rows by true and predicted class, or of many classes the pairs confused most.

    Raises:
        DependencyError: if matplotlib or plotly is missing.
        InputError: if there are no embeddings, or a sampled one is not finite.
    """
    from ivis_spark.spark.session import job_step

    plots.require_plotly()
    os.makedirs(folder, exist_ok=True)
    with job_step(spark, "count", "report: count rows"):
        n_rows = embeddings.count()
    with job_step(spark, "sample", "report: sample rows"):
        sample = draw_sample(
            spark,
            rows=rows,
            embeddings=embeddings,
            n_rows=n_rows,
            config=config,
            random_state=random_state,
            wanted=wanted,
            held_out=held_out,
            predicted=predicted,
            originals=originals,
        )
    with job_step(spark, "density", "report: count rows by place"):
        density = count_density(embeddings, density_bins(n_rows)) if n_rows > config.plot_rows else None
    with step("measure", "report: measure"):
        pairs = sample_pairs(sample, config=config, random_state=random_state)
        measures, confusion = measure_sample(sample, pairs, config=config, random_state=random_state)
    metrics = {
        "rows": n_rows,
        "embedding_dims": sample.embedding.shape[1],
        **measures,
        **_of_run(training, neighbours),
        **_of_components(components),
    }
    metrics |= judge(metrics, settings or {})
    reasons = collapse_reasons(sample, training)
    metrics["collapsed"] = bool(reasons)
    for reason in reasons:
        log.warning("the embedding seems to have collapsed: %s. %s", reason, REMEDY)
    findings = html.Findings(
        title=title,
        metrics=metrics,
        sample=sample.head(config.plot_rows),
        density=density,
        pairs=pairs,
        measured=sample.measured,
        confusion=confusion,
        training=training,
        neighbours=neighbours or {},
        reasons=reasons,
        settings=settings or {},
        table=table,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    with step("draw", "report: draw"):
        write_findings(folder, findings)
    return metrics


def sample_pairs(sample: Sample, *, config: EvaluateConfig, random_state: int) -> PairDistances | None:
    """Return the distances of random pairs of the measured rows, or None if there are fewer than 3.

    Runs on: driver.
    """
    if len(sample.measured) < 3:
        return None
    rng = np.random.default_rng([random_state, 2])
    embedding = sample.embedding[sample.measured]
    return core_metrics.draw_pairs(sample.features, embedding, n_pairs=config.n_pairs, rng=rng)


def measure_sample(
    sample: Sample, pairs: PairDistances | None, *, config: EvaluateConfig, random_state: int
) -> tuple[dict[str, Any], Confusion | None]:
    """Return the quality figures of a sample and its pairs, None for those that do not apply, and its confused classes.

    k is lowered where the sample has not more than 2 k rows. kNN accuracy needs a label of classes that repeat, the
    centroid correlation three of them.

    Runs on: driver.
    """
    measured = sample.measured[: config.sample_rows]
    X, Z, n = sample.features, sample.embedding[measured], len(measured)
    k = min(config.k, (n - 1) // 2)
    metrics: dict[str, Any] = {"features": X.shape[1] if n else None, "sample_rows": n, "k": k or None}
    metrics |= {"plot_rows": min(len(sample.ids), config.plot_rows)}
    metrics |= {"n_pairs": config.n_pairs, "n_triplets": config.n_triplets}
    own = import_metrics(config.metrics)
    metrics["own_metrics"] = {name: (measure.__doc__ or "").strip().partition("\n")[0] for name, measure in own.items()}
    metrics |= dict.fromkeys([f"{prefix}{name}" for prefix in ("", "pca_") for name in (*JUDGED, *own)])
    if not k or pairs is None:
        log.warning("%s rows have both features and an embedding; metrics need at least 3", n)
    facts, test = _test_of_labels(sample, measured, k)
    linear = principal_components(X, Z.shape[1], seed=random_state)
    confusion = None
    of_distances: list[dict[str, Any]] = [{}, {}]
    if k and pairs is not None:
        of_distances = _of_distances(X, (linear, Z), pairs, k, config=config, random_state=random_state)
    for prefix, points, measures in (("pca_", linear, of_distances[0]), ("", Z, of_distances[1])):
        if measures:
            measures |= {name: _number(measure(X, points)) for name, measure in own.items()}
        if test is not None:
            of_labels, confusion = _of_labels(sample, X, points, test, random_state=random_state)
            measures |= of_labels
        metrics |= {f"{prefix}{name}": value for name, value in measures.items()}
    return metrics | facts | {"confusion": None if confusion is None else confusion.to_mapping()}, confusion


def import_metrics(names: Iterable[str]) -> dict[str, Callable[[NDArray[Any], NDArray[Any]], float]]:
    """Return metrics of the user's own by the names of their functions.

    Raises:
        ConfigError: if one cannot be imported, or is called as what a report holds already.
    """
    functions = {}
    for name in names:
        key = name.rpartition(":")[2]
        if key in functions or key in NAMES or key in _FACTS:
            raise ConfigError(
                f"evaluate.metrics: the report already has a metric {key!r}; rename the function of {name}"
            )
        functions[key] = import_named(name, "evaluate.metrics")
    return functions


def _of_distances(
    X: NDArray[np.float32],
    embeddings: Sequence[NDArray[np.float64]],
    pairs: PairDistances,
    k: int,
    *,
    config: EvaluateConfig,
    random_state: int,
) -> list[dict[str, Any]]:
    """Return the metrics of several embeddings of the same rows; distances of the rows are computed once."""
    rng, found = np.random.default_rng([random_state, 1]), []
    kept = core_metrics.trust_and_continuity(X, embeddings, k)
    triples = core_metrics.random_triplet_accuracies(X, embeddings, n_triplets=config.n_triplets, rng=rng)
    for Z, (trust, continuity), accuracy in zip(embeddings, kept, triples, strict=True):
        pearson, spearman = pairs.of(Z).correlations()
        measures = {"trustworthiness": trust, "continuity": continuity, "random_triplet_accuracy": accuracy}
        correlations = {"distance_correlation_pearson": pearson, "distance_correlation_spearman": spearman}
        found.append(measures | correlations)
    return found


@dataclass(frozen=True)
class _Test:
    """How labels are tested.

    Attributes:
        labels: Of the whole sample.
        rows: int64 (n,), positions in the sample of the labelled rows that were measured.
        inside: bool, which of the measured rows they are.
        y: int64 (n,), their classes.
        tested: bool (n,), the rows to test on, which training did not see; None if they are drawn.
        k: Voting neighbours.
    """

    labels: Labels
    rows: NDArray[np.int64]
    inside: NDArray[np.bool_]
    y: NDArray[np.int64]
    tested: NDArray[np.bool_] | None
    k: int


def _test_of_labels(sample: Sample, measured: NDArray[np.int64], k: int) -> tuple[dict[str, Any], _Test | None]:
    """Return what is to be known of the labels of the measured rows, and how they are tested; None if they are not."""
    labels = sample.labels
    facts: dict[str, Any] = dict.fromkeys(("classes", "commonest_label", "labels", "tested_rows"))
    facts["labelled_rows"] = 0
    if labels is None:
        return facts, None
    labelled = labels.known[measured]
    facts["labelled_rows"] = int(labelled.sum())
    if labels.continuous:
        return facts, None
    rows = measured[labelled]
    y = labels.codes[rows]
    n, n_classes = len(y), len(np.unique(y))
    facts["classes"] = n_classes
    if not k or not 1 <= n_classes <= n / 2:  # text that names each row is no class
        return facts, None
    facts["commonest_label"] = float(np.bincount(y).max() / n)
    tested = None if sample.held_out is None else sample.held_out[rows]
    facts["labels"] = "not trained on" if tested is None else "held out"
    if tested is not None and (not tested.any() or tested.all()):
        facts["labels"], tested = "trained on", None
    facts["tested_rows"] = n - round(_FITTED * n) if tested is None else int(tested.sum())
    return facts, _Test(labels, rows, labelled, y, tested, min(k, n - facts["tested_rows"]))


def _of_labels(
    sample: Sample, X: NDArray[np.float32], Z: NDArray[np.float64], test: _Test, *, random_state: int
) -> tuple[dict[str, Any], Confusion]:
    """Return the metrics of labels of the measured rows' embedding, and which labels it confuses."""
    points, y = Z[test.inside], test.y
    options: dict[str, Any] = {"train_share": _FITTED, "tested": test.tested}
    rng = [np.random.default_rng([random_state, 3]) for _ in range(2)]
    rows, predicted = core_metrics.knn_predictions(points, y, k=test.k, rng=rng[0], **options)
    metrics = {
        "knn_accuracy": float(np.mean(predicted == y[rows])),
        "linear_svm_accuracy": core_metrics.linear_svm_accuracy(points, y, rng=rng[1], **options),
    }
    shown = slice(None) if test.tested is None else test.tested
    if len(np.unique(y[shown])) >= 3:
        metrics["centroid_correlation"] = core_metrics.centroid_correlation(
            X[test.inside][shown], points[shown], y[shown]
        )
    if sample.predicted is not None:
        return metrics, Confusion.of_model(test.labels, sample.predicted, test.rows[shown])
    return metrics, Confusion(test.labels.names, y[rows], predicted, "neighbours")


def _of_run(training: Mapping[str, Any], neighbours: Mapping[str, Any] | None) -> dict[str, Any]:
    searched, loss = neighbours or {}, list(training.get("loss") or [])
    return {
        **_of_recall("recall", searched.get("recall")),
        **_of_recall("original_recall", searched.get("original_recall")),
        "neighbours_k": searched.get("k"),
        "final_loss": _number(loss[-1]) if loss else None,
        "epochs": training.get("epochs", len(loss)),
        "training_seconds": _number(training.get("training_seconds")),
    }


def _of_recall(name: str, recall: Mapping[str, Any] | None) -> dict[str, Any]:
    found = recall or {}
    low, high = found.get("ci95") or (None, None)
    values = {"at_k": _number(found.get("value")), "low": _number(low), "high": _number(high)}
    return {f"{name}_{key}": value for key, value in {**values, "sample": found.get("sample")}.items()}


def _of_components(components: Mapping[str, Any] | None) -> dict[str, Any]:
    names = {"count": "components", **{name: name for name in ("explained_variance", *_KEPT)}}
    return {key: (components or {}).get(name) for name, key in names.items()}


def collapse_reasons(sample: Sample, training: Mapping[str, Any]) -> list[str]:
    """Return why the embedding seems to have collapsed to a point; empty if it does not."""
    reasons = []
    if core_metrics.is_collapsed(sample.embedding):
        reasons.append(f"all {len(sample.ids)} sampled rows lie at almost the same point")
    margin, loss = _number(training.get("margin")), list(training.get("loss") or [])
    last = _number(loss[-1]) if loss else None
    if margin and last is not None and abs(last - margin) <= _MARGIN_SHARE * margin:
        reasons.append(
            f"the last loss, {last:.4g}, is about the margin, {margin:.4g}: neighbours are no closer than random rows"
        )
    return reasons


def write_findings(folder: str, findings: html.Findings) -> None:
    """Write the page, its pictures and metrics.json into a folder. Runs on: driver."""
    metrics, sample = findings.metrics, findings.sample
    dims, n_rows, drawn = metrics["embedding_dims"], metrics["rows"], metrics["plot_rows"]
    shown = f"{drawn:,} of {n_rows:,} rows" if drawn < n_rows else f"{drawn:,} rows"
    kind = figures.describe_dims(dims)
    path = os.path.join(folder, "embedding.png")
    figures.save_embedding(path, sample.embedding, sample.labels, f"Embedding: {kind}, {shown}")
    losses = {name: values for name, values in plots.curves_of(findings.training).items() if "loss" in name}
    figures.save_loss(os.path.join(folder, "loss.png"), losses)
    if findings.pairs is not None:
        figures.save_distances(os.path.join(folder, "distances.png"), findings.pairs)
    if findings.density is not None:
        path = os.path.join(folder, "density.png")
        figures.save_density(path, findings.density, dims, f"Density of all {n_rows:,} rows: {kind}")
    with open(os.path.join(folder, "report.html"), "w", encoding="utf-8") as file:
        file.write(html.build_page(findings, folder))
    with open(os.path.join(folder, "metrics.json"), "w", encoding="utf-8") as file:
        json.dump(dict(metrics), file, indent=2, allow_nan=False)
        file.write("\n")


def _number(value: Any) -> float | None:
    """Return a finite float, or None: JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None
