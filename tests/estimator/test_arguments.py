"""Arguments of `Ivis`: what an unknown or unsuitable one is answered with, and those that change between two fits."""

from __future__ import annotations

import inspect
import logging
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivis_spark.config import NeighboursConfig, TrainConfig
from ivis_spark.errors import ConfigError, InputError, NotFittedError

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from sklearn.base import clone  # noqa: E402

from ivis_spark.data.arrays import warn_of_other_order  # noqa: E402
from ivis_spark.estimator import Ivis, predicting  # noqa: E402
from ivis_spark.estimator.arguments import FOLLOWED, naming_arguments  # noqa: E402
from ivis_spark.estimator.labels import read_labels  # noqa: E402
from ivis_spark.estimator.settings import with_preset  # noqa: E402

X = np.random.default_rng(0).random((40, 12)).astype(np.float32)
CLASSES = np.arange(40) % 3


def small(**options: Any) -> Ivis:
    return Ivis(**{"k": 5, "epochs": 1, "batch_size": 16, "verbose": 0, **options})


def test_every_argument_is_documented() -> None:
    named = re.findall(r"^        (\w+): ", inspect.getdoc(Ivis).replace("\n    ", "\n        "), flags=re.M)  # type: ignore[union-attr]
    assert set(Ivis().get_params()) <= set(named)


def test_a_preset_decides_what_was_not_given_and_nothing_else() -> None:
    """Values of the other preset are kept, also through clone and set_params; the documentation has both presets'."""
    documented = dict(re.findall(r"^    (\w+): (.*?)(?=^    \w+: |^\w)", inspect.getdoc(Ivis) or "", flags=re.M | re.S))
    ivis, fast = (with_preset(Ivis(preset=preset).get_params()) for preset in ("ivis", "fast"))
    governed = [name for name, value in Ivis().get_params().items() if value == "preset"]
    assert len(governed) == 15 and {name for name in ivis if ivis[name] != fast[name]} == {*governed, "preset"}
    for name in governed:
        assert f"[{ivis[name]}; {fast[name]}" in documented[name], name
        kept = clone(Ivis(preset="fast", **{name: ivis[name]}))
        assert with_preset(kept.get_params())[name] == ivis[name]
        assert with_preset(kept.set_params(**{name: "preset"}).get_params())[name] == fast[name]
    other = with_preset(Ivis(preset="fast", distance="pn").get_params())
    assert (other["learning_rate"], other["schedule"], other["clipnorm"]) == (0.004, "constant", 4.0)
    with pytest.raises(ConfigError, match="n_components"):
        small(n_components="preset").fit(X)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("n_neighbors", "no argument 'n_neighbors'; did you mean k?"),
        ("metric", "did you mean knn_distance_metric?"),
        ("embeding_dims", "did you mean embedding_dims?"),
        ("zzz", r"see help\(Ivis\)"),
    ],
)
def test_unknown_arguments(argument: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Ivis(**{argument: 3})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("k", 0),
        ("knn_distance_metric", "cosin"),
        ("n_trees", 0),
        ("epochs", "many"),
        ("n_epochs_without_progress", 0),
        ("batch_size", 0),
        ("supervision_weight", 2),
        ("learning_rate", -1),
        ("optimizer", "adm"),
        ("distance", "pnn"),
        ("model", "szuber"),
        ("supervision_metric", "maee"),
    ],
)
def test_errors_name_arguments(argument: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        small(**{argument: value}).fit(X, CLASSES)
    text = str(caught.value)
    assert argument in text and repr(value) in text
    assert not re.search(r"\b(neighbours|train)\.\w", text), text
    if isinstance(value, str) and value != "many":
        assert "did you mean" in text


def test_every_setting_has_its_argument() -> None:
    names = {"patience": "n_epochs_without_progress", "metric": "knn_distance_metric", "callbacks": "their own"}
    for section, settings in (("train", TrainConfig), ("neighbours", NeighboursConfig)):
        for setting in settings.__dataclass_fields__:
            name = names.get(setting, setting)
            if name in Ivis().get_params():
                with pytest.raises(ConfigError, match=f"^{name}=3 is"), naming_arguments():
                    raise ConfigError(f"{section}.{setting}=3 is wrong")


@pytest.mark.parametrize("loaded", [False, True])
def test_a_changed_network_is_refused_where_training_resumes(loaded: bool, tmp_path: Path) -> None:
    model = small(warm_start=True, n_components=10).fit(X)
    if loaded:
        model.save_model(str(tmp_path / "m"))
        model = Ivis().load_model(str(tmp_path / "m"))
    model = pickle.loads(pickle.dumps(model.fit(X)))
    for changed in ({"embedding_dims": 3}, {"model": "maaten"}, {"dropout": 0.2}, {"n_components": None}):
        (name,) = changed
        with pytest.raises(ConfigError, match=f"{name} from .* (?:new Ivis|warm_start=False).*set {name} back"):
            model.set_params(**changed).fit(X)
        model.set_params(embedding_dims=2, model="szubert", dropout=0.1, n_components=10)
    assert len(model.fit(X).loss_history_) == 3
    if not loaded:
        assert model.set_params(warm_start=False, embedding_dims=3).fit_transform(X).shape == (40, 3)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("distance", "euclidean"),
        ("margin", 3.0),
        ("supervision_weight", 0.9),
        ("global_weight", 0.5),
        ("learning_rate", 1e-9),
        ("optimizer", "sgd"),
        ("supervision_metric", "mse"),
    ],
)
def test_other_changes_are_followed_where_training_resumes(argument: str, value: Any) -> None:
    assert argument in FOLLOWED
    model, other = (small(warm_start=True).fit(X, CLASSES) for _ in range(2))
    encoder, steps = model.encoder_.count_params(), int(model.model_.optimizer.iterations)
    before = model.transform(X)
    model.set_params(**{argument: value}).fit(X, CLASSES)
    other.fit(X, CLASSES)
    assert not np.array_equal(model.transform(X), other.transform(X))
    assert model.encoder_.count_params() == encoder and len(model.loss_history_) == 2
    if argument == "learning_rate":
        np.testing.assert_allclose(model.transform(X), before, atol=1e-4)
    if argument in ("distance", "margin", "supervision_weight", "global_weight"):
        assert int(model.model_.optimizer.iterations) == 2 * steps


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.linspace(4.3, 9, 40), r"labels hold 4\.3; .*supervision_metric='mae'.*LabelEncoder.*supervision_weight=0"),
        (CLASSES + 1, r"labels start at 1\. .*y\.astype\(str\)"),
        (CLASSES * 2, r"1 is missing\. .*LabelEncoder"),
    ],
)
def test_labels_that_are_no_classes_are_answered_with_what_helps(labels: np.ndarray, message: str) -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    with pytest.raises(InputError, match=message):
        small().fit(X, labels)
    model = make_pipeline(small(supervision_weight=0), LinearRegression()).fit(X, labels)
    np.testing.assert_array_equal(model[0].transform(X), small().fit_transform(X))


