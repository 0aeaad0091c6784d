"""Images in a column, decoded on executors into flat rows of pixels."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column
from pyspark.sql import types as T
from pyspark.sql.pandas.functions import pandas_udf

from ivis_spark.config import DataConfig
from ivis_spark.errors import DependencyError, InputError

if TYPE_CHECKING:
    import pandas as pd

_MODES = {"rgb": "RGB", "rgba": "RGBA", "grayscale": "L"}
_IMAGE_FIELDS = {"height", "width", "nChannels", "data"}  # of Spark's data source `image`


def is_image(kind: T.DataType) -> bool:
    """Tell whether a column holds images: files as binary, or the rows of Spark's data source `image`."""
    if isinstance(kind, T.StructType):
        return set(kind.fieldNames()) >= _IMAGE_FIELDS
    return isinstance(kind, T.BinaryType)


def pixels(column: Column, kind: T.DataType, name: str, config: DataConfig) -> Column:
    """Return the images of a column as array<float> of height * width * channels numbers from 0 to 255, row by row.

    Lazy; images are decoded and resized (bilinear) on executors. One that cannot be decoded is null.

    Args:
        column: PNG, JPEG, BMP, GIF, ... files, or structs of Spark's data source `image`.
        kind: Its type.
        name: Its name, for messages.
        config: `image_height`, `image_width` and `image_mode`.

    Raises:
        InputError: if the size is not given.
        DependencyError: if Pillow is missing.
    """
    height, width, mode = config.image_height, config.image_width, _MODES[config.image_mode]
    if height is None or width is None:
        raise InputError(
            f"features column {name!r} is {kind.simpleString()}, read as images: set the size they are resized to "
            f"with data.image_height and data.image_width"
        )
    if importlib.util.find_spec("PIL") is None:
        raise DependencyError("tables of images need Pillow, here and on executors: pip install 'ivis_spark[image]'")
    size = (width, height)

    import pandas as pd

    def decode(images: Any) -> pd.Series:
        rows = images.to_dict("records") if hasattr(images, "to_dict") and hasattr(images, "columns") else images
        return pd.Series([_decode(image, size, mode) for image in rows], dtype=object)

    given = pd.DataFrame if isinstance(kind, T.StructType) else pd.Series
    decode.__annotations__ = {"images": given, "return": pd.Series}
    decoded: Column = pandas_udf(decode, "array<float>")(column)  # type: ignore[call-overload]
    return decoded


def _decode(image: Any, size: tuple[int, int], mode: str) -> NDArray[np.float32] | None:
    """Return the pixels of one image, float32 (height * width * channels,), or None if it is none."""
    from PIL import Image, UnidentifiedImageError

    if image is None:
        return None
    try:
        opened = _of_struct(image) if isinstance(image, dict) else Image.open(io.BytesIO(image))
        resized = opened.convert(mode).resize(size, Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, ValueError, TypeError):
        return None
    return np.asarray(resized, dtype=np.float32).reshape(-1)


def _of_struct(image: dict[str, Any]) -> Any:
    """Return the image of Spark's struct, whose pixels are in order BGR or BGRA, or gray."""
    from PIL import Image

    shape = (image["height"], image["width"], image["nChannels"])
    values = np.frombuffer(image["data"], np.uint8).reshape(shape)
    if shape[2] == 1:
        return Image.fromarray(values[:, :, 0])
    order = [2, 1, 0, 3][: shape[2]]
    return Image.fromarray(np.ascontiguousarray(values[:, :, order]))
