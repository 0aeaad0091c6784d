"""Tables of images: files as binary, and Spark's own image source."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from ivis_spark import Config, IvisEstimator, IvisModel, Pipeline
from ivis_spark.config import DataConfig
from ivis_spark.errors import InputError
from ivis_spark.spark.rows.columns import resolve

Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.spark

PIXELS = np.random.default_rng(0).integers(0, 255, size=(6, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def read(spark: SparkSession, frame: Any, **data: Any) -> np.ndarray:
    config = DataConfig(**{"image_height": 4, "image_width": 5, **data})
    rows = resolve(frame, config)
    found = rows.frame.toPandas()["features"]
    assert rows.width == len(found[0])
    return np.stack(found)


def test_files_as_binary(spark: SparkSession, folder: Path) -> None:
    frame = spark.read.format("binaryFile").load(str(folder / "*.png")).orderBy("path")
    np.testing.assert_array_equal(read(spark, frame, features_col="content"), PIXELS.reshape(6, -1))
    gray = read(spark, frame, features_col="content", image_mode="grayscale")
    expected = [np.asarray(Image.fromarray(pixels).convert("L")).reshape(-1) for pixels in PIXELS]
    np.testing.assert_array_equal(gray, expected)
    small = read(spark, frame, features_col="content", image_height=2, image_width=3, image_mode="rgba")
    assert small.shape == (6, 2 * 3 * 4)
    assert (small.reshape(6, 2, 3, 4)[..., 3] == 255).all()


def test_spark_image_source(spark: SparkSession, folder: Path) -> None:
    frame = spark.read.format("image").load(str(folder / "*.png")).orderBy("image.origin")
    np.testing.assert_array_equal(read(spark, frame, features_col="image"), PIXELS.reshape(6, -1))


def test_what_is_no_image_is_null_and_a_size_is_needed(spark: SparkSession) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(buffer, "PNG")
    frame = spark.createDataFrame([(buffer.getvalue(),), (b"none",), (None,)], "features binary")
    rows = resolve(frame, DataConfig(image_height=4, image_width=5)).frame.toPandas()["features"]
    assert [row is None for row in rows] == [False, True, True]
    with pytest.raises(InputError, match=r"data\.image_height and data\.image_width"):
        resolve(frame, DataConfig())


def stripes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return gray images of 16 x 16, uint8, with bright columns (0) or bright rows (1) anywhere, and which they are."""
    rng = np.random.default_rng(seed)
    lines = (np.arange(16) // 2 + rng.integers(0, 4, size=n)[:, None]) % 4 == 0
    kinds = rng.integers(0, 2, size=n)
    images = np.where(kinds[:, None, None] == 0, lines[:, None, :], lines[:, :, None]) * 200
    return (images + rng.integers(0, 40, size=images.shape)).astype(np.uint8), kinds


def table_of(spark: SparkSession, n: int, seed: int) -> tuple[Any, np.ndarray]:
    """Return a table of such images as files, named by number, and their kinds."""
    images, kinds = stripes(n, seed)
    rows = []
    for number, (image, kind) in enumerate(zip(images, kinds, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append((number, f"{number}.png", buffer.getvalue(), int(kind)))
    return spark.createDataFrame(rows, "id long, path string, content binary, y int").repartition(3), kinds


SETTINGS: dict[str, Any] = {
    "preset": "ivis",
    "data": {
        "id_col": "id", "label_col": "y", "features_col": "content",
        "image_height": 8, "image_width": 8, "image_mode": "grayscale",
    },
    "neighbours": {"k": 10, "recall_sample": 50},
    "triplets": {"positives_per_anchor": 2},
    "train": {
        "model": "small_networks:convolutional", "epochs": 20, "batch_size": 50, "cooldown_epochs": 0,
        "learning_rate": 0.01, "supervision_metric": "sparse_categorical_crossentropy",
    },
    "embed": {"scores_col": "scores"},
}  # fmt: skip


def accuracy(frame: Any, kinds: np.ndarray) -> float:
    rows = frame.select("id", "scores").toPandas().sort_values("id")
    return float((np.stack(rows["scores"]).argmax(axis=1) == kinds).mean())


@pytest.mark.tf
@pytest.mark.slow
def test_convolutional_network_from_a_table_of_images_to_the_scores_of_another(
    spark: SparkSession, tmp_path: Path
) -> None:
    """All stages to the embedding; then images that were not trained on, by `embed` and a saved model's `transform`."""
    for name, seed in (("train", 1), ("new", 2)):
        table_of(spark, 200, seed)[0].write.parquet(str(tmp_path / name))
    run, kinds = str(tmp_path / "run"), {"train": stripes(200, 1)[1], "new": stripes(200, 2)[1]}

    def pipeline(name: str, settings: dict[str, Any]) -> Pipeline:
        config = Config.from_mapping(settings)
        return Pipeline(run, config, get_spark=lambda: spark, input_uri=str(tmp_path / name))

    trained = pipeline("train", SETTINGS)
    assert trained.neighbours().info["rows"] == 200
    assert trained.triplets().info["dims"] == 64
    assert trained.train().info["epochs"] == 20
    trained.embed()
    embedded = spark.read.parquet(trained.run_folder.data("embeddings"))
    assert accuracy(embedded, kinds["train"]) > 0.95
    pipeline("new", {"embed": SETTINGS["embed"]}).embed()  # the model knows what its images are like
    new = spark.read.parquet(trained.run_folder.data("embeddings-new"))
    assert new.columns == ["id", "path", "y", "embedding", "scores"]
    assert accuracy(new, kinds["new"]) > 0.9
    IvisModel.from_run(run).save(str(tmp_path / "model"))
    model = IvisModel.load(str(tmp_path / "model")).setScoresCol("scores").setEmbedInvalid("null")
    frame = spark.read.parquet(str(tmp_path / "new"))
    broken = spark.createDataFrame([(999, "none", b"none", 0)], frame.schema)
    transformed = model.transform(frame.union(broken))
    assert transformed.columns == ["id", "path", "content", "y", "embedding", "scores"]
    one, two = (frame.toPandas().sort_values("id") for frame in (new, transformed))
    last, two = two.iloc[-1], two.iloc[:-1]
    assert last["id"] == 999 and last["embedding"] is None
    np.testing.assert_allclose(np.stack(one["embedding"]), np.stack(two["embedding"]), atol=1e-5)
    assert (two["content"].str.len() > 50).all()


def test_estimator_passes_the_size_of_images_on() -> None:
    size = {"image_height": 8, "image_width": 6, "image_mode": "grayscale"}
    estimator = IvisEstimator(featuresCol="content", imageHeight=8, imageWidth=6, imageMode="grayscale")
    data = estimator.config().data
    assert {name: getattr(data, name) for name in size} == size and data.features_col == "content"
