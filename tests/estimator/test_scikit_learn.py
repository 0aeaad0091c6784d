"""`Ivis` as a scikit-learn estimator."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivis_spark.config import Config
from ivis_spark.errors import ConfigError, InputError, NotFittedError

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf
pd = pytest.importorskip("pandas")

from processes import in_a_process  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.exceptions import NotFittedError as SklearnNotFittedError  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator  # noqa: E402

from ivis_spark.estimator import Ivis  # noqa: E402
from ivis_spark.estimator.names import names_of  # noqa: E402

# The checks that fail, each with its reason; README.md has them too.
ROUNDING = "float32 products of other batches round otherwise, by 1e-6"
INTEGERS = "integer labels are the numbers of classes, as in ivis: 0, 1, 2, ..., -1 where missing"
FRAME, LABELS = load_iris(return_X_y=True, as_frame=True)
FRAME = FRAME / FRAME.max()
NAMES = np.array(["setosa", "versicolor", "virginica"])[LABELS]


# Most of the time of a fit of few rows is spent on building the network: the checks take a small one.
CHECKED = {"k": 2, "epochs": 1, "verbose": 0, "batch_size": 16, "model": "small_networks:tiny"}


def small(**options: object) -> Ivis:
    return Ivis(**{"k": 15, "epochs": 2, "batch_size": 50, "verbose": 0, **options})


@pytest.fixture(scope="module")
def fitted() -> Ivis:
    return small().fit(FRAME, NAMES)


def all_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Ivis(**CHECKED, supervision_metric="mae")
        expected = {"check_methods_sample_order_invariance": ROUNDING}
        found = check_estimator(model, expected_failed_checks=expected, on_fail=None)
    failed = {result["check_name"]: result["exception"] for result in found if result["status"] == "failed"}
    assert not failed
    assert sum(result["status"] == "passed" for result in found) > 40


def checks_that_depend_on_labels() -> None:
    """With classes instead of values; the other checks do not look at what kind of label there is."""
    depend = {
        "check_dict_unchanged", "check_estimators_pickle", "check_estimators_dtypes", "check_fit2d_1feature",
        "check_fit_idempotent", "check_fit_score_takes_y", "check_methods_subset_invariance",
        "check_readonly_memmap_input", "check_transformer_general", "check_n_features_in_after_fitting",
    }  # fmt: skip
    expected = {"check_estimators_dtypes": INTEGERS, "check_fit2d_1feature": INTEGERS}
    model = Ivis(**CHECKED, supervision_metric="sparse_categorical_crossentropy")
    run, failed = set(), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator, check in estimator_checks_generator(model):
            name = getattr(check, "func", check).__name__
            if name in depend:
                run.add(name)
                try:
                    check(estimator)
                except Exception:  # noqa: BLE001 - which checks fail is what the test compares
                    failed.add(name)
    assert run == depend and failed <= set(expected)


@pytest.mark.slow
@pytest.mark.parametrize("checks", [all_checks, checks_that_depend_on_labels])
def test_checks_of_scikit_learn(checks: Callable[[], None]) -> None:
    in_a_process(checks)


def test_columns_go_by_name(fitted: Ivis, tmp_path: Path) -> None:
    expected = fitted.transform(FRAME)
    names = list(FRAME.columns)
    assert list(fitted.feature_names_in_) == names and fitted.n_features_in_ == 4
    fitted.save_model(str(tmp_path / "m"))
    for model in (fitted, pickle.loads(pickle.dumps(fitted)), Ivis().load_model(str(tmp_path / "m"))):
        np.testing.assert_array_equal(model.transform(FRAME[names[::-1]]), expected)
        np.testing.assert_array_equal(model.score_samples(FRAME[names[::-1]]), fitted.score_samples(FRAME))
        with pytest.raises(InputError, match=r"lacks column 'petal width \(cm\)' and has column 'width'"):
            model.transform(FRAME.rename(columns={"petal width (cm)": "width"}))
        with pytest.raises(InputError, match="has column 'more', not in the fit"):
            model.transform(FRAME.assign(more=1.0))
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            np.testing.assert_array_equal(model.transform(FRAME.to_numpy()), expected)
    with pytest.warns(UserWarning, match="fitted without feature names"):
        small().fit(FRAME.to_numpy()).transform(FRAME)
    with pytest.raises(InputError, match="names of several types"):
        small().fit(FRAME.rename(columns={"petal width (cm)": 3}))
    for method in (fitted.transform, small().fit):
        with pytest.raises(InputError, match=r"has duplicate columns, column 'sepal length \(cm\)'"):
            method(FRAME[[*names, names[0]]])


def test_output_as_frames(fitted: Ivis) -> None:
    assert list(fitted.get_feature_names_out()) == ["ivis0", "ivis1"]
    model = make_pipeline(MinMaxScaler(), small()).set_output(transform="pandas")
    found = model.fit_transform(FRAME[::-1])
    assert list(found.columns) == ["ivis0", "ivis1"] and list(found.index) == list(FRAME.index[::-1])
    assert isinstance(clone(model).fit_transform(FRAME), pd.DataFrame)


def test_not_fitted_is_an_error_of_both() -> None:
    with pytest.raises(SklearnNotFittedError) as caught:
        small().transform(FRAME)
    assert isinstance(caught.value, NotFittedError)


def test_a_second_fit_starts_again_unless_it_is_a_warm_start(tmp_path: Path) -> None:
    X = FRAME.to_numpy()
    once = small().fit(X).transform(X)
    model = small().fit(X, LABELS).fit(X)
    np.testing.assert_array_equal(model.transform(X), once)
    assert len(model.loss_history_) == 2 and model.n_classes_ is model.classes_ is None
    assert model.fit(X[:, :2]).n_features_in_ == 2
    warm = small(warm_start=True).fit(X).fit(X)
    assert len(warm.loss_history_) == 4
    warm.set_params(warm_start=False).save_model(str(tmp_path / "m"))
    assert len(Ivis().load_model(str(tmp_path / "m")).fit(X).loss_history_) == 6


def with_missing(values: np.ndarray, missing: Any) -> np.ndarray:
    labels = values.astype(object)
    labels[::5] = missing
    return labels


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        pytest.param(NAMES, ["setosa", "versicolor", "virginica"], id="text"),
        pytest.param(with_missing(NAMES, None), ["setosa", "versicolor", "virginica"], id="text and None"),
        pytest.param(pd.Series(with_missing(NAMES, pd.NA), dtype="string"), sorted(set(NAMES)), id="text and NA"),
        pytest.param(pd.Categorical(NAMES), sorted(set(NAMES)), id="categories"),
        pytest.param(NAMES == "setosa", [False, True], id="booleans"),
        pytest.param(with_missing(NAMES == "setosa", np.nan), [False, True], id="booleans and NaN"),
        pytest.param(
            np.datetime64("2026-01-30") + LABELS.to_numpy(),
            np.array(["2026-01-30", "2026-01-31", "2026-02-01"], "datetime64[D]").tolist(),
            id="dates",
        ),
        pytest.param(pd.array(with_missing(LABELS.to_numpy(), pd.NA), "Int64"), [0, 1, 2], id="integers and NA"),
        pytest.param(np.where(np.arange(150) % 5, LABELS, np.nan), [0, 1, 2], id="floats and NaN"),
    ],
)
def test_labels_of_every_kind(labels: Any, classes: list[Any], tmp_path: Path) -> None:
    model = small(epochs=60, supervision_weight=0.9, learning_rate=0.01).fit(FRAME, y=labels)
    assert model.classes_.tolist() == classes and model.n_classes_ == len(classes)
    truth = NAMES == "setosa" if len(classes) == 2 else LABELS.to_numpy()
    predicted = model.score_samples(FRAME).argmax(axis=1)
    assert (predicted == truth).mean() > 0.9
    model.save_model(str(tmp_path / "m"))
    loaded = Ivis().load_model(str(tmp_path / "m"))
    assert loaded.classes_.tolist() == classes and loaded.classes_.dtype == model.classes_.dtype


def test_names_of_several_values_to_predict_are_kept(tmp_path: Path) -> None:
    model = small(supervision_metric="mae").fit(FRAME, FRAME.iloc[:, :2])
    model.save_model(str(tmp_path / "m"))
    for each in (model, Ivis().load_model(str(tmp_path / "m"))):
        assert list(each.output_names_) == list(FRAME.columns[:2])
    assert model.fit(FRAME, LABELS).output_names_ is None


def test_labels_that_cannot_be_used() -> None:
    with pytest.raises(InputError, match="cannot be sorted together"):
        small().fit(FRAME, with_missing(NAMES, 3))
    with pytest.raises(InputError, match="cannot be sorted together"):
        small().fit(FRAME, [1, "a", "b"] * 50)
    with pytest.raises(InputError, match="no row has a label"):
        small().fit(FRAME, [None] * 150)
    with pytest.raises(InputError, match="Unknown label type"):
        small(supervision_metric="mae").fit(FRAME, NAMES)
    with pytest.raises(ConfigError, match="pass one of them"):
        small().fit(FRAME, LABELS, y=LABELS)


def test_a_preset_takes_the_place_of_defaults() -> None:
    fast = Config(preset="fast")
    model = Ivis(preset="fast", epochs=2, batch_size=50, verbose=0).fit(FRAME.to_numpy())
    by_config = Ivis.from_config(fast, epochs=2, batch_size=50, verbose=0).fit(FRAME.to_numpy())
    np.testing.assert_array_equal(model.transform(FRAME.to_numpy()), by_config.transform(FRAME.to_numpy()))
    assert model.neighbour_matrix_.shape == (150, fast.neighbours.k) and len(model.loss_history_) == 2
    assert clone(model).get_params() == model.get_params()
    with pytest.raises(ConfigError, match="preset='quick' is not one of: fast, ivis"):
        Ivis(preset="quick").fit(FRAME)


def test_columns_of_text_and_dates_are_named() -> None:
    frame = FRAME.assign(id="row", day=pd.Timestamp("2026-01-01"), kind=pd.Categorical(NAMES), flag=True)
    with pytest.raises(InputError, match="columns 'id', 'day', 'kind' of X hold text or dates: drop columns"):
        small().fit(frame)
    numbers = pd.DataFrame({"a": ["1.5", None], "b": np.array([None, 2], object), "c": pd.array([pd.NA, 1], "Int64")})
    names = names_of(numbers)
    assert names is not None and names.tolist() == ["a", "b", "c"]
