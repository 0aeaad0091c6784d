"""Tables of images: files as binary, and Spark's own image source."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession

from ivis_spark.config import DataConfig
from ivis_spark.errors import InputError
from ivis_spark.spark.frames import resolve

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
