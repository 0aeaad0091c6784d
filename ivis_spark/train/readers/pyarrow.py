"""Reading by pyarrow alone, from any file system that fsspec reaches."""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ivis_spark import storage
from ivis_spark.train.dataset.blocks import TripletBlocks
from ivis_spark.train.dataset.sharding import Part, row_groups_of, too_few_row_groups
from ivis_spark.train.readers import BlockReader, RowGroup

# Row groups of all files come in any order: this many files stay open, each with its footer.
_OPEN_FILES = 64


class Reader(BlockReader):
    """Row groups as pyarrow reads them, one at a time."""

    preference = 1

    @classmethod
    def check(cls) -> None:
        """Do nothing: the package cannot be installed without pyarrow."""

    def read(self, blocks: TripletBlocks, parts: list[Part], columns: list[str], *, seed: int) -> Iterator[RowGroup]:
        """Yield the row groups of `parts`."""
        with contextlib.closing(_Files(blocks.folder)) as files:
            for name, group, kept in row_groups_of(blocks.file_blocks, blocks.group_blocks, parts, seed=seed):
                file = files.open(name)
                if group >= file.num_row_groups:
                    raise too_few_row_groups(blocks.folder, name)
                table = file.read_row_group(group, columns=columns, use_threads=False)
                yield {column: _buffers(table.column(column))[kept] for column in columns}


class _Files:
    """Parquet files of a folder, the last few of which stay open."""

    def __init__(self, folder: str) -> None:
        self._fs, self._root = storage.filesystem(folder)
        self._local = storage.local_path(folder) is not None
        self._open: collections.OrderedDict[str, tuple[pq.ParquetFile, Any]] = collections.OrderedDict()

    def open(self, name: str) -> pq.ParquetFile:
        """Return a file of the folder."""
        if name not in self._open:
            if len(self._open) == _OPEN_FILES:
                self._open.popitem(last=False)[1][1].close()
            path = storage.join(self._root, name)
            handle = pa.OSFile(path) if self._local else self._fs.open(path, "rb")
            # Elsewhere than on a disk, the columns of a row group come in few large requests.
            self._open[name] = pq.ParquetFile(handle, pre_buffer=not self._local), handle
        self._open.move_to_end(name)
        return self._open[name][0]

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1][1].close()


def _buffers(column: pa.ChunkedArray) -> list[Any]:
    """Return each value as a view of the bytes that pyarrow read; its own scalars are copies."""
    views: list[Any] = []
    for chunk in column.chunks:
        _, offsets, values = chunk.buffers()
        if len(chunk):
            size = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
            ends = np.frombuffer(offsets, size)[chunk.offset : chunk.offset + len(chunk) + 1]
            whole = memoryview(b"" if values is None else values)
            views += [whole[start:end] for start, end in itertools.pairwise(ends)]
    return views
