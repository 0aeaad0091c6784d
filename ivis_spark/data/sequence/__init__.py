"""Custom data: rows that are read from disk, or from any source, when training needs them."""

from ivis_spark.data.sequence.dataset import IndexableDataset
from ivis_spark.data.sequence.image import FlattenedImageDataset, ImageDataset

__all__ = ["FlattenedImageDataset", "ImageDataset", "IndexableDataset"]
