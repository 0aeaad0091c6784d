"""Datasets read when asked for: images, and one of one's own over SQLite."""

from __future__ import annotations

import pickle
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivis_spark.errors import ConfigError, InputError

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from ivis_spark import Ivis  # noqa: E402
from ivis_spark.data.sequence import FlattenedImageDataset, ImageDataset, IndexableDataset  # noqa: E402


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Twelve PNG files of 4 x 8 pixels; pixel values of file i are 10 i + column."""
    names = []
    for number in range(12):
        pixels = np.full((4, 8, 3), 10 * number, np.uint8) + np.arange(8, dtype=np.uint8)[:, None]
        names.append(str(tmp_path / f"{number}.png"))
        Path(names[-1]).write_bytes(tf.io.encode_png(pixels).numpy())
    return names


@pytest.mark.parametrize(("mode", "channels"), [("rgb", 3), ("rgba", 4), ("grayscale", 1)])
def test_color_modes_and_shapes(files: list[str], mode: str, channels: int) -> None:
    images = ImageDataset(files, (4, 8), color_mode=mode)
    assert images.shape == (12, 4, 8, channels)
    assert (len(images), images[0].shape, images[0].dtype) == (12, (4, 8, channels), np.uint8)
    np.testing.assert_array_equal(images[5][0, :, 0], 50 + np.arange(8))
    flat = FlattenedImageDataset(files, (4, 8), color_mode=mode)
    assert flat.shape == (12, 32 * channels)
    np.testing.assert_array_equal(flat[5], images[5].reshape(-1))
    np.testing.assert_array_equal(flat[2:4], [images[2].reshape(-1), images[3].reshape(-1)])


def test_order_of_batches_negative_numbers_and_slices(files: list[str]) -> None:
    images = ImageDataset(files, (4, 8), n_jobs=3)
    batch = images.get_batch([3, 0, 3, 11])
    assert [int(image[0, 0, 0]) for image in batch] == [30, 0, 30, 110]
    np.testing.assert_array_equal(images[-1], images[11])
    assert [int(image[0, 0, 0]) for image in images[1:4]] == [10, 20, 30]
    with pytest.raises(IndexError):
        images[12]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images))[1], images[1])


def test_resizing_types_and_preprocessing(files: list[str]) -> None:
    padded = ImageDataset(files, (8, 8), preserve_aspect_ratio=True)[5]
    assert (padded[[0, 1, 6, 7]] == 0).all()
    assert (padded[2:6] >= 50).all()
    nearest = ImageDataset(files, (2, 4), resize_method="nearest", dtype=tf.uint16)[1]
    assert nearest.dtype == np.uint16
    halved = ImageDataset(files, (4, 8), preprocessing_function=lambda image: image / 2)[4]
    np.testing.assert_allclose(halved[0, :, 0], (40 + np.arange(8)) / 2)
    with pytest.raises(ConfigError, match="color_mode='cmyk'"):
        ImageDataset(files, (4, 8), color_mode="cmyk")
    Path(files[0]).write_text("no picture")
    with pytest.raises(InputError, match=r"0\.png"):
        ImageDataset(files, (4, 8))[0]


def test_images_train_a_convolutional_and_a_dense_network(files: list[str]) -> None:
    import keras

    layers = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    cnn = keras.Sequential([keras.Input((4, 8, 3)), keras.layers.Rescaling(1 / 255), *layers])
    for data, model in ((ImageDataset(files, (4, 8)), cnn), (FlattenedImageDataset(files, (4, 8)), "szubert")):
        ivis = Ivis(model=model, k=3, epochs=2, batch_size=5, n_trees=3, verbose=0)
        assert ivis.fit_transform(data).shape == (12, 2)


class SQLiteDataset(IndexableDataset):
    """The rows of a table with columns id, a, b and c."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self.shape: Any = (self._connection.execute("SELECT COUNT(*) FROM rows").fetchone()[0], 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, idx: Any) -> Any:
        return self.get_batch([idx])[0]

    def get_batch(self, idx_seq: Any) -> Any:
        wanted = ",".join(str(idx) for idx in set(idx_seq))
        found = self._connection.execute(f"SELECT id, a, b, c FROM rows WHERE id IN ({wanted})")
        by_id = {number: values for number, *values in found}
        return [by_id[idx] for idx in idx_seq]


def test_rows_of_a_database(tmp_path: Path) -> None:
    X = np.random.default_rng(0).random((60, 3))
    connection = sqlite3.connect(tmp_path / "rows.db")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, a REAL, b REAL, c REAL)")
    connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", [(i, *row) for i, row in enumerate(X.tolist())])
    connection.commit()
    data = SQLiteDataset(str(tmp_path / "rows.db"))
    model = Ivis(k=5, epochs=2, batch_size=16, n_trees=5, verbose=0).fit(data, np.arange(60) % 2)
    np.testing.assert_allclose(model.transform(data), model.transform(X), atol=1e-6)
    assert model.score_samples(data).shape == (60, 2)
