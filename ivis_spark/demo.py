"""The demonstration: scikit-learn's handwritten digits as a Parquet table like a user's."""

from __future__ import annotations

import dataclasses
import io
import logging

import pyarrow as pa
import pyarrow.parquet as pq

from ivis_spark import storage
from ivis_spark.config import Config
from ivis_spark.errors import DependencyError

log = logging.getLogger(__name__)


def write_digits(output: str, config: Config) -> tuple[str, Config]:
    """Write the 1,797 digits, 8 x 8 grey values 0 to 16, as a table with `id`, `features` and `label`.

    A table that stands is left as it is, so that a rerun finds the same input. Runs on: driver.

    Args:
        output: URI of the run folder; the table goes beside it, to `<output>-digits.parquet`.
        config: Settings of the run.

    Returns:
        The URI of the table, and the settings with its columns named.

    Raises:
        DependencyError: if scikit-learn is missing.
    """
    uri = f"{storage.normalise_uri(output)}-digits.parquet"
    named = dataclasses.replace(config, data=dataclasses.replace(config.data, id_col="id", label_col="label"))
    fs, path = storage.filesystem(uri)
    if storage.exists(fs, path):
        return uri, named
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise DependencyError(
            "the demonstration's digits come with scikit-learn: pip install 'ivis_spark[demo]'"
        ) from err
    digits = load_digits()
    table = pa.table(
        {
            "id": pa.array(range(len(digits.data)), pa.int64()),
            "features": pa.array([row.tolist() for row in digits.data.astype("float32")], pa.list_(pa.float32())),
            "label": pa.array(digits.target, pa.int32()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    fs.makedirs(fs._parent(path), exist_ok=True)
    fs.pipe_file(path, buffer.getvalue())
    log.info("wrote %d digits of %d pixels to %s", table.num_rows, digits.data.shape[1], uri)
    return uri, named
