"""What outlives the process: saved, pickled and resumed models."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from ivis_spark.errors import ArtifactError, ConfigError, ExistsError, InputError, NotFittedError

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from ivis_spark import Ivis  # noqa: E402

X = np.random.default_rng(0).random((60, 4))
Y = np.arange(60) % 3


def small(**options: object) -> Ivis:
    return Ivis(**{"k": 9, "epochs": 3, "batch_size": 20, "verbose": 0, **options})


def half_loss(y_true, y_pred):
    anchor, positive, negative = tf.unstack(y_pred, num=3)
    return tf.reduce_mean(tf.nn.relu(tf.norm(anchor - positive, axis=-1) - tf.norm(anchor - negative, axis=-1) + 0.5))


def saved(model: Ivis, folder: Path) -> Ivis:
    model.save_model(str(folder / "model"))
    return Ivis(distance=model.distance).load_model(str(folder / "model"))


def pickled(model: Ivis, folder: Path) -> Ivis:
    return pickle.loads(pickle.dumps(model))


def copied(model: Ivis, folder: Path) -> Ivis:
    return copy.deepcopy(model)


def backbone() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, activation="gelu")])


ONE_HOT = np.eye(3, dtype=np.float32)[Y]


@pytest.mark.parametrize(
    ("again", "labels", "custom"),
    [
        pytest.param(saved, None, False, id="saved"),
        pytest.param(saved, Y, True, id="saved, own network and loss, classes"),
        pytest.param(saved, ONE_HOT, False, id="saved, one-hot"),
        pytest.param(pickled, Y, False, id="pickled, classes"),
        pytest.param(pickled, None, True, id="pickled, own network and loss"),
        pytest.param(copied, Y, True, id="copied, own network and loss, classes"),
    ],
)
def test_same_results_and_same_training_from_there(again, labels, custom: bool, tmp_path: Path) -> None:
    options = {"supervision_metric": "categorical_hinge"} if labels is not None and labels.ndim == 2 else {}
    options |= {"model": backbone(), "distance": half_loss} if custom else {}
    model = small(**options, warm_start=True).fit(X, labels)
    other = again(model, tmp_path)
    np.testing.assert_array_equal(other.transform(X), model.transform(X))
    assert other._get_serializable_dict() == model._get_serializable_dict()
    for one, two in zip(model.model_.optimizer.variables, other.model_.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, two)
    if labels is not None:
        np.testing.assert_array_equal(other.score_samples(X), model.score_samples(X))
    head = other.head_
    before = int(other.model_.optimizer.iterations)
    other.fit(X, labels)
    assert other.head_ is head
    assert int(other.model_.optimizer.iterations) == before + 9
    assert len(other.loss_history_) == 6
    assert other.loss_history_[3] < 1.2 * other.loss_history_[2]


def test_without_the_state_of_the_optimizer_training_would_differ(tmp_path: Path) -> None:
    """One step from the saved state equals the step that the model itself takes next, but for dropout."""
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, activation="tanh")])
    model = small(model=plain, warm_start=True).fit(X)
    other = saved(model, tmp_path)
    for each in (model, other):
        each.epochs = 1
        each.fit(X)
    np.testing.assert_allclose(other.transform(X), model.transform(X), rtol=1e-5, atol=1e-6)


def test_supervised_labels_must_fit_what_was_trained(tmp_path: Path) -> None:
    model = small(warm_start=True).fit(X, Y)
    assert model.fit(X, Y % 2).score_samples(X).shape == (60, 3)  # of which one has no rows now
    with pytest.raises(InputError, match="classes 1, 2, 3; training resumes a model of the classes 0, 1, 2"):
        model.fit(X, Y + 1)
    with pytest.raises(InputError, match="X has 3 features, but Ivis is expecting 4"):
        model.fit(X[:, :3], Y)


def test_untrained_models_are_saved_as_parameters(tmp_path: Path) -> None:
    small(k=3).save_model(str(tmp_path / "m"))
    loaded = Ivis().load_model(str(tmp_path / "m"))
    assert (loaded.k, loaded.encoder_) == (3, None)
    assert pickle.loads(pickle.dumps(small(k=4))).k == 4


def test_a_fit_that_fails_leaves_the_model_and_what_was_saved(tmp_path: Path) -> None:
    model, folder = small().fit(X, Y), str(tmp_path / "m")
    model.save_model(folder)
    before = dict(vars(model)), model.transform(X)

    def fail(epoch: int, logs: object) -> None:
        raise error

    failing = [keras.callbacks.LambdaCallback(on_epoch_end=fail)]
    for changed, error in (
        ({"k": 60}, None),
        ({"callbacks": failing}, RuntimeError("a callback's own")),
        ({"callbacks": [keras.callbacks.LambdaCallback(on_epoch_begin=fail)]}, KeyboardInterrupt()),
    ):
        with pytest.raises(InputError if error is None else type(error)):
            model.set_params(**changed).fit(X[:50])
        model.set_params(k=9, callbacks=None)
        assert dict(vars(model)) == before[0]
        np.testing.assert_array_equal(model.transform(X), before[1])
    with pytest.raises(NotFittedError, match=r"is not trained, and .* holds a trained one"):
        small().save_model(folder, overwrite=True)
    np.testing.assert_array_equal(Ivis().load_model(folder).transform(X), before[1])
    (tmp_path / "empty").mkdir()
    small().save_model(str(tmp_path / "empty"), overwrite=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".ivis_spark-run.json").touch()
    with pytest.raises(ConfigError, match=r"is a run folder.*IvisModel\.from_run"):
        Ivis().load_model(str(tmp_path / "run"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExistsError, match="is a file"):
        model.save_model(str(tmp_path / "notes.txt"), overwrite=True)


def test_a_fit_that_resumes_and_fails_leaves_the_weights_too() -> None:
    model = small(warm_start=True, preset="fast").fit(X)
    before, rate, history = model.transform(X), float(model.model_.optimizer.learning_rate), list(model.loss_history_)

    def fail(epoch: int, logs: object) -> None:
        if len(model.loss_history_) > 4:
            raise error

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_begin=fail)]
    for error in (RuntimeError("a callback's own"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            model.set_params(callbacks=callbacks).fit(X)
        kept = isinstance(error, KeyboardInterrupt)
        assert np.array_equal(model.transform(X), before) != kept
        assert kept or float(model.model_.optimizer.learning_rate) == rate
        assert (len(model.loss_history_) == 5, model.embedding_ is None) == (kept, kept)
    assert history == model.loss_history_[:3]


def test_existing_folders_torn_files_and_unknown_losses(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "m"
    model = small(distance=half_loss).fit(X)
    model.save_model(str(folder), save_format="tf")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save_model(str(folder))
    with pytest.raises(ExistsError):
        model.save_model(str(folder))
    model.save_model(str(folder), overwrite=True)
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    with pytest.raises(ConfigError, match="distance='half_loss' is not one of"):
        Ivis().load_model(str(folder))
    (folder / "optimizer.npz").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"optimizer\.npz"):
        Ivis(distance=half_loss).load_model(str(folder))


def test_paths_are_what_a_shell_takes_them_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    small(k=3).save_model("~/m")
    assert Ivis().load_model("~/m").k == 3 and [path.name for path in tmp_path.iterdir()] == ["m"]
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is a file, not a folder"):
        Ivis().load_model("~/notes.txt")
    with pytest.raises(ConfigError, match="save_model needs folder_path"):
        small().save_model("", overwrite=True)


def test_failed_save_leaves_what_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small().fit(X)
    model.save_model(str(tmp_path / "m"))

    def fail(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("numpy.savez", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_model(str(tmp_path / "m"), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert Ivis().load_model(str(tmp_path / "m")).transform(X).shape == (60, 2)
