"""How the task bodies, generators over Arrow batches, are run on executors."""

from __future__ import annotations

import functools
import sys
import zipimport
from collections.abc import Callable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import types as T

Body = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


def map_arrow(frame: DataFrame, body: Body, schema: T.StructType | str) -> DataFrame:
    """Run a task body over the Arrow batches of each partition. Lazy. Runs on: driver.

    Args:
        frame: Rows to give it.
        body: Takes an iterator of batches and yields others; pickled, so a module's function or a partial of one.
        schema: Of the batches that it yields.
    """
    # Spark looks the columns up by name, and takes a dot for a field of a struct: so they go by number.
    numbered = frame.toDF(*[f"c{place}" for place in range(len(frame.columns))])
    named = functools.partial(_with_names, body=body, names=frame.columns)
    return numbered.mapInArrow(functools.partial(_run, body=named), schema)


def _with_names(batches: Iterator[pa.RecordBatch], *, body: Body, names: list[str]) -> Iterator[pa.RecordBatch]:
    return body(pa.RecordBatch.from_arrays(batch.columns, names) for batch in batches)


def _run(batches: Iterator[pa.RecordBatch], *, body: Body) -> Iterator[pa.RecordBatch]:
    try:
        yield from body(batches)
    finally:
        _forget_zip_importers()


def _forget_zip_importers() -> None:
    """Drop the importers of zip files; the next import from one makes it again, from what zipimport knows of the file.

    Spark's workers invalidate all importers before each task, and CPython up to 3.12 then reads the directory of a zip
    once for each package imported from it: .07 to .12 s a task for pyspark.zip.
    """
    for path, importer in list(sys.path_importer_cache.items()):
        if isinstance(importer, zipimport.zipimporter):
            sys.path_importer_cache.pop(path, None)
