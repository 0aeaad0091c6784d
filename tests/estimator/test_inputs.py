"""Ivis on data and neighbours of every kind, and in memory that does not grow with the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ivis_spark.errors import InputError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.tf

from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402

from ivis_spark import Ivis  # noqa: E402
from ivis_spark.data.neighbour_retrieval import AnnoyKnnMatrix, LabeledNeighbourMap  # noqa: E402

X = np.random.default_rng(0).random((60, 4)).astype(np.float32)
Y = np.arange(60) % 3
THIRDS = (X[:, 0] * 3).astype(int)


def small(**options: object) -> Ivis:
    return Ivis(**{"k": 9, "epochs": 3, "batch_size": 20, "verbose": 0, "n_trees": 5, **options})


@pytest.mark.parametrize("shuffle_mode", [True, False, "batch"])
def test_hdf5_in_any_order(tmp_path: Path, shuffle_mode: bool | str) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        rows, labels = file.create_dataset("X", data=X), file.create_dataset("Y", data=Y[:, None])
        model = small(precompute=False).fit(rows, labels, shuffle_mode=shuffle_mode)
        assert isinstance(model.neighbour_matrix_, AnnoyKnnMatrix)
        np.testing.assert_allclose(model.transform(rows), model.transform(X), atol=1e-6)
        assert model.score_samples(rows).shape == (60, 3)


@pytest.mark.compiled
def test_sparse_and_frames_give_what_arrays_give() -> None:
    sparse = pytest.importorskip("scipy.sparse").csc_matrix(X)
    pandas = pytest.importorskip("pandas")
    neighbours = LabeledNeighbourMap(Y)
    model = small(neighbour_matrix=neighbours)
    assert model.fit(sparse).transform(sparse).shape == (60, 2)
    np.testing.assert_allclose(model.transform(sparse), model.transform(X), atol=1e-6)
    assert small().fit(sparse).neighbour_matrix_.shape == (60, 9)
    frame = pandas.DataFrame(X, columns=list("abcd"))
    np.testing.assert_array_equal(small().fit(frame, pandas.Series(Y)).transform(frame), small().fit(X, Y).transform(X))


@pytest.mark.compiled
def test_images_as_arrays_with_a_convolutional_backbone() -> None:
    images = np.random.default_rng(0).integers(0, 255, size=(40, 6, 6, 3), dtype=np.uint8)
    layers = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.GlobalMaxPooling2D()]
    cnn = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Rescaling(1 / 255), *layers])
    assert small(model=cnn).fit_transform(images).shape == (40, 2)


def test_a_missing_value_of_pandas_is_named_by_its_row() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": pandas.array([0.5, 1.5, None, 3.5] * 5, "Float64"), "b": np.arange(20.0)})
    with pytest.raises(InputError, match=r"NaN, infinity or a number too large for float32 in 5 of 20 rows, .* 2"):
        small().fit(frame)


def test_headless_pretrained_backbone_keeps_its_frozen_layers() -> None:
    base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu", trainable=False)])
    before = [weight.copy() for weight in base.get_weights()]
    small(model=base).fit(X)
    for one, two in zip(before, base.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "neighbours",
    [
        [[(i + 1) % 60] * (1 + i % 3) for i in range(60)],
        (np.arange(60)[:, None] + np.arange(3)) % 60,
        np.array([list(range(1 + i % 3)) for i in range(60)], dtype=object),
        LabeledNeighbourMap(Y),
    ],
    ids=["ragged", "array", "object array", "labels"],
)
def test_neighbours_of_any_kind(neighbours: object) -> None:
    assert small(neighbour_matrix=neighbours).fit_transform(X).shape == (60, 2)


def test_neighbours_by_label_pull_classes_together() -> None:
    """Labels say nothing about the rows but one column; only neighbours by label bring that out."""
    rows = np.random.default_rng(1).random((300, 6)).astype(np.float32)
    labels = (rows[:, 0] > 0.5).astype(int)
    options = {"epochs": 60, "neighbour_matrix": LabeledNeighbourMap(labels)}
    Z = small(**options).fit_transform(rows)
    assert KNeighborsClassifier(5).fit(Z[::2], labels[::2]).score(Z[1::2], labels[1::2]) > 0.9


def test_index_on_disk_is_used_again(tmp_path: Path) -> None:
    path = str(tmp_path / "annoy.index")
    AnnoyKnnMatrix.build(X, path, k=9, metric="euclidean", verbose=0).unload()
    stamp = Path(path).stat().st_mtime_ns
    for precompute in (True, False):
        model = small(annoy_index_path=path, knn_distance_metric="euclidean", precompute=precompute).fit(X)
        assert len(model.neighbour_matrix_) == 60
    assert Path(path).stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="60 rows and X has 50"):
        small(annoy_index_path=path, knn_distance_metric="euclidean").fit(X[:50])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        small(annoy_index_path=str(tmp_path / "nowhere")).fit(X)


def test_one_more_neighbour_than_there_are_others_is_what_ivis_allows() -> None:
    assert small(k=59).fit(X).neighbour_matrix_.shape == (60, 58)
    with pytest.raises(InputError, match="k=60"):
        small(k=60).fit(X)


def test_positional_arguments_in_ivis_order() -> None:
    model = Ivis(3, 15, "euclidean", 32, 7)
    assert (model.embedding_dims, model.k, model.distance, model.batch_size, model.epochs) == (
        3,
        15,
        "euclidean",
        32,
        7,
    )
    assert "k=15" in repr(model)


def test_grid_search_over_a_pipeline() -> None:
    pipeline = make_pipeline(small(epochs=1), KNeighborsClassifier(3))
    search = GridSearchCV(pipeline, {"ivis__k": [3, 5], "ivis__embedding_dims": [1, 2]}, cv=2).fit(X, Y)
    assert set(search.best_params_) == {"ivis__k", "ivis__embedding_dims"}


@pytest.mark.parametrize(
    ("metric", "labels", "width"),
    [
        ("binary_crossentropy", np.stack([X[:, 0] > 0.5, X[:, 1] > 0.5], axis=1), 2),
        ("categorical_crossentropy", np.eye(3)[THIRDS], 3),
        ("categorical_hinge", np.eye(3)[THIRDS], 3),
        ("squared_hinge", np.where(X[:, 0] > 0.5, 1, -1), 1),
        ("mae", X[:, 0], 1),
        ("mse", X[:, :2], 2),
        ("logcosh", X[:, 0], 1),
        ("huber", X[:, 0], 1),
        (keras.losses.MeanSquaredError(), X[:, 0], 1),
    ],
    ids=lambda value: getattr(value, "name", value) if not isinstance(value, np.ndarray) else "",
)
def test_supervision_of_every_kind_learns(metric: object, labels: np.ndarray, width: int) -> None:
    options = {"supervision_metric": metric, "supervision_weight": 0.9, "learning_rate": 0.01}
    model = small(epochs=100, n_epochs_without_progress=100, **options).fit(X, labels)
    scores = model.score_samples(X)
    assert scores.shape == (60, width)
    targets = np.asarray(labels, dtype=np.float64).reshape(60, -1)
    if targets.dtype.kind == "f" and len(np.unique(targets)) > 3:
        assert np.corrcoef(targets[:, 0], scores[:, 0])[0, 1] > 0.6
    elif width == 3:
        assert (scores.argmax(axis=1) == THIRDS).mean() > 0.7
    else:
        assert ((scores > (0.5 if targets.min() == 0 else 0)) == (targets > 0.5)).mean() > 0.85


MEMORY = """
import sys, threading, time
import h5py, numpy as np
from ivis_spark import Ivis

