"""`plot`: matplotlib, datashader and plotly."""

from __future__ import annotations

import itertools
import logging
import sys
from typing import Any

import numpy as np
import pytest

from ivis_spark import plot
from ivis_spark.errors import ConfigError, InputError, NotFittedError
from ivis_spark.report import plotting

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(90, 2)) + 6 * np.eye(3, 2)[np.arange(90) % 3]
NAMES = np.array(["a", "b", "c"], dtype=object)[np.arange(90) % 3]


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def colours(axes: Any) -> list[tuple[int, int]]:
    """Return how many points are drawn in how many colours, by layer."""
    return [(len(c.get_offsets()), len(np.unique(c.get_facecolors(), axis=0))) for c in axes.collections]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (NAMES, [(30, 1)] * 3),
        (np.where(np.arange(90) < 9, None, NAMES), [(9, 1)] + [(27, 1)] * 3),
        (NAMES == "a", [(60, 1), (30, 1)]),
        (np.arange(90) % 3 + 0.5, [(30, 1)] * 3),
        (np.where(np.arange(90) < 9, np.nan, np.arange(90) % 3), [(9, 1)] + [(27, 1)] * 3),
        (np.arange(90) * 2, [(51, 1)] + [(1, 1)] * 39),  # numbers are classes, however many
        (np.arange(90) * 2.5, [(51, 1)] + [(1, 1)] * 39),
        (None, [(90, 1)]),
    ],
)
def test_classes(labels: Any, expected: list[tuple[int, int]]) -> None:
    assert colours(plot(Z, labels)) == expected


def test_quantities_and_what_is_passed_to_matplotlib() -> None:
    from matplotlib import pyplot

    _, given = pyplot.subplots()
    values = np.where(np.arange(90) < 9, np.nan, np.arange(90.0))
    axes = plot(Z, values=values, ax=given, title="a $title_")
    assert axes is given and axes.get_title() == "a $title_"
    (missing, drawn) = colours(axes)
    assert missing == (9, 1) and drawn[0] == 81 and drawn[1] > 50
    assert plot(Z[:, :1]).get_yticks().size == 0
    assert plot(np.column_stack([Z, Z])).get_xlabel() == "dimension 1 of 4"


def test_axes_have_one_scale_and_the_legend_fits() -> None:
    from matplotlib import pyplot

    for shared in (False, True):
        figure, pair = pyplot.subplots(1, 2, figsize=(7, 2.6), sharex=shared, sharey=shared)
        axes = plot(Z * [5, 1], np.array([f"class {row % 14}" for row in range(90)]), ax=pair[0])
        figure.canvas.draw()
        assert axes.get_aspect() == 1
        legend, edge = axes.get_legend().get_window_extent(), figure.bbox
        assert legend.y0 >= edge.y0 and legend.x1 <= edge.x1


def test_data_frames_are_embeddings_and_their_rows_have_names(caplog: pytest.LogCaptureFixture) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("plotly")
    frame = pd.DataFrame(Z, index=[f"cell {row}" for row in range(90)])
    np.testing.assert_allclose(plot(frame).collections[0].get_offsets(), Z)
    assert list(plot(frame, NAMES, interactive=True).data[1].customdata[:2]) == ["cell 1", "cell 4"]
    assert plot(frame, values=Z[:, 0], interactive=True).layout.yaxis.scaleanchor == "x"
    with caplog.at_level(logging.WARNING, "ivis_spark"):
        plot(Z, np.arange(90))
    assert "90 different values: the 39 most frequent" in caplog.text


def test_names_of_classes_in_one_place_are_written_above_one_another() -> None:
    rng = np.random.default_rng(0)
    middles = ((0, 0), (0.3, 0.05), (0.5, -0.05), (5, 5))
    axes = plot(np.concatenate([rng.normal(at, 0.5, (50, 2)) for at in middles]), labels=np.arange(200) // 50)
    axes.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4
    assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))