@pytest.mark.parametrize("loaded", [False, True])
def test_classes_keep_their_numbers_where_training_resumes(loaded: bool, tmp_path: Path) -> None:
    """In the model's order, also if some have no rows now; other classes are refused before the head learns them."""
    model = small(warm_start=True).fit(X, np.array(["a", "b", "c"], object)[CLASSES])
    if loaded:
        model.save_model(str(tmp_path / "m"))
        model = Ivis().load_model(str(tmp_path / "m"))
    before = model.score_samples(X)
    model.set_params(learning_rate=1e-9).fit(X, np.array(["c", None, "a"], object)[CLASSES])
    assert model.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(model.score_samples(X), before, atol=1e-4)
    for others in (np.array(["b", "c", "d"])[CLASSES], CLASSES):
        with pytest.raises(
            InputError, match=r"of the classes ('b', 'c', 'd'|0, 1, 2); .* model of the classes 'a', 'b', 'c'"
        ):
            model.fit(X, others)
    with pytest.raises(InputError, match="no row has a label"):
        model.fit(X, [None] * 40)
    with pytest.raises(InputError, match=r"would lose without them: pass y .* sklearn\.base\.clone"):
        model.fit(X)
    np.testing.assert_allclose(model.score_samples(X), before, atol=1e-4)


@pytest.mark.parametrize("resumed", [[0, 1, 2], (np.arange(3) + np.datetime64("2026-01-01")).astype("datetime64[ns]")])
def test_numbers_and_dates_are_matched_by_value(resumed: Any) -> None:
    resumed = np.asarray(resumed)
    labels = resumed[[2, 0, 2]]
    labels = labels.astype("datetime64[D]") if labels.dtype.kind == "M" else labels
    numbers, classes, outputs = read_labels(labels, 3, "sparse_categorical_crossentropy", resumed)
    assert numbers.tolist() == [2, 0, 2] and classes is resumed and outputs == 3


