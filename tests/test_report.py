"""Reports of small tables on a real local Spark."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from driver_results import results_below
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr
from sklearn.manifold import trustworthiness
from sklearn.metrics import confusion_matrix

from ivis_spark.config import Config, EvaluateConfig
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import ConfigError, DependencyError, InputError
from ivis_spark.pipeline import Pipeline
from ivis_spark.report import figures, plots
from ivis_spark.report.colouring import find_columns
from ivis_spark.report.confusion import Confusion, confusion_section
from ivis_spark.report.evaluate import evaluate, import_metrics
from ivis_spark.report.labels import MARKERS, PALETTE, UNLABELLED, plan_layers, read_labels, scale_steps, shortened
from ivis_spark.report.sample import Originals, count_density, density_bins, draw_sample
from ivis_spark.report.verdicts import GOOD, JUDGED, LEEWAY, judge, principal_components
from ivis_spark.report.wording import VERDICTS_HINT

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TRAINING = {
    "loss": [0.9, 0.5, 0.3],
    "training_seconds": 1.5,
    "epochs": 3,
    "rows": 60,
    "margin": 1.0,
    "lr": [0.1, 0.1, 0.01],
}
NEIGHBOURS = {"recall": {"value": 0.95, "ci95": [0.94, 0.96], "sample": 50}, "k": 15}
HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Checks that elements nest, and collects them with their attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.visible = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            key = self.found[-1][1].get("id") or f"script{len(self.texts)}"
            self.texts[key] = self.texts.get(key, "") + data
        elif self.open and self.open[-1] != "style":
            self.visible += data

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.found if tag == name]


def tables(
    spark: SparkSession, X: np.ndarray, Z: np.ndarray, labels: list[Any] | None = None, kind: str = "double"
) -> tuple[DataFrame, DataFrame]:
    """Ids are 10, 20, ...: not the places of the rows."""
    packed = [(10 * i + 10, bytearray(row.astype("<f4").tobytes())) for i, row in enumerate(X)]
    rows = spark.createDataFrame(packed, "id long, features binary")
    as_kind = float if kind == "double" else lambda label: label
    extra = [()] * len(Z) if labels is None else [(None if v is None else as_kind(v),) for v in labels]
    points = [(10 * i + 10, [float(v) for v in z], *more) for i, (z, more) in enumerate(zip(Z, extra, strict=True))]
    schema = "id long, embedding array<float>" + ("" if labels is None else f", label {kind}")
    return rows, spark.createDataFrame(points, schema)


def blobs(n: int = 60, e: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 4
    X = rng.normal(size=(n, 6)).astype(np.float32) + 3 * np.eye(4, 6, dtype=np.float32)[y]
    return X, (X @ rng.normal(size=(6, e))).astype(np.float32), y


def drawn(page: Page) -> dict[str, Any]:
    """Return what the explorer draws, with its arrays unpacked."""
    data: dict[str, Any] = json.loads(page.texts["explorer-data"])
    for key, kind in (("ids", "<i8"), ("x", "<f4"), ("y", "<f4")):
        data[key] = np.frombuffer(base64.b64decode(data[key]), kind)
    for colouring in data["colourings"]:
        colouring["codes"] = np.frombuffer(base64.b64decode(colouring["codes"]), "u1")
        if "values" in colouring:
            colouring["values"] = np.frombuffer(base64.b64decode(colouring["values"]), "<f4")
    return data


def run(spark: SparkSession, folder: Path, *frames: DataFrame, **changed: Any) -> tuple[dict[str, Any], Page]:
    arguments: dict[str, Any] = {
        "training": TRAINING,
        "neighbours": NEIGHBOURS,
        "config": EvaluateConfig(),
        "random_state": 3,
    } | changed
    found = evaluate(spark, rows=frames[0], embeddings=frames[1], folder=str(folder), **arguments)
    assert json.loads((folder / "metrics.json").read_text()) == found
    pictures = ["embedding.png", "loss.png"] + ["distances.png"] * (found["sample_rows"] >= 3)
    for picture in pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    return found, Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.spark
def test_figures_equal_the_oracles(spark: SparkSession, tmp_path: Path) -> None:
    X, Z, y = blobs()
    settings = {"config": EvaluateConfig(metrics=("toy_metrics:kept_order",)), "settings": {"a": {"b": 7}}}
    found, page = run(spark, tmp_path / "new", *tables(spark, X, Z, y.tolist(), "long"), **settings)
    assert found["trustworthiness"] == pytest.approx(trustworthiness(X, Z, n_neighbors=15))
    assert found["continuity"] == pytest.approx(trustworthiness(Z, X, n_neighbors=15))
    centres = [np.array([points[y == c].mean(axis=0) for c in range(4)]) for points in (X, Z)]
    assert found["centroid_correlation"] == pytest.approx(pearsonr(pdist(centres[0]), pdist(centres[1])).statistic)
    exact = pearsonr(pdist(X), pdist(Z)).statistic
    assert found["distance_correlation_pearson"] == pytest.approx(exact, abs=0.02)
    assert 0.5 < found["random_triplet_accuracy"] < 1
    assert 0.25 < found["knn_accuracy"] <= 1 and 0.25 < found["linear_svm_accuracy"] <= 1
    confusion = np.array(found["confusion"]["counts"])
    assert found["confusion"]["classes"] == ["0", "1", "2", "3"] and confusion.sum() == found["tested_rows"] == 15
    assert np.trace(confusion) / 15 == pytest.approx(found["knn_accuracy"])
    expected = {"rows": 60, "features": 6, "embedding_dims": 2, "sample_rows": 60, "k": 15, "classes": 4}
    expected |= {"labelled_rows": 60, "recall_at_k": 0.95, "recall_low": 0.94, "recall_high": 0.96, "final_loss": 0.3}
    assert {key: found[key] for key in expected} == expected
    assert found["collapsed"] is False
    assert 0 < found["kept_order"] < 1 and 0 <= found["pca_kept_order"] <= 1 and found["kept_order_verdict"]
    for text in (
        "Kept order",
        "Whether rows that follow each other",
        "0.9400 to 0.9600",
        "a.b",
        "Trustworthiness",
        "all 60 rows",
        "2 dimensions",
    ):
        assert text in page.visible
    assert "collapsed" not in page.visible and "Not shown" not in page.visible
    assert not (tmp_path / "new" / "density.png").exists()


@pytest.mark.spark
def test_accuracies_are_of_rows_whose_labels_training_did_not_see(spark: SparkSession, tmp_path: Path) -> None:
    """An embedding that learnt the labels it saw by heart, and tells nothing of the others."""
    from pyspark.sql import functions as F

    from ivis_spark.spark.held_out import is_held_out

    y = np.arange(1000) % 4
    X = np.random.default_rng(0).normal(size=(1000, 3))
    share = (0.2, 3)
    ids = spark.range(1000).select((10 * F.col("id") + 10).alias("id"))
    hidden = {row["id"] // 10 - 1 for row in ids.where(is_held_out(F.col("id"), *share)).collect()}
    Z = np.array([[0, 0], [0, 5], [5, 0], [5, 5]])[y].astype(float)
    Z[list(hidden)] = np.random.default_rng(1).permutation(Z)[: len(hidden)]
    Z += np.random.default_rng(2).normal(size=Z.shape) / 10
    frames = tables(spark, X, Z, y.tolist(), "long")
    honest, page = run(spark, tmp_path / "a", *frames, held_out=share)
    assert honest["labels"] == "held out" and honest["tested_rows"] == len(hidden)
    assert honest["knn_accuracy"] < 0.4 and honest["linear_svm_accuracy"] < 0.5
    assert f"{len(hidden)} rows whose labels were held out of training" in page.visible
    seen, page = run(spark, tmp_path / "b", *frames, held_out=(0.0, 3))
    assert seen["labels"] == "trained on" and seen["knn_accuracy"] > 0.7
    assert "training used the labels" in page.visible
    unseen, page = run(spark, tmp_path / "c", *frames)
    assert unseen["labels"] == "not trained on" and unseen["tested_rows"] == 250


def test_confused_classes_are_those_of_sklearn_and_stay_few() -> None:
    rng = np.random.default_rng(0)
    for n_classes, listed in ((4, True), (30, True), (200, False)):
        names = tuple(f"class {code}" for code in range(n_classes))
        true = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, 1000)])
        predicted = np.where(rng.random(len(true)) < 0.7, true, (true + 1) % n_classes)
        expected = confusion_matrix(true, predicted)
        found = Confusion(names, true, predicted, "neighbours")
        np.testing.assert_array_equal(found.counts(), expected)
        mapping = found.to_mapping()
        assert len(json.dumps(mapping)) < 10_000 and ("counts" in mapping) == listed
        np.fill_diagonal(expected, 0)
        first = mapping["pairs"][0]
        assert first["rows"] == expected.max() and first["predicted"] != first["label"]
        page = confusion_section(found, seen=False)
        Page(page)
        assert ('<thead><tr><th scope="col">true' in page) == listed
    labels, of_model = read_labels(["b", "a", None, "b"]), read_labels(["b", "c", "a", None])
    assert labels is not None and of_model is not None
    found = Confusion.of_model(labels, of_model, np.arange(4))
    assert [(found.names[a], found.names[b]) for a, b in zip(found.true, found.predicted, strict=True)] == [
        ("b", "b"),
        ("a", "c"),
    ]
    assert confusion_section(Confusion(("a",), np.empty(0, int), np.empty(0, int), "model"), seen=True) == ""


@pytest.mark.spark
def test_page_is_accessible_and_loads_nothing(spark: SparkSession, tmp_path: Path) -> None:
    X, Z, y = blobs()
    _, page = run(spark, tmp_path, *tables(spark, X, Z, y.tolist()), config=EvaluateConfig(plot_rows=30))
    assert page.tags("html") == [{"lang": "en"}]
    assert len(page.tags("h1")) == 1
    assert any(meta.get("name") == "viewport" for meta in page.tags("meta"))
    policy = next(m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert all(image["alt"] and str(image["src"]).startswith("data:image/png") for image in page.tags("img"))
    assert not any("src" in script for script in page.tags("script"))
    assert all(plot.get("aria-label") for plot in page.tags("div") if plot.get("role") == "img")
    assert all(cell.get("scope") for cell in page.tags("th"))


@pytest.mark.spark
def test_hostile_texts_stay_texts(spark: SparkSession, tmp_path: Path) -> None:
    X, Z, y = blobs()
    labels = [[HOSTILE, "$x_", "_under", "50 %{x}"][c] for c in y]
    training = {**TRAINING, "note": HOSTILE}
    frames = tables(spark, X, Z, labels, "string")
    found, page = run(spark, tmp_path, *frames, title=HOSTILE, training=training, settings={HOSTILE: HOSTILE})
    assert found["classes"] == 4
    assert page.tags("img")[0].get("onerror") is None
    assert len(page.tags("script")) == 5  # three of data, plotly, ours
    assert page.visible.count(HOSTILE) == 5  # title twice, note, setting and its value
    assert "<" not in page.texts["explorer-data"]
    names = {layer["name"] for layer in drawn(page)["colourings"][0]["layers"]}
    assert names == {*shortened([HOSTILE]), "$x_", "_under", "50 %{x}"}  # text nodes show them, see test_explorer.py


@pytest.mark.spark
@pytest.mark.parametrize("e", [1, 2, 5])
def test_density_counts_every_row(spark: SparkSession, tmp_path: Path, e: int) -> None:
    X, Z, y = blobs(300, e)
    rows, embeddings = tables(spark, X, Z, y.tolist())
    config = EvaluateConfig(sample_rows=100, plot_rows=50)
    found, page = run(spark, tmp_path, rows, embeddings, config=config)
    assert (found["rows"], found["sample_rows"], found["plot_rows"]) == (300, 100, 50)
    assert (tmp_path / "density.png").read_bytes().startswith(b"\x89PNG")
    assert f"Density of all 300 rows: {figures.describe_dims(e)}" in page.visible
    data = drawn(page)
    assert len(data["x"]) == len(data["y"]) == len(data["colourings"][0]["codes"]) == 50
    np.testing.assert_allclose(data["x"], Z[data["ids"] // 10 - 1, 0])
    density = count_density(embeddings, 20)
    assert density.counts.sum() + density.outside == 300
    edges = [np.linspace(*density.extent[:2], 21), np.linspace(*density.extent[2:], 21)]
    if e == 1:
        expected = np.histogram(Z[:, 0].astype(float), edges[0])[0][:, np.newaxis]
    else:
        expected = np.histogram2d(Z[:, 0].astype(float), Z[:, 1].astype(float), edges)[0]
    np.testing.assert_array_equal(density.counts, expected)


@pytest.mark.spark
def test_density_leaves_out_distant_outliers_and_bad_rows(spark: SparkSession) -> None:
    Z = np.random.default_rng(1).uniform(size=(5000, 2))
    Z[0] = 1e6
    Z[1, 0] = np.nan
    density = count_density(tables(spark, Z[:1], Z)[1], 50)
    assert density.outside == 1
    assert density.counts.sum() == 4998
    assert density.extent[1] < 2
    flat = count_density(tables(spark, Z[:1], np.full((5, 2), 3.0))[1], 50)
    assert flat.counts.sum() == 5
    assert density_bins(100) == 50
    assert density_bins(10**9) == 400


@pytest.mark.spark
def test_sample_is_the_same_for_any_partitioning_and_order(spark: SparkSession) -> None:
    X, Z, y = blobs(200)
    config = EvaluateConfig(sample_rows=20, plot_rows=50)
    rows, embeddings = tables(spark, X, Z, y.tolist())
    samples = [
        draw_sample(
            spark,
            rows=rows.repartition(n),
            embeddings=embeddings.repartition(7 * n),
            n_rows=200,
            config=config,
            random_state=s,
        )
        for n, s in [(1, 0), (3, 0), (1, 1)]
    ]
    np.testing.assert_array_equal(samples[0].ids, samples[1].ids)
    np.testing.assert_array_equal(samples[0].features, samples[1].features)
    assert set(samples[0].ids) != set(samples[2].ids)
    first = samples[0]
    assert len(first.ids) == 50
    np.testing.assert_array_equal(first.embedding, Z[first.ids // 10 - 1].astype(float))
    np.testing.assert_array_equal(first.features, X[first.ids[first.measured] // 10 - 1])
    assert first.labels is not None
    np.testing.assert_array_equal(first.labels.codes, y[first.ids // 10 - 1])


@pytest.mark.spark
def test_partitions_do_not_add_to_the_sample(spark: SparkSession) -> None:
    """A row shows 12 texts of 120 characters: 30 rows each of 30 partitions are 1.3 MB, and 62 rows 90 KB."""
    from pyspark.sql import functions as F

    X, Z, _ = blobs(900)
    rows, embeddings = tables(spark, X, Z)
    texts = [F.sha2(F.concat("id", F.lit(place)), 512).alias(f"text {place}") for place in range(12)]
    embeddings = embeddings.select("*", *texts).repartition(30, "id")
    config = EvaluateConfig(sample_rows=10, plot_rows=30)
    with results_below(spark, "400k"):
        sample = draw_sample(spark, rows=rows, embeddings=embeddings, n_rows=900, config=config, random_state=0)
    assert len(sample.ids) == 30 and len(sample.columns) == 12


@pytest.mark.spark
def test_sample_of_components_starts_with_the_rows_that_keep_their_features(
    spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    from pyspark.sql import functions as F

    X, Z, y = blobs()
    rows, embeddings = tables(spark, X, Z, y.tolist())
    embeddings = embeddings.withColumn("Original", F.lit("of the user"))
    width = X.shape[1]
    originals = Originals(rows.where("id <= 300"), Scaler("none", np.zeros(width), np.ones(width)))
    with caplog.at_level(logging.INFO):
        sample = draw_sample(
            spark,
            rows=rows,
            embeddings=embeddings,
            n_rows=len(Z),
            config=EvaluateConfig(sample_rows=50, plot_rows=50),
            random_state=0,
            originals=originals,
        )
    assert len(sample.ids) == 50 and sample.measured.tolist() == list(range(30))
    np.testing.assert_array_equal(sample.features, X[sample.ids[:30] // 10 - 1])
    assert "measured on 30 rows instead of 50" in caplog.text


@pytest.mark.spark
def test_collapsed_embedding_is_told(spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    X, Z, _ = blobs()
    frames = tables(spark, X, np.full_like(Z, 0.5))
    with caplog.at_level(logging.WARNING):
        found, page = run(spark, tmp_path, *frames, training={"loss": [1.0, 0.999], "margin": 1.0}, neighbours=None)
    assert found["collapsed"] is True
    assert found["recall_at_k"] is None
    assert found["knn_accuracy"] is None
    assert "same point" in caplog.text
    assert "about the margin" in caplog.text
    assert "train.learning_rate" in page.visible
    found, _ = run(spark, tmp_path, *tables(spark, X, Z), training={"loss": [1.0, 0.95], "margin": 1.0})
    assert found["collapsed"] is False


@pytest.mark.spark
def test_continuous_and_missing_labels(spark: SparkSession, tmp_path: Path) -> None:
    X, Z, _ = blobs()
    labels = [None if i < 5 else float("nan") if i < 9 else i / 7 for i in range(60)]
    found, page = run(spark, tmp_path, *tables(spark, X, Z, labels), training={})
    assert (found["labelled_rows"], found["classes"], found["knn_accuracy"]) == (51, None, None)
    assert found["final_loss"] is None
    colouring = drawn(page)["colourings"][0]
    assert colouring["layers"][0]["name"] == UNLABELLED
    assert np.isnan(colouring["values"]).sum() == (colouring["codes"] == 0).sum() == 9
    assert len(colouring["layers"]) == 11
    # A higher step holds higher values.
    known = colouring["codes"] > 0
    assert (np.diff(colouring["codes"][known][np.argsort(colouring["values"][known])].astype(int)) >= 0).all()


@pytest.mark.spark
def test_labels_of_the_rows_and_tables_that_differ(spark: SparkSession, tmp_path: Path) -> None:
    from pyspark.sql import functions as F

    X, Z, _ = blobs()
    rows, embeddings = tables(spark, X, Z)
    rows = rows.filter(F.col("id") > 100).withColumn("label", (F.col("id") / 10 % 3).cast("int"))
    found, _ = run(spark, tmp_path, rows, embeddings)
    assert (found["rows"], found["sample_rows"], found["labelled_rows"], found["classes"]) == (60, 50, 50, 3)


@pytest.mark.spark
def test_points_can_be_coloured_by_other_columns_features_and_the_input(spark: SparkSession, tmp_path: Path) -> None:
    from pyspark.sql import functions as F

    X, Z, y = blobs()
    rows, embeddings = tables(spark, X, Z, y.tolist())
    place = (F.col("id") / 10 - 1).cast("int")
    scores = F.array(*[F.when(place % 3 == c, 0.8).otherwise(0.1) for c in range(3)])
    embeddings = embeddings.withColumn("scores", scores).withColumn("when", F.current_timestamp())
    embeddings = embeddings.withColumn("value", F.array(place / 2)).withColumn("many", F.array(*[place + 0] * 5, place))
    table = spark.range(10, 300, 10).select("id", F.concat(F.lit("d"), F.col("id")).alias("a.b"))
    scaler = Scaler("minmax", np.arange(6, dtype=np.float32), np.array([1, 1, 1, 1, 0, 0.25], np.float32))
    wanted = find_columns(
        ["pixels[5]", "pixels[4]", "a.b"],
        features=["pixels"],
        width=6,
        scaler=scaler,
        kept=["a.b"],
        read_table=lambda: table,
    )
    _, page = run(spark, tmp_path, rows, embeddings, wanted=wanted)
    data = drawn(page)
    i = data["ids"] // 10 - 1
    found = {colouring["name"]: colouring for colouring in data["colourings"]}
    shown = {name: [c["layers"][code]["name"] for code in c["codes"]] for name, c in found.items()}
    elements = [f"scores[{c}]" for c in range(3)]
    whole = ["many: largest", "many: value of the largest"]
    assert list(found) == [
        "label",
        "scores: largest",
        *elements,
        "value",
        *whole,
        "pixels[5]",
        "pixels[4]",
        "a.b",
        "density",
    ]
    assert shown["scores: largest"] == [str(c) for c in i % 3]
    np.testing.assert_allclose(found["scores[1]"]["values"], np.where(i % 3 == 1, 0.8, 0.1), rtol=1e-6)
    np.testing.assert_allclose(found["value"]["values"], i / 2)
    np.testing.assert_allclose(found["pixels[5]"]["values"], X[i, 5] * 4 + 5, rtol=1e-6)  # as the user had them
    assert set(shown["pixels[4]"]) == {"4"}  # a constant
    assert shown["a.b"] == [f"d{10 * n + 10}" if n < 29 else UNLABELLED for n in i]


@pytest.mark.spark
def test_unknown_columns_to_colour_by_are_named(spark: SparkSession) -> None:
    given: dict[str, Any] = {"features": ["a", "b"], "width": 2, "scaler": None}
    assert find_columns(["b"], **given, kept=[], read_table=lambda: pytest.fail("read")).features == {"b": 1}
    with pytest.raises(ConfigError, match=r"colour_by names day: neither features \(a, b; .* with the rows \(week\)"):
        find_columns(["day", "a"], **given, kept=["week"], read_table=lambda: spark.range(3))


@pytest.mark.spark
@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rows(spark: SparkSession, tmp_path: Path, n: int) -> None:
    X, Z, y = blobs(8)
    found, _ = run(spark, tmp_path, *tables(spark, X[:n], Z[:n], y[:n].tolist()))
    assert found["k"] == {1: None, 2: None, 5: 2}[n]
    assert (found["trustworthiness"] is None) == (n < 5)


@pytest.mark.spark
def test_bad_embeddings_are_named(spark: SparkSession, tmp_path: Path) -> None:
    X, Z, _ = blobs()
    rows, embeddings = tables(spark, X, Z)
    with pytest.raises(InputError, match="no rows"):
        run(spark, tmp_path, rows, embeddings.limit(0))
    Z[4, 1] = np.nan
    with pytest.raises(InputError, match=r"1 of 60 sampled embeddings .* first id 50"):
        run(spark, tmp_path, *tables(spark, X, Z))


@pytest.mark.parametrize("package", ["matplotlib", "plotly"])
def test_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("matplotlib.figure", "matplotlib.backends.backend_agg", "plotly.offline"):
        if module.startswith(package):
            monkeypatch.setitem(sys.modules, module, None)
    path = str(tmp_path / "loss.png")
    draw = plots.require_plotly if package == "plotly" else lambda: figures.save_loss(path, {"loss": [1.0]})
    with pytest.raises(DependencyError, match=rf"{package}.*ivis_spark\[report\]"):
        draw()


def test_importing_the_report_loads_none_of_its_packages() -> None:
    heavy = "('matplotlib', 'plotly', 'pyspark', 'pandas', 'tensorflow')"
    code = f"import sys, ivis_spark.report; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_labels_are_read_as_classes_or_quantities() -> None:
    assert read_labels([None, float("nan")]) is None
    whole = read_labels([3.0, None, -1.0, 3.0])
    assert whole is not None
    assert (whole.names, whole.codes.tolist(), whole.continuous) == (("-1", "3"), [1, -1, 0, 1], False)
    text = read_labels(["day 10", "day 2", None, "a"])
    assert text is not None
    assert (text.names, text.codes.tolist()) == (("a", "day 2", "day 10"), [2, 1, -1, 0])
    quantity = read_labels([0.5, 1.0, float("inf")])
    assert quantity is not None
    assert quantity.continuous
    assert quantity.known.tolist() == [True, True, False]
    many = read_labels([float(i) for i in range(101)])
    assert many is not None
    assert many.continuous
    predicted = read_labels([float(i) for i in range(101)], classes=True)
    assert predicted is not None
    assert len(predicted.names) == 101
    scale = read_labels([float(i % 90) for i in range(900)])
    assert scale is not None
    assert not scale.continuous
    assert scale.on_scale


def test_many_classes_get_distinct_colours_and_the_rare_share_one() -> None:
    labels = read_labels([f"c{i}" for i in range(50) for _ in range(50 - i)] + [None])
    assert labels is not None
    layers = plan_layers(labels, len(labels.codes))
    assert sorted(np.concatenate([layer.rows for layer in layers])) == list(range(len(labels.codes)))
    assert [layer.name for layer in layers[:3]] == [UNLABELLED, "11 rarer labels", "c0"]
    drawn = {(layer.colour, layer.marker) for layer in layers[2:]}
    assert len(drawn) == len(layers) - 2 == len(PALETTE) * len(MARKERS) - 1
    channels = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in PALETTE])
    assert np.ptp(channels, axis=1).min() > 60  # grey is of rows without a label


# What is seen of linear RGB with all cones, and without those for long, middle and short waves: Machado, Oliveira and
# Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009), severity 1.
VISIONS = (
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
)
XYZ_OF_RGB = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def test_colours_differ_with_every_common_colour_vision() -> None:
    """By 18 in CIE 1976."""
    hexes = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in PALETTE]
    shares = np.array(hexes) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    for seen in VISIONS:
        xyz = np.clip(linear @ np.transpose(seen), 0, 1) @ np.transpose(XYZ_OF_RGB) / [0.95047, 1, 1.08883]
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
        assert pdist(lab).min() > 18


def test_shortened_names_stay_apart() -> None:
    assert shortened(["a\nb" + "x" * 100, " "]) == ["a b" + "x" * 26 + "…" + "x" * 30, "(empty)"]
    assert shortened(["a b", "a  b", "c"]) == ["'a b'", "'a  b'", "c"]
    names = [f"{'x' * 50}{number}{'y' * 9}" for number in range(3)]
    short = shortened(names, 16)
    assert len(set(short)) == 3 and all("…" in name and len(name) < 30 for name in short)
    stages = [f"a long and equal beginning of cell type {name}" for name in ("GABAergic", "cholinergic")]
    assert shortened(stages, 30) == ["a long …GABAergic", "a long …cholinergic"]
    backwards = [name[::-1] for name in stages]
    assert shortened(backwards, 30) == ["cigreABAG… gnol a", "cigrenilohc… gnol a"]
    assert shortened(["short", *names], 200) == ["short", *names]
    random = ["".join(chars) for chars in np.random.default_rng(0).choice(list("abcd"), (3000, 300))]
    middle = [f"{'x' * 3000}{number}{'y' * 3000}" for number in range(2)]
    started = time.process_time()
    short = shortened(["b" * 3000, *middle, *random])
    assert time.process_time() - started < 1.5
    assert len(set(short)) == 3003 and max(map(len, short)) <= 120
    assert short[1].endswith(" (1)") and short[2].endswith(" (2)")


def test_names_that_are_not_shown_leave_the_others_alone() -> None:
    """Which are cut as if they were all there is."""
    names = ("s" * 200, "u", "t" * 100 + "a" * 20, "t" * 100 + "b" * 20)
    confusion = Confusion(names, np.array([2, 3]), np.array([3, 3]), "model")
    assert confusion.pairs() == [("t" * 15 + "…" + "a" * 20, "t" * 15 + "…" + "b" * 20, 1, 1.0)]


def test_a_colour_scale_is_cut_into_named_steps() -> None:
    """Values 0..100 in hundredths: percentiles 1 and 99 are .01 and .99 of the range, and a step is .098 of it."""
    labels = read_labels([None, *np.linspace(0, 1, 101)])
    assert labels is not None
    steps = scale_steps(labels, lambda share: f"{share:.2f}")
    assert [step.name for step in steps[:2]] == ["under 0.108", "0.108 to 0.206"]
    assert steps[-1].name == "from 0.892"
    assert [step.colour for step in steps][::9] == ["0.05", "0.95"]
    assert sorted(np.concatenate([step.rows for step in steps])) == list(range(1, 102))
    assert [len(step.rows) for step in steps][:2] == [11, 10]
    same = read_labels([0.5, 0.5, None])
    assert same is not None
    assert [(step.name, step.rows.tolist()) for step in scale_steps(same, str)] == [("0.5", [0, 1])]


def test_metrics_of_ones_own_are_looked_at_before_anything_is_made(tmp_path: Path) -> None:
    for name, said in {
        "toy_metrics:none": "evaluate.metrics='toy_metrics:none' cannot be imported",
        "toy_metrics": "must be of the form package.module:function",
        "other:trustworthiness": "the report already has a metric 'trustworthiness'",
        "other:rows": "the report already has a metric 'rows'",
    }.items():
        config = Config(evaluate=EvaluateConfig(metrics=(name,)))
        pipeline = Pipeline(str(tmp_path / "run"), config, get_spark=lambda: pytest.fail("Spark was started"))
        for step in (pipeline.run, pipeline.evaluate):
            with pytest.raises(ConfigError, match=said):
                step()


@pytest.mark.spark
def test_no_metric_takes_the_name_of_what_a_report_holds(spark: SparkSession, tmp_path: Path) -> None:
    X, Z, y = blobs()
    found, _ = run(spark, tmp_path / "new", *tables(spark, X, Z, y.tolist(), "long"))
    for key in found:
        if not key.startswith("pca_") and not key.endswith("_verdict"):
            with pytest.raises(ConfigError, match="already has a metric"):
                import_metrics([f"other:{key}"])


def test_the_tolerance_of_verdicts_is_said() -> None:
    page = (Path(__file__).parent.parent / "docs" / "explanation" / "metrics.md").read_text()
    assert f"at least as good (within {LEEWAY:g}), or {100 * GOOD:g} % of the way from chance to 1" in VERDICTS_HINT
    assert f"at least as good (within {LEEWAY:g}) or {100 * GOOD:g} % of the".replace("0.", ".") in page


def test_verdicts_by_hand() -> None:
    found: dict[str, Any] = dict.fromkeys([*JUDGED, *(f"pca_{name}" for name in JUDGED)])
    found |= {"labels": "held out", "commonest_label": 0.4, "recall_at_k": 0.96, "recall_low": 0.94}
    found |= {"original_recall_at_k": 0.8, "original_recall_low": 0.7}
    found |= {"trustworthiness": 0.89, "pca_trustworthiness": 0.9, "continuity": 0.8, "pca_continuity": 0.9}
    found |= {"distance_correlation_pearson": 0.3, "pca_distance_correlation_pearson": 0.9}
    found |= {"knn_accuracy": 0.5, "pca_knn_accuracy": 0.7, "linear_svm_accuracy": 0.98, "pca_linear_svm_accuracy": 1.0}
    found |= {"centroid_correlation": 0.951, "pca_centroid_correlation": 1.0}
    verdicts = judge(found, {"neighbours": {"target_recall": 0.95}})
    assert verdicts == {
        "recall_at_k_verdict": "doubtful",
        "original_recall_at_k_verdict": "doubtful",
        "trustworthiness_verdict": "good",
        "continuity_verdict": "doubtful",
        "random_triplet_accuracy_verdict": None,
        "distance_correlation_pearson_verdict": "poor",
        "distance_correlation_spearman_verdict": None,
        "knn_accuracy_verdict": "poor",
        "linear_svm_accuracy_verdict": "good",
        "centroid_correlation_verdict": "good",
    }
    judged = judge({**found, "labels": "trained on"}, {})
    assert judged["knn_accuracy_verdict"] is judged["centroid_correlation_verdict"] is None
    for low, name in ((0.95, "recall"), (0.96, "original_recall")):
        assert judge({**found, f"{name}_low": low}, {})[f"{name}_at_k_verdict"] == "good"
    assert judge({**found, "recall_at_k": 0.8, "recall_low": 0.7}, {})["recall_at_k_verdict"] == "poor"


def test_principal_components_are_those_of_numpy_and_never_fail() -> None:
    X = np.random.default_rng(0).normal(size=(40, 5)) * [5, 3, 1, 1, 1]
    centred = X - X.mean(axis=0)
    expected = centred @ np.linalg.svd(centred)[2][:2].T
    np.testing.assert_allclose(np.abs(principal_components(X, 2, seed=0)), np.abs(expected), atol=1e-9)
    for rows in (np.ones((9, 4)), np.ones((1, 4)), np.zeros((0, 1)), np.arange(4.0)[:, None]):
        assert principal_components(rows, 3, seed=0).shape == (len(rows), 3)