TYPES = [f"CD{kind}-positive, alpha-beta memory T cell of the {organ}" for kind in (4, 8) for organ in ("lung", "gut")]
TYPES += [f"{'x' * 70}{number}{'y' * 40}" for number in range(3)]


@pytest.mark.parametrize("times", [1, 4])
def test_entries_of_a_legend_differ(times: int) -> None:
    pytest.importorskip("plotly")
    names = [
        f"{name} {again}".strip("1 ") if again == 1 else f"{again} {name}"
        for again in range(1, times + 1)
        for name in TYPES
    ]
    labels = np.array(names)[np.arange(90) % len(names)]
    axes = plot(Z, labels)
    entries = [text.get_text().replace("\n", " ") for text in axes.get_legend().get_texts()]
    assert len(set(entries)) == len(names) and all(
        len(line) <= 28 for text in axes.get_legend().get_texts() for line in text.get_text().split("\n")
    )
    if times == 1:
        assert set(TYPES[:4]) <= set(entries) and max(map(len, entries)) < 90
    figure = plot(Z, labels, interactive=True)
    assert len({trace.name for trace in figure.data}) == len(names) and figure.layout.hoverlabel.namelength == -1


def test_a_name_is_written_on_its_class() -> None:
    """A class of two groups, the larger of which is denser, on both sides of another."""
    rng = np.random.default_rng(0)
    ends = np.concatenate([rng.normal((-6, 0), 0.3, (200, 2)), rng.normal((6, 0), 0.6, (210, 2))])
    between = rng.normal((0, 0), 0.5, (100, 2))
    axes = plot(np.concatenate([ends, between]), labels=["ends"] * 410 + ["between"] * 100)
    (at,) = [text.xy for text in axes.texts if text.get_text() == "ends"]
    assert np.linalg.norm(np.subtract(at, (-6, 0))) < 0.5
    for rows in (1, 2, 3):
        assert len(plot(Z[:rows], labels=["few"] * rows).texts) == 1


def test_labels_of_pandas_and_of_files(caplog: pytest.LogCaptureFixture) -> None:
    pd = pytest.importorskip("pandas")
    stages = pd.Categorical(["young", "old", "adult"] * 30, ["egg", "young", "adult", "old"], ordered=True)
    sizes = pd.Categorical([3, 1, 2] * 30, [3, 2, 1], ordered=True)
    for labels, names in (
        (stages, ["young", "adult", "old"]),
        (pd.Series(stages), ["young", "adult", "old"]),
        (sizes, ["3", "2", "1"]),
        (pd.Categorical(NAMES), ["a", "b", "c"]),
        ([name.encode() for name in NAMES], ["a", "b", "c"]),
    ):
        axes = plot(Z, labels)
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names
    days = pd.to_datetime(["2021-02-03", "2020-01-01", None])
    for labels, names in (
        (pd.Categorical([1, 2, None], [2, 1], ordered=True), ["no label", "2", "1"]),
        (pd.Series(pd.Categorical(days, ordered=True)), ["no label", "2020-01-01", "2021-02-03"]),
        (days, ["no label", "2020-01-01", "2021-02-03"]),
        (pd.Categorical([b"b", b"a", None], [b"b", b"a"], ordered=True), ["no label", "b", "a"]),
        (pd.Categorical([None, None, None], [1], ordered=True), None),
    ):
        legend = plot(Z[:3], labels).get_legend()
        assert (legend and [text.get_text() for text in legend.get_texts()]) == names
    with pytest.warns(UserWarning, match="the text 'nan' is a class of its own"):
        plot(Z, np.where(NAMES == "a", "nan", NAMES))
    with caplog.at_level(logging.WARNING, "ivis_spark"):
        plot(pd.DataFrame(np.column_stack([Z, Z[:, :1]])))
        assert not caplog.messages
        plot(pd.DataFrame(np.column_stack([Z, Z]), columns=list("abcd")))
    assert "the frame has 4 columns, of which the first two are drawn: ['a', 'b']" in caplog.text


