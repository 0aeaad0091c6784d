"""The local estimator."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ivis_spark.config import Config
from ivis_spark.errors import ArtifactError, ConfigError, InputError, NotFittedError

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from scipy.sparse import csr_matrix  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from sklearn.datasets import load_digits, load_iris, make_moons  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.metrics import silhouette_score  # noqa: E402
from sklearn.model_selection import cross_val_score  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler  # noqa: E402

from ivis_spark.estimator import Ivis  # noqa: E402
from ivis_spark.estimator.settings import with_preset  # noqa: E402

IVIS_DEFAULTS = {
    "embedding_dims": 2, "k": 150, "distance": "pn", "batch_size": 128, "epochs": 1000,
    "n_epochs_without_progress": 20, "n_trees": 50, "ntrees": None, "knn_distance_metric": "angular", "search_k": -1,
    "precompute": True, "model": "szubert", "supervision_metric": "sparse_categorical_crossentropy",
    "supervision_weight": 0.5, "annoy_index_path": None, "callbacks": None, "build_index_on_disk": True,
    "neighbour_matrix": None, "verbose": 1,
}  # fmt: skip


def iris() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_iris(return_X_y=True)
    return MinMaxScaler().fit_transform(X), y


def small(**options: object) -> Ivis:
    return Ivis(**{"k": 15, "epochs": 2, "batch_size": 32, "verbose": 0, **options})


def test_parameters_are_those_of_ivis_in_its_order() -> None:
    parameters = inspect.signature(Ivis).parameters
    assert list(parameters)[: len(IVIS_DEFAULTS)] == list(IVIS_DEFAULTS)
    used = with_preset(Ivis().get_params())
    assert {name: used[name] for name in IVIS_DEFAULTS} == IVIS_DEFAULTS


def test_scikit_learn_protocol() -> None:
    model = Ivis(embedding_dims=3, k=7)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert model.set_params(k=9).k == 9
    with pytest.raises(ValueError, match=r"'kk'.*Valid parameters are: \['annoy_index_path'"):
        model.set_params(kk=1)
    X, y = iris()
    assert make_pipeline(MinMaxScaler(), small()).fit_transform(X).shape == (150, 2)
    assert make_pipeline(MinMaxScaler(), small()).fit(X, y).transform(X[:7]).shape == (7, 2)


@pytest.mark.compiled
def test_same_random_state_same_embedding() -> None:
    X, _ = iris()
    one, two, other = (small(random_state=seed).fit_transform(X) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    assert one.dtype == np.float32


def test_random_states_of_every_kind() -> None:
    X, _ = iris()
    states = (lambda: np.random.RandomState(3), lambda: np.random.default_rng(3), lambda: np.int64(3))
    for state in states:
        one, two = (small(epochs=1, random_state=state()).fit_transform(X) for _ in range(2))
        np.testing.assert_array_equal(one, two)
    shared = np.random.RandomState(3)
    one, two = (small(epochs=1, random_state=shared).fit_transform(X) for _ in range(2))
    assert not np.array_equal(one, two)
    assert not np.array_equal(*(small(epochs=1, random_state=None).fit_transform(X) for _ in range(2)))
    with pytest.raises(ConfigError, match=r"random_state=-1 is out of range: it must be between 0 and"):
        small(random_state=-1).fit(X)


def test_two_fits_at_once_are_what_each_is_alone() -> None:
    X, y = iris()

    def embed(seed: int) -> np.ndarray:
        return small(epochs=3, random_state=seed).fit_transform(X, y)

    alone = [embed(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(embed, (1, 2)))
    for one, other in zip(alone, together, strict=True):  # threads that share a core cut sums otherwise: last bits
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert np.abs(alone[0] - alone[1]).max() > 0.1


def test_numpy_numbers_are_numbers() -> None:
    X, y = iris()
    plain = {"k": 7, "epochs": 2, "batch_size": 40, "embedding_dims": 3, "learning_rate": 0.01, "margin": 2.0}
    numpy = {name: np.asarray(value)[()] for name, value in plain.items()} | {"precompute": np.True_}
    one, other = (small(**{**params, "verbose": 0}).fit_transform(X, y) for params in (plain, numpy))
    np.testing.assert_array_equal(one, other)


def test_attributes_and_further_training() -> None:
    X, _ = iris()
    model = small(warm_start=True).fit(X)
    assert len(model.loss_history_) == 2
    assert model.neighbour_matrix_.shape == (150, 15)
    np.testing.assert_allclose(model.encoder_.predict(X, verbose=0), model.transform(X), atol=1e-5)
    encoder = model.encoder_
    model.fit(X)
    assert len(model.loss_history_) == 4
    assert model.encoder_ is encoder


def test_layers_of_the_model_stand_where_ivis_has_them() -> None:
    """Its documentation takes the encoder as layer 3, and callbacks do so while it is trained."""
    import keras

    X, y = iris()
    seen = []

    class Embeds(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            seen.append(self.model.layers[3].predict(X, verbose=0))

    for labels in (None, y):
        model = small(epochs=1, callbacks=[Embeds()]).fit(X, labels)
        assert model.model_.layers[3] is model.encoder_
        np.testing.assert_allclose(seen.pop(), model.transform(X), atol=1e-5)
    assert model.model_.layers[-1].name == "supervised"


def test_labels_give_probabilities_and_missing_labels_are_allowed() -> None:
    X, y = iris()
    y = y.copy()
    y[::3] = -1
    model = small(epochs=150, n_epochs_without_progress=150, supervision_weight=0.8).fit(X, y)
    scores = model.score_samples(X)
    assert scores.shape == (150, 3)
    assert model.n_classes_ == 3
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert (scores.argmax(axis=1) == iris()[1]).mean() > 0.85


@pytest.mark.compiled
def test_save_and_load(tmp_path: Path) -> None:
    X, y = iris()
    model = small(embedding_dims=3).fit(X, y)
    folder = str(tmp_path / "model")
    model.save_model(folder)
    loaded = Ivis().load_model(folder)
    np.testing.assert_array_equal(loaded.transform(X), model.transform(X))
    np.testing.assert_array_equal(loaded.score_samples(X), model.score_samples(X))
    assert loaded.get_params() == model.get_params()
    assert loaded.loss_history_ == model.loss_history_
    assert len(loaded.fit(X, y).loss_history_) == 4
    with pytest.raises(InputError, match="overwrite=True"):
        model.save_model(folder)
    model.save_model(folder, overwrite=True)
    with pytest.raises(ArtifactError, match="no saved model"):
        Ivis().load_model(str(tmp_path))


def test_own_neighbours_and_own_network() -> None:
    import keras

    X, _ = iris()
    neighbours = (np.arange(150)[:, None] + np.arange(1, 6)) % 150
    backbone = keras.Sequential([keras.Input((4,)), keras.layers.Dense(9, activation="gelu")])
    model = small(neighbour_matrix=neighbours, model=backbone, k=10_000)
    assert model.fit_transform(X).shape == (150, 2)
    np.testing.assert_array_equal(model.neighbour_matrix_, neighbours)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones((15, 2)), r"k=15 .*n_rows - 2 = 13"),
        (np.ones(5), r"\(5,\)"),
        (np.ones((0, 5)), r"\(0, 5\)"),
        (np.array([["a"], ["b"]]), "X must hold numbers"),
        (np.where(np.eye(40, 3) == 0, 1, np.nan), r"3 of 40 rows, the first is row 0"),
        (np.where(np.eye(40, 3, -2) == 0, 1, np.inf), r"row 2"),
    ],
)
def test_rows_that_cannot_be_used(X: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small().fit(X)


def test_other_wrong_use() -> None:
    X, y = iris()
    with pytest.raises(NotFittedError, match="fit"):
        small().transform(X)
    with pytest.raises(NotFittedError, match="not fitted"):
        small().score_samples(X)
    with pytest.raises(InputError, match="149 labels for 150 rows"):
        small().fit(X, y[1:])
    with pytest.raises(InputError, match="zero-indexed"):
        small().fit(X, y + 1)
    with pytest.raises(ConfigError, match="not one of"):
        small(knn_distance_metric="nonsense").fit(X)
    with pytest.raises(ConfigError, match="epochs=0"):
        small(epochs=0).fit(X)
    with pytest.raises(InputError, match="0 to 149"):
        small(neighbour_matrix=np.full((150, 3), 150)).fit(X)
    model = small().fit(X)
    with pytest.raises(InputError, match="X has 3 features, but Ivis is expecting 4"):
        model.transform(X[:, :3])
    with pytest.raises(NotFittedError, match="classification"):
        model.score_samples(X)


def test_the_embedding_of_rows_in_memory_is_kept() -> None:
    X, _ = iris()
    model = small()
    embedded = model.fit_transform(X)
    np.testing.assert_array_equal(embedded, model.transform(X))
    np.testing.assert_array_equal(embedded, model.embedding_)
    embedded *= 0
    assert model.embedding_.any()
    assert model.fit(csr_matrix(X)).embedding_ is None


def test_settings_of_a_pipeline_and_rules_of_thumb() -> None:
    X, _ = iris()
    fast = Config(preset="fast")
    model = Ivis.from_config(fast, epochs=2, verbose=0)
    assert (model.distance, model.batch_size, model.k) == (fast.train.distance, fast.train.batch_size, 15)
    assert model.fit_transform(X).shape == (150, 2)
    assert len(model.loss_history_) == 2 and model.neighbour_matrix_.shape == (150, 15)
    alike = Ivis.from_config(Config(preset="ivis")).get_params()
    assert alike == with_preset(Ivis().get_params())
    thumb = small(k="auto", model="auto", n_epochs_without_progress="auto", epochs=1).fit(X)
    assert thumb.neighbour_matrix_.shape == (150, 15)
    assert thumb.encoder_.count_params() > 1_000_000  # of maaten


def silhouette_of_halves(Z: np.ndarray) -> float:
    """How well two clusters, the best that k-means finds, part."""
    return float(silhouette_score(Z, KMeans(2, n_init=5, random_state=0).fit_predict(Z)))


@pytest.mark.slow
def test_infonce_parts_what_is_apart_and_nothing_else() -> None:
    """Uniform noise embeds about as evenly as a uniform square; two moons stay two."""
    rng = np.random.default_rng(0)
    settings = {"verbose": 0, "epochs": 60, "batch_size": 256}
    noise = rng.random((2_000, 10))
    embedded = Ivis.from_config(Config(preset="fast"), **settings).fit_transform(noise)
    assert silhouette_of_halves(embedded) < silhouette_of_halves(rng.random((2_000, 2))) + 0.05
    X, y = make_moons(2_000, noise=0.05, random_state=0)
    moons = Ivis.from_config(Config(preset="fast"), **settings).fit_transform(MinMaxScaler().fit_transform(X))
    assert cross_val_score(KNeighborsClassifier(15), moons, y, cv=5).mean() > 0.98


@pytest.mark.slow
def test_digits_are_told_apart_better_than_by_pca() -> None:
    X, y = load_digits(return_X_y=True)
    X = X / 16
    embedding = small(epochs=120, batch_size=128, knn_distance_metric="euclidean").fit_transform(X)
    ours, pca = (
        cross_val_score(KNeighborsClassifier(15), each, y, cv=5).mean() for each in (embedding, PCA(2).fit_transform(X))
    )
    assert ours > pca + 0.03


def test_fast_makes_a_map_of_a_small_table_in_few_epochs() -> None:
    """1,797 rows, 15 times: the batch is small, so that there are steps enough."""
    X, y = load_digits(return_X_y=True)
    embeddings = Ivis(preset="fast", epochs=15, verbose=0).fit_transform(X / 16)
    assert cross_val_score(KNeighborsClassifier(15), embeddings, y).mean() >= 0.85


def test_a_collapse_is_said() -> None:
    """Rows whose differences are lost in what they have in common, and rows that do not differ."""
    X = 1 + 1e-4 * np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"collapsed.*preset='fast'"):
        Ivis(k=5, epochs=1, verbose=0).fit(X)
    with pytest.warns(UserWarning, match="all rows of X are equal"):
        Ivis(k=5, epochs=1, verbose=0).fit(np.ones((60, 4)))
