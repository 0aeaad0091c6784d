"""Data of one's own: rows that are read from disk, or anywhere, when training asks for them."""

from ivis_spark.data.sequence.dataset import IndexableDataset
from ivis_spark.data.sequence.image import FlattenedImageDataset, ImageDataset

__all__ = ["FlattenedImageDataset", "ImageDataset", "IndexableDataset"]