def test_series_of_vectors_and_frames_of_spark() -> None:
    pd = pytest.importorskip("pandas")
    vectors = np.arange(6.0).reshape(3, 2)

    class Vector:
        def __init__(self, values: Any) -> None:
            self.toArray = lambda: values

    for column in (pd.Series(list(vectors)), pd.Series([Vector(each) for each in vectors])):
        axes = plot(column, labels=["a", "b", "a"])
        np.testing.assert_array_equal(np.sort(np.concatenate([c.get_offsets() for c in axes.collections]), 0), vectors)
    labels = pd.Series(["a", "b", "a"], index=[2, 1, 0])
    with pytest.warns(UserWarning, match="same index in another order"):
        plot(pd.DataFrame(vectors), labels=labels)
    frame = type("DataFrame", (), {"toPandas": None})()
    with pytest.raises(InputError, match="a Spark DataFrame is not an embedding"):
        plot(frame)


def test_models_are_asked_for_their_embedding() -> None:
    class Model:
        embedding_: Any = None

        def transform(self, X: np.ndarray) -> np.ndarray:
            return X[:, :2] * 2

    model = Model()
    np.testing.assert_allclose(plot(model, X=Z).collections[0].get_offsets(), 2 * Z)
    with pytest.raises(InputError, match="pass X"):
        plot(model)
    model.__sklearn_is_fitted__ = lambda: False  # type: ignore[attr-defined]
    with pytest.raises(NotFittedError, match="not fitted yet"):
        plot(model)
    del model.__sklearn_is_fitted__
    model.embedding_ = Z
    np.testing.assert_allclose(plot(model).collections[0].get_offsets(), Z)


def test_many_rows_are_mixed_by_datashader(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(plotting, "_MOST_POINTS", 80)
    pytest.importorskip("datashader")
    axes = plot(Z, NAMES)
    assert not axes.collections and len(axes.get_legend().get_texts()) == 3
    pixels = axes.images[0].get_array()
    assert pixels.shape == (700, 900, 4) and len(np.unique(pixels[pixels[..., 3] > 0][:, :3], axis=0)) >= 3
    assert axes.images[0].get_extent() == [Z[:, 0].min(), Z[:, 0].max(), Z[:, 1].min(), Z[:, 1].max()]
    monkeypatch.setitem(sys.modules, "datashader", None)
    with caplog.at_level(logging.WARNING, "ivis_spark"):
        assert colours(plot(Z, NAMES)) == [(30, 1)] * 3
    assert "pip install datashader" in caplog.text


def test_interactive_figures() -> None:
    pytest.importorskip("plotly")
    figure = plot(Z, NAMES, interactive=True, title="cells")
    assert [(trace.name, len(trace.x)) for trace in figure.data] == [("a", 30), ("b", 30), ("c", 30)]
    assert figure.layout.title.text == "cells" and list(figure.data[1].customdata[:2]) == [1, 4]
    (scale,) = plot(Z, values=np.arange(90.0), interactive=True).data
    assert scale.marker.showscale and list(scale.customdata[5]) == [5, 5]
    assert "</div>" in figure.to_html(include_plotlyjs=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": NAMES, "values": np.arange(90)}, ConfigError, "pass only one of them"),
        ({"labels": NAMES[1:]}, InputError, r"labels has shape \(89,\); it must be \(90,\)"),
        ({"values": NAMES}, InputError, "pass classes as labels"),
        ({"X": Z}, ConfigError, "omit X"),
        ({"model_or_embedding": Z[:, 0]}, InputError, r"shape \(90,\)"),
        ({"model_or_embedding": "cells"}, InputError, "a str is not an embedding"),
        ({"model_or_embedding": np.where(Z > 7, np.nan, Z)}, InputError, "hold NaN"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plot(**{"model_or_embedding": Z, **arguments})