@pytest.mark.parametrize("labels", [np.full(40, np.nan), np.where(np.eye(40, 2, dtype=bool)[::-1], 1, np.nan)])
def test_values_of_which_all_are_missing_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(InputError, match="no row has a label, all are None or NaN"):
        small(supervision_metric="mae").fit(X, labels)


def test_an_unknown_order_of_the_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="shuffle_mode='batchy' is not known; use True, False or 'batch'"):
        small().fit(X, shuffle_mode="batchy")


@pytest.mark.parametrize(
    ("labels", "message"), [(np.zeros(40, int), "all labels are of one class, 0"), (["nan", "a"] * 20, "text 'nan'")]
)
def test_labels_that_teach_nothing_are_warned_of(labels: Any, message: str) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        small().fit(X, labels)
    assert not any("softmax" in str(each.message) for each in caught)


def test_text_of_hdf5_and_of_numpy_is_text() -> None:
    names = np.array(["a", "b", "c"])
    for labels in ([name.encode() for name in names[CLASSES]], np.array(names[CLASSES], "S"), list(names[CLASSES])):
        classes = small().fit(X, labels).classes_
        assert [*map(type, classes.tolist())] == [str] * 3 and classes.tolist() == ["a", "b", "c"]
    with pytest.warns(UserWarning, match="the text 'nan' is"):
        small().fit(X, list(np.array(["nan", "a"] * 20)))


def test_components_are_not_the_size_of_the_embedding() -> None:
    with pytest.warns(UserWarning, match=r"replaces the 12 columns.*embedding_dims=2"):
        small(n_components=2).fit(X)
    with pytest.warns(UserWarning, match="n_components=50 was lowered to 12: X has 40 rows and 12 columns"):
        small(n_components=50).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        small(n_components=10).fit(X)
    with pytest.raises(ConfigError, match="for example 50"):
        small(n_components="auto").fit(X)


def test_k_is_at_most_the_rows_without_two() -> None:
    with pytest.warns(UserWarning, match="k=39 was lowered to 38"):
        assert small(k=39).fit(X).neighbour_matrix_.shape == (40, 38)
    with pytest.raises(InputError, match=r"k=40 must be at most n_rows - 2 = 38"):
        small(k=40).fit(X)


class AnnData:
    X, obsm, shape = X, {"X_pca": X}, X.shape

    def __getitem__(self, place: Any) -> Any:
        return self


class _CSRDataset:
    """The rows of an AnnData that is read with backed="r"."""

    shape, format = X.shape, "csr"

    def __getitem__(self, place: Any) -> Any:
        return self

    def to_memory(self) -> Any: ...


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "X is None"),
        ("iris.csv", "text, 'iris.csv': read the file"),
        (Path("iris.csv"), "text, 'iris.csv'"),
        (AnnData(), r"pass its rows, adata.obsm\['X_pca'\] or adata.X"),
        (_CSRDataset(), r"on disk: pass adata\.to_memory\(\)\.X"),
    ],
)
def test_what_holds_or_names_rows(rows: Any, message: str) -> None:
    for method in (small().fit, small().transform):
        with pytest.raises(InputError, match=message):
            method(rows)


