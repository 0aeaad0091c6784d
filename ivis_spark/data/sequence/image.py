"""Images on disk as rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ivis_spark.core.threads import count_threads
from ivis_spark.data.sequence.dataset import IndexableDataset
from ivis_spark.errors import ConfigError, InputError

_CHANNELS = {"rgb": 3, "rgba": 4, "grayscale": 1}


class ImageDataset(IndexableDataset):
    """Images read from disk and resized on access, each of shape (height, width, channels).

    The model must accept images, for example a convolutional network passed to `Ivis` as `model`.

    Example:
        >>> from ivis_spark.data.sequence import ImageDataset
        >>> ImageDataset(["a.png", "b.png"], img_shape=(28, 28), color_mode="grayscale").shape
        (2, 28, 28, 1)
    """

    shape: tuple[int, ...] = ()

    def __init__(
        self,
        filepath_list: Sequence[str],
        img_shape: tuple[int, int],
        color_mode: str = "rgb",
        resize_method: str = "bilinear",
        preserve_aspect_ratio: bool = False,
        dtype: Any = tf.uint8,
        preprocessing_function: Callable[[Any], Any] | None = None,
        n_jobs: int | None = -1,
    ) -> None:
        """Set up; files are opened on access.

        Args:
            filepath_list: Paths of PNG, JPEG, BMP or GIF files.
            img_shape: Height and width that every image is resized to.
            color_mode: rgb, rgba or grayscale: 3, 4 or 1 channels.
            resize_method: area, bicubic, bilinear, gaussian, lanczos3, lanczos5, mitchellcubic or nearest.
            preserve_aspect_ratio: Pad with zeros instead of stretching.
            dtype: tf.uint8 or tf.uint16, of the pixels read.
            preprocessing_function: Called with every image after resizing.
            n_jobs: Threads that read a batch; -1 is one per core, None the caller's thread.

        Raises:
            ConfigError: if `color_mode` is not one of the three.
        """
        if color_mode not in _CHANNELS:
            raise ConfigError(f"color_mode={color_mode!r} is not one of: {', '.join(_CHANNELS)}")
        self.filepath_list = np.array(filepath_list)
        self.img_shape = img_shape
        self.channels = _CHANNELS[color_mode]
        self.resize_method = resize_method
        self.preserve_aspect_ratio = preserve_aspect_ratio
        self.dtype = dtype
        self.preprocessing_function = preprocessing_function
        self.n_jobs = n_jobs
        self.shape = (len(filepath_list), *img_shape, self.channels)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.filepath_list)

    def __getitem__(self, idx: Any) -> Any:
        """Return an image by index (negative ones count from the end), or a list of images for a slice."""
        if isinstance(idx, slice):
            return self.get_batch(range(*idx.indices(len(self))))
        image = self.resize_image(self.read_image(str(self.filepath_list[idx])))
        return np.asarray(image if self.preprocessing_function is None else self.preprocessing_function(image))

    def read_image(self, filepath: str) -> Any:
        """Return the pixels of a file, shape (h, w, channels).

        Raises: InputError: if it cannot be read or is not an image.
        """
        try:
            return tf.io.decode_png(tf.io.read_file(filepath), channels=self.channels, dtype=self.dtype)
        except tf.errors.OpError as err:
            raise InputError(f"image {filepath!r} cannot be read: {err.message}; drop it from filepath_list") from err

    def resize_image(self, img: Any) -> NDArray[Any]:
        """Return pixels resized to `img_shape`, in `dtype`."""
        if self.preserve_aspect_ratio:
            resized = tf.image.resize_with_pad(img, *self.img_shape, method=self.resize_method)
        else:
            resized = tf.image.resize(img, self.img_shape, method=self.resize_method)
        return np.asarray(tf.cast(resized, self.dtype))

    def get_batch(self, idx_seq: Iterable[int]) -> list[Any]:
        """Return images by index, read in `n_jobs` threads."""
        threads = count_threads(self.n_jobs)
        if threads == 1:
            return [self[idx] for idx in idx_seq]
        with ThreadPoolExecutor(threads) as workers:
            return list(workers.map(self.__getitem__, idx_seq))


class FlattenedImageDataset(ImageDataset):
    """Images as flat rows, which every base network accepts: shape (n, height * width * channels)."""

    def __init__(
        self,
        filepath_list: Sequence[str],
        img_shape: tuple[int, int],
        color_mode: str = "rgb",
        resize_method: str = "bilinear",
        preserve_aspect_ratio: bool = False,
        dtype: Any = tf.uint8,
        preprocessing_function: Callable[[Any], Any] | None = None,
        n_jobs: int | None = None,
    ) -> None:
        """Set up, see `ImageDataset`."""
        super().__init__(
            filepath_list,
            img_shape,
            color_mode,
            resize_method,
            preserve_aspect_ratio,
            dtype,
            preprocessing_function,
            n_jobs,
        )
        self.shape = (self.shape[0], math.prod(self.shape[1:]))

    def __getitem__(self, idx: Any) -> Any:
        """Return the pixels of one image as a vector, or of a slice as rows."""
        pixels = np.asarray(super().__getitem__(idx))
        return pixels if isinstance(idx, slice) else pixels.reshape(-1)