def used():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024

def peak_of(rows):
    peak, done = [0.0], threading.Event()
    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], used())

    before = used()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        model = Ivis(**options).fit(rows, shuffle_mode="batch")
        assert model.transform(rows).shape == (len(rows), 2)
    finally:
        done.set()
        watcher.join()
    return peak[0] - before

options = dict(k=3, n_trees=2, epochs=1, batch_size=64, precompute=False, verbose=0)
small = np.random.default_rng(0).random((200, 2000), dtype=np.float32)
Ivis(**options).fit(small).transform(small)
for path in sys.argv[1:]:
    with h5py.File(path) as file:
        print(peak_of(file["X"]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 8 MB and one of 80 MB take the same memory, within 32 MB; read whole they would differ by 72."""
    h5py = pytest.importorskip("h5py")
    # The large one first, so that what a fit leaves behind is not taken off its own.
    paths = [tmp_path / f"{rows}.h5" for rows in (10_000, 1_000)]
    for path in paths:
        rows = int(path.stem)
        with h5py.File(path, "w") as file:
            data = file.create_dataset("X", (rows, 2000), dtype="float32")
            for start in range(0, rows, 1_000):
                data[start : start + 1_000] = np.random.default_rng(start).random((1_000, 2000), dtype=np.float32)
    command = [sys.executable, "-c", MEMORY, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    large, small = (float(line) for line in done.stdout.split()[-2:])
    assert large - small < 32 and large < 110, (large, small)


LIMITED = """
import resource, sys
import h5py, numpy as np
from ivis_spark import Ivis
from ivis_spark.data.neighbour_retrieval import AnnoyKnnMatrix

def used():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmData")) << 10

class Next(list):
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, row): return [(row + 1) % self.n, (row + 2) % self.n]

class First:
    def __init__(self, rows): self.rows, self.shape = rows, (2_000, rows.shape[1])
    def __getitem__(self, row): return self.rows[row]

def use(rows, index_path):
    AnnoyKnnMatrix.build(rows, index_path, k=3, ntrees=2, verbose=0, n_jobs=2).unload()
    Y = np.arange(rows.shape[0]) % 3
    model = Ivis(neighbour_matrix=Next(len(Y)), epochs=1, batch_size=64, verbose=0)
    assert model.fit(rows, Y, shuffle_mode="batch").transform(rows).shape == (len(Y), 2)
    assert model.score_samples(rows).shape == (len(Y), 3)

path, index_path, megabytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
with h5py.File(path) as file:
    rows = file["X"]
    use(First(rows), index_path)  # loads what is loaded once, and fills the buffers
    limit = used() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        rows[: len(rows) // 5]
    except MemoryError:
        print("a fifth of the file does not fit")
    use(rows, index_path)
"""


@pytest.mark.cluster
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_file_ten_times_the_memory_that_is_left(tmp_path: Path) -> None:
    """2 GB of rows are indexed, trained on with labels, embedded and scored in 192 MiB: the system refuses more.

    About 115 of them are used, from the first second to the last.
    """
    h5py = pytest.importorskip("h5py")
    path, index, dims = tmp_path / "rows.h5", tmp_path / "annoy.index", 4_000
    rows = np.random.default_rng(0).random((1_000, dims), dtype=np.float32)
    try:
        with h5py.File(path, "w") as file:
            data = file.create_dataset("X", (126_000, dims), dtype="float32")
            for number in range(126):
                data[1_000 * number : 1_000 * (number + 1)] = np.roll(rows, number, axis=1)
        command = [sys.executable, "-c", LIMITED, str(path), str(index), "192"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2_000:]
        assert path.stat().st_size > 10 * (192 << 20)
        assert "does not fit" in done.stdout
    finally:  # pytest keeps folders of several runs
        path.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
