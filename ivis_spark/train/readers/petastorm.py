"""Reading by Petastorm: the only file that knows it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from ivis_spark import storage
from ivis_spark.errors import DependencyError
from ivis_spark.train.dataset.blocks import TripletBlocks
from ivis_spark.train.dataset.sharding import Part, too_few_row_groups, whole_and_cut
from ivis_spark.train.readers import BlockReader, RowGroup


class Reader(BlockReader):
    """Row groups as Petastorm's batch reader gives them; before 0.13 it shuffles them in another order."""

    preference = 2

    @classmethod
    def check(cls) -> None:
        """Check that Petastorm is installed with packages it knows."""
        _petastorm()

    def read(self, blocks: TripletBlocks, parts: list[Part], columns: list[str], *, seed: int) -> Iterator[RowGroup]:
        """Yield the row groups of `parts`."""
        whole, cut = whole_and_cut(blocks.file_blocks, blocks.group_blocks, parts)
        with _url(blocks.folder) as folder:
            for name, shard, shards, kept in cut:
                options = {"cur_shard": shard, "shard_count": shards, "shuffle_row_groups": False}
                with _open_reader(folder, [name], columns, **options) as reader:
                    for group in reader:
                        yield {column: list(getattr(group, column))[kept] for column in columns}
            if whole:
                with _open_reader(folder, whole, columns, shuffle_row_groups=True, seed=seed) as reader:
                    for group in reader:
                        yield {column: list(getattr(group, column)) for column in columns}


@contextlib.contextmanager
def _open_reader(folder: str, names: list[str], columns: list[str], **options: Any) -> Iterator[Any]:
    """Open a Petastorm reader for one pass. Petastorm takes seed 0 for no seed."""
    make_batch_reader = _petastorm()
    from petastorm import reader as readers
    from petastorm.errors import NoDataAvailableError

    # A reader without threads queues four row groups at a time, and sleeps 100 ms whenever it finds the queue empty:
    # with small blocks about five times per epoch. So the row groups of a whole epoch are queued at once.
    usual, readers._VENTILATE_EXTRA_ROWGROUPS = readers._VENTILATE_EXTRA_ROWGROUPS, sys.maxsize >> 1
    try:
        reader = make_batch_reader(
            [storage.join(folder, name) for name in names],
            schema_fields=[f"^{name}$" for name in columns],
            # Reads in the calling thread. Petastorm's own thread pool now and then ends an epoch without its last row
            # group (0.13.1), and orders the others by chance.
            reader_pool_type="dummy",
            num_epochs=1,
            hdfs_driver="libhdfs",
            **options,
        )
    except NoDataAvailableError as err:
        raise too_few_row_groups(folder, names[0]) from err
    finally:
        readers._VENTILATE_EXTRA_ROWGROUPS = usual  # other readers of this process are not ours
    try:
        yield reader
    finally:
        reader.stop()
        reader.join()


@contextlib.contextmanager
def _url(uri: str) -> Iterator[str]:
    """Yield a URI that Petastorm takes.

    Databricks' `dbfs:/` names a mounted folder and has no host; `#`, `?` and `;` in a path end it for Petastorm.
    """
    path = storage.local_path(uri)
    if path is None or not re.search("[#?;]", path):
        yield uri if path is None else f"file://{path}"
        return
    with tempfile.TemporaryDirectory(prefix="ivis-spark-") as folder:
        os.symlink(path, os.path.join(folder, "blocks"))
        yield f"file://{folder}/blocks"


def _petastorm() -> Any:
    # Petastorm warns of its own use of pyarrow, and that these files are not its own: nothing a user can act on. Its
    # threads warn too, so the filter has to stay.
    warnings.filterwarnings("ignore", module=r"petastorm\b")
    logging.getLogger("petastorm").setLevel(logging.ERROR)
    try:
        from petastorm import make_batch_reader
    except (ImportError, AttributeError) as err:
        raise DependencyError(
            f"Petastorm cannot be used ({err}): pip install 'ivis_spark[classic]' installs it with the pyarrow (14), "
            "NumPy (1) and setuptools (below 70) it needs, or read with train.reader=pyarrow"
        ) from err
    return make_batch_reader