def test_files_of_several_arrays(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        for name in ("data", "indices", "indptr"):
            file[f"X/{name}"] = np.arange(3)
        file["obsm/X_pca"] = X
        for rows, message in (
            (file["X"], r"'/X' of an HDF5 file, a sparse matrix in parts: read it with anndata\.read_h5ad"),
            (file, "pass one of its datasets.*it holds X/data, X/indices, X/indptr, obsm/X_pca"),
            (file["obsm"], "it holds X_pca"),
            (file.create_group("empty"), "it holds none"),
        ):
            with pytest.raises(InputError, match=message):
                small().fit(rows)
    np.savez(tmp_path / "a.npz", rows=X, labels=CLASSES)
    with np.load(tmp_path / "a.npz") as file, pytest.raises(InputError, match=r"X\['rows'\]; it holds rows, labels"):
        small().fit(file)


def test_missing_values_are_counted_by_column() -> None:
    pd = pytest.importorskip("pandas")
    holes = X.copy()
    holes[:7, 3], holes[0, 1] = np.nan, np.inf
    with pytest.raises(InputError, match=r"7 of 40 rows, the first is row 0 \(columns 3: 7, 1: 1\)"):
        small().fit(holes)
    frame = pd.DataFrame(holes, columns=list("abcdefghijkl"))
    with pytest.raises(InputError, match=r"\(columns 'd': 7, 'b': 1\)"):
        small().fit(frame)


def test_columns_that_outweigh_the_others_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ivis_spark")
    small().fit(X)
    assert not caplog.messages
    small().fit(X * np.where(np.arange(12) == 4, 1e6, 1))
    assert "1 of 12 columns" in caplog.text and "[4]" in caplog.text and "Scale X" in caplog.text
    small().fit(255 * X)
    assert "a usual column of X range over 2" in caplog.text


def counts(n: int = 60, d: int = 50) -> np.ndarray:
    """Of genes in cells: most are 0 or 1, few are large, and cells have other totals."""
    rng = np.random.default_rng(0)
    rates = rng.lognormal(-1.5, 1.5, d) * np.array([1, 3, 9])[np.arange(n) % 3, None]
    return rng.poisson(rates).astype(np.float32)


@pytest.mark.parametrize(
    "labels", [[3, 5, -1], np.array([3, 5, -1]), [3.0, 5.0, -1.0], [3.0, 5.0, np.nan], [3, 4.5, -1]]
)
def test_the_advice_on_labels_of_other_numbers_with_missing_ones_works(labels: Any) -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match="text that keeps missing labels") as caught:
        read_labels(labels, 3, "sparse_categorical_crossentropy")
    found = re.search(r"keeps missing labels, (.+\)); to train", str(caught.value))
    assert found is not None
    advised = eval(found[1], {"pandas": pandas, "y": labels})
    numbers, classes, _ = read_labels(advised, 3, "sparse_categorical_crossentropy")
    assert numbers.tolist() == [0, 1, -1] and classes is not None
    assert classes.tolist() == (["3.0", "4.5"] if 4.5 in labels else ["3", "5"])


def test_a_placeholder_among_counts_is_refused() -> None:
    rows = counts()
    rows[7, 3] = 3.4e38
    with pytest.raises(InputError, match=r"exceed float32, because of columns \[3\]: .*placeholders"):
        small(neighbour_matrix=[[1, 2]] * 60).fit(rows)


def test_raw_counts_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    from scipy import sparse
    from sklearn.datasets import load_digits

    caplog.set_level(logging.WARNING, "ivis_spark")
    raw = counts()
    for rows in (raw, sparse.csr_matrix(raw)):
        small(n_components=20, neighbour_matrix=[[1, 2]] * 60).fit(rows)
        assert "looks like raw counts" in caplog.text and "log1p" in caplog.text and len(caplog.messages) == 1
        caplog.clear()
    flags = np.eye(40)[np.arange(60) % 40]
    pixels = np.random.default_rng(0).integers(0, 256, (60, 64)) * (np.arange(64) % 4 > 0)
    ages = np.column_stack([flags, np.arange(60)])
    for rows in (load_digits().data[:60], flags, ages, np.log1p(raw), -raw, raw[:, :20]):
        small().fit(rows)
        assert "counts" not in caplog.text, rows
    small().fit(pixels)
    assert "counts" not in caplog.text and "a usual column of X range" in caplog.text


def test_wide_sparse_rows_are_searched_faster_by_components(caplog: pytest.LogCaptureFixture) -> None:
    from scipy import sparse

    rows = sparse.random(60, 1500, 0.01, "csr", random_state=0)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "ivis_spark"):
        small().fit(rows)
        assert not caplog.messages
        patch.setattr(predicting, "_SLOW_CELLS", 1000)
        for options in ({"n_components": 20}, {"neighbour_matrix": [[1, 2]] * 60}):
            small(**options).fit(rows)
        assert not caplog.messages
        small().fit(rows)
    assert len(caplog.messages) == 1 and "n_components=50" in caplog.text


def test_labels_in_another_order_than_the_rows_are_warned_of() -> None:
    pd = pytest.importorskip("pandas")
    frame, labels = pd.DataFrame(X, index=[f"row {i}" for i in range(40)]), pd.Series(CLASSES)
    labels.index = frame.index
    with pytest.warns(UserWarning, match=r"same index in another order.*pass labels\.loc\[rows\.index\]"):
        small().fit(frame, labels[::-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for alike in (labels, labels.reset_index(drop=True), labels.tolist()):
            warn_of_other_order(frame, alike, "labels")
        warn_of_other_order(X, labels, "labels")


def test_before_a_fit_and_on_the_class(tmp_path: Path) -> None:
    for method in (small().score_samples, small().transform):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            method(X)
    with pytest.raises(ConfigError, match=r"Ivis\(\)\.load_model\('some'\)"):
        Ivis.load_model("some")  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="folder_path"):
        Ivis().load_model()
    model = small().fit(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).embedding_, model.embedding_)
