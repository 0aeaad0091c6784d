"""Parquet files of rows, one per task."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ivis_spark import storage
from ivis_spark.spark.rows.columns import COLUMNS, FEATURES, ID, LABEL
from ivis_spark.spark.rows.ids import HASH, PLACE

_GROUP_BYTES = 8 << 20  # of a Parquet row group: small enough that a later stage can share one file among tasks


class RowWriter:
    """Writes packed rows to one Parquet file under a name no other attempt has. Runs on: executor.

    A file of a failed or doubled attempt is not among the records that Spark returns, and the driver removes it.
    """

    def __init__(self, folder: str) -> None:
        self._uri = storage.join(folder, f"part-{uuid.uuid4().hex}.parquet")
        self._file: Any = None
        self._sink: storage.DigestedWriter | None = None
        self._writer: pq.ParquetWriter | None = None
        self.rows, self.bytes = 0, 0

    @property
    def path(self) -> str | None:
        """The file's URI, or None if no row was written."""
        return self._uri if self.rows else None

    @property
    def digest(self) -> str | None:
        """What `storage.digest_file` gives of the closed file, as JSON; None if no row was written."""
        return None if self._sink is None else json.dumps(self._sink.record)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.close()

    def write(self, columns: dict[str, pa.Array]) -> None:
        """Append columns of equal length."""
        order = [name for name in (ID, FEATURES, LABEL, COLUMNS, HASH, PLACE) if name in columns]
        batch = pa.Table.from_arrays([columns[name] for name in order], order)
        if not batch.num_rows:
            return
        if self._writer is None:
            fs, path = storage.filesystem(self._uri)
            fs.makedirs(fs._parent(path), exist_ok=True)
            self._file = fs.open(path, "wb")
            self._sink = storage.DigestedWriter(self._file)
            self._writer = pq.ParquetWriter(
                self._sink,
                batch.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                write_statistics=[ID],
            )
        self._writer.write_table(batch, row_group_size=max(1, _GROUP_BYTES * batch.num_rows // batch.nbytes))
        self.rows += batch.num_rows
        self.bytes += batch.nbytes
