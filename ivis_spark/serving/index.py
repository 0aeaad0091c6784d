"""The published index of the neighbours: searches new rows in any Python process, without Spark.

A row is searched in its primary region, of whose file only the leaves near the row are read, and checked.
"""

from __future__ import annotations

import os
import tempfile
import typing
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ivis_spark import storage
from ivis_spark.config import Metric
from ivis_spark.config.checks import AUTO, is_import_name, module_names
from ivis_spark.core.knn import indexes
from ivis_spark.core.knn.indexes import RegionIndex, load_index
from ivis_spark.core.knn.leaves import Leaf
from ivis_spark.core.knn.merge import NO_ID, merge_top_k, without_self
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.regions import REBUILD, Regions
from ivis_spark.core.projection import is_sparse
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import UNREADABLE, ArtifactError, InputError
from ivis_spark.manifest import check_fields, check_record

INDEX_FILE = "index.json"
INDEX_FORMAT = 5
_QUERY_ROWS = 4096
_NO_NUMBER = 2**62  # no number of an index is as large
_CACHE_BYTES = 256 << 20  # of leaves that were read; the least recently used are dropped first
_OPEN_REGIONS = 256  # whose heads are kept, of at most 2 MB each


class PartitionedIndex:
    """Regions with one index each, as published by the stage `neighbours`.

    Runs on: driver, executor, or any process. Not thread-safe. Memory: the leaves that were read, up to 256 MiB; of an
    Annoy index the regions that were queried, by mmap.

    Args:
        uri: Folder with `index.json`, the quantiser and the files of the regions.
        head: Content of `index.json`.
        regions: The quantiser.
        scaler: What the rows of the index went through before they came into it: scaling, projection.
        kind: The index library of the regions.

    Example:
        >>> import numpy as np
        >>> from ivis_spark.serving.index import PartitionedIndex
        >>> index = PartitionedIndex.load("cells-run")
        >>> ids, distances = index.query(np.zeros((2, 4)), k=3)
        >>> ids.shape, distances.shape
        ((2, 3), (2, 3))
    """

    def __init__(
        self, uri: str, head: dict[str, Any], regions: Regions, scaler: Scaler | None, kind: type[RegionIndex]
    ) -> None:
        self.uri, self.regions, self.scaler, self._head, self._kind = uri, regions, scaler, head, kind
        self._records = {int(record["region"]): record for record in head["regions"]}
        self._rows = np.zeros(len(regions), np.int64)
        for number, record in self._records.items():
            self._rows[number] = record["rows"]
        self._open: OrderedDict[int, RegionIndex] = OrderedDict()
        self._leaves: OrderedDict[tuple[int, int], Leaf] = OrderedDict()
        self._bytes = 0

    @classmethod
    def load(cls, uri: str, *, backend: str = AUTO) -> PartitionedIndex:
        """Open a published index; reads `index.json`, the quantiser and the scaler, and no region yet.

        Args:
            uri: The run folder, or the folder of the index itself, local or anywhere fsspec reaches.
            backend: `neighbours.backend` of the build. Needed only if it is your own class: code is never imported
                because a file names it.

        Raises:
            ArtifactError: if there is no index, a file is corrupt or modified, or it has another format.
        """
        uri = _index_folder(storage.normalise_uri(uri))
        head = storage.read_json(storage.join(uri, INDEX_FILE), read_head, remedy=REBUILD)
        with tempfile.TemporaryDirectory(prefix="ivis-spark-regions-") as folder:
            paths = [_fetch(uri, record, folder) for record in head["quantiser"]]
            regions = Regions.load(os.path.dirname(paths[0]))
            saved = _fetch(uri, head["scaler"], folder) if head.get("scaler") else None
            scaler = None if saved is None else storage.read_bytes(saved, Scaler.from_bytes)
        if max((record["region"] for record in head["regions"]), default=0) >= len(regions):
            raise ArtifactError(f"{uri}/{INDEX_FILE} lists regions that are not in its quantiser; {REBUILD}")
        if (listed := sum(record["home"] for record in head["regions"])) != head["rows"]:
            raise ArtifactError(f"{uri}/{INDEX_FILE} lists regions of {listed} rows, not {head['rows']}; {REBUILD}")
        return cls(uri, head, regions, scaler, load_index(_checked_backend(uri, head["backend"], backend)))

    @property
    def metric(self) -> str:
        """Metric of the distances."""
        return str(self._head["metric"])

    @property
    def dims(self) -> int:
        """Features of a row, as the user has it."""
        return self._dims if self.scaler is None else self.scaler.n_inputs

    @property
    def _dims(self) -> int:
        """Numbers of a row of the index: features, or components."""
        return int(self._head["dims"])

    @property
    def rows(self) -> int:
        """Rows in the index."""
        return int(self._head["rows"])

    @property
    def k(self) -> int:
        """Neighbours per row of the build."""
        return int(self._head["k"])

    @property
    def recall(self) -> float:
        """Share of the true `k` neighbours found for held-out rows; queries use the same effort."""
        return float(self._head["recall"])

    def transform(self, X: Any) -> Floats:
        """Return rows, shape (n, d), as they are in the index: scaled and projected, float32.

        Raises:
            InputError: if they have another width or are not finite.
        """
        return self._checked(X, scaled=False)

    def query(
        self, X: Any, k: int | None = None, *, scaled: bool = False, own: Ints | None = None, exact: bool = False
    ) -> tuple[Ints, Floats]:
        """Find the nearest rows of the index.

        Args:
            X: Numbers, shape (n, d), finite: rows as the user has them, an array or a SciPy CSR matrix.
            k: Neighbours per row; by default as many as the build has.
            scaled: Whether X went through `transform`, or the scaler of the index, already.
            own: int64, shape (n,): ids of the rows, to exclude each row itself if it is in the index.
            exact: Whether to compare with every row of the index, which may be slow.

        Returns:
            ids int64 (n, k) and distances float32 (n, k), nearest first, ties by id. If a region holds too few rows,
            others are searched too, so that every row gets k.

        Raises:
            InputError: if X has another width or is not finite, or k is not less than the rows of the index.
            ArtifactError: if a file of a region is missing, corrupt or modified; names it.
        """
        k = self.k if k is None else k
        most = self.rows if own is None else self.rows - 1
        if not 1 <= k <= most:
            raise InputError(f"k={k} is out of range: the index has {self.rows} rows, so k must be 1 to {most}")
        rows = self._checked(X, scaled=scaled)
        ids, keys = np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32)
        for start in range(0, len(rows), _QUERY_ROWS):
            part = slice(start, start + _QUERY_ROWS)
            if own is None:
                ids[part], keys[part] = self._query(rows[part], k, exact)
            else:
                ids[part], keys[part] = without_self(*self._query(rows[part], k + 1, exact), own[part], k)
        return ids, Space(self.metric).distances(keys)

    def primary(self, rows: Floats) -> Ints:
        """Return int64 (n,): the region in which a query looks for the neighbours of each row that `transform` gave."""
        return self.regions.primary(self._checked(rows, scaled=True), np.zeros(len(rows), np.int64))

    def _checked(self, X: Any, *, scaled: bool) -> Floats:
        scaler = None if scaled else self.scaler
        X = X if is_sparse(X) and scaler is not None else np.asarray(X.toarray() if is_sparse(X) else X)
        width = self._dims if scaler is None else scaler.n_inputs
        if X.ndim != 2 or X.shape[1] != width:
            raise InputError(f"X has shape {X.shape}; the index needs (n, {width})")
        rows = np.ascontiguousarray(X if scaler is None else scaler.transform(X), dtype=np.float32)
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows).all(axis=1)).sum())
            raise InputError(f"{bad} of {len(rows)} rows hold NaN or infinity; fix or drop them first")
        return rows

    def _query(self, rows: Floats, k: int, exact: bool) -> tuple[Ints, Floats]:
        """Search a block of rows: ids (n, k) and keys (n, k)."""
        primary = self.regions.primary(rows, np.zeros(len(rows), np.int64))
        # Regions share the rows at their borders, so that only all of them hold k different rows for sure.
        everywhere = np.full(len(rows), exact) | (self._rows[primary] < k)
        ids, keys = np.full((len(rows), k), NO_ID, np.int64), np.full((len(rows), k), np.inf, np.float32)
        for number in sorted(self._records) if everywhere.any() else np.unique(primary).tolist():
            asking = np.flatnonzero(everywhere | (primary == number))
            if not len(asking):
                continue
            index, width = self._region(number), min(k, int(self._rows[number]))
            effort = self._records[number]["effort"]
            effort = index.efforts[-1] if exact or effort is None else effort
            found = index.query(rows[asking], width, effort)
            if everywhere.any():  # one region after the other: a list of each at once would be too many
                found = _merged((ids[asking], keys[asking]), found, k)
            ids[asking, : found[0].shape[1]], keys[asking, : found[1].shape[1]] = found
        return ids, keys

    def _region(self, number: int) -> RegionIndex:
        """Return a region's index, opened on first access."""
        if number not in self._open:
            if number not in self._records:
                raise ArtifactError(f"{self.uri}/{INDEX_FILE} has no region {number}; {REBUILD}")
            files = _Files(self, self._records[number])
            try:
                index = self._kind.load(files, self.metric, self._dims)
            except UNREADABLE as err:
                raise ArtifactError(f"index file {files.names} cannot be read ({err}); {REBUILD}") from err
            self._open[number] = index
            while len(self._open) > _OPEN_REGIONS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def kept_leaf(self, key: tuple[int, int], read: Callable[[], Leaf]) -> Leaf:
        """Return a leaf of a region, read unless it was read lately."""
        if key not in self._leaves:
            self._leaves[key] = read()
            self._bytes += sum(array.nbytes for array in self._leaves[key])
            while self._bytes > _CACHE_BYTES and len(self._leaves) > 1:
                self._bytes -= sum(array.nbytes for array in self._leaves.popitem(last=False)[1])
        self._leaves.move_to_end(key)
        return self._leaves[key]


def _merged(lists: tuple[Ints, Floats], found: tuple[Ints, Floats], k: int) -> tuple[Ints, Floats]:
    """Merge two lists of each row into one of k."""
    rows, room = len(lists[0]), ((0, 0), (0, k - found[0].shape[1]))
    ids = np.concatenate([lists[0], np.pad(found[0], room, constant_values=NO_ID)])
    keys = np.concatenate([lists[1], np.pad(found[1], room, constant_values=np.inf)])
    return merge_top_k(np.tile(np.arange(rows), 2), ids, keys, k)[1:]


class _Files:
    """The files of one region, as `core.knn.indexes.RegionFiles`."""

    def __init__(self, index: PartitionedIndex, record: dict[str, Any]) -> None:
        self._index, self._region, self._files = index, int(record["region"]), record["files"]

    @property
    def names(self) -> str:
        """URIs of the files."""
        return ", ".join(storage.join(self._index.uri, file["path"]) for file in self._files.values())

    @contextmanager
    def local(self, suffix: str) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="ivis-spark-region-") as folder:
            yield _fetch(self._index.uri, self._files[suffix], folder)

    def part(self, suffix: str, start: int, stop: int) -> bytes:
        source = storage.join(self._index.uri, self._files[suffix]["path"])
        try:
            path = storage.local_path(source)
            if path is None:
                fs, remote = storage.filesystem(source)
                return bytes(fs.cat_file(remote, start=start, end=stop))
            with open(path, "rb") as file:
                return os.pread(file.fileno(), stop - start, start)
        except OSError as err:
            raise ArtifactError(f"index file {source} cannot be read ({err}); {REBUILD}") from err

    def leaf(self, number: int, read: Callable[[], Leaf]) -> Leaf:
        try:
            return self._index.kept_leaf((self._region, number), read)
        except ValueError as err:
            raise ArtifactError(f"index file {self.names} cannot be read ({err}); {REBUILD}") from err


def read_head(value: Any) -> dict[str, Any]:
    """Return what JSON gave if it is the content of an `index.json`.

    Raises:
        ArtifactError: if it is of another format.
        ValueError: if it is none.
    """
    version = value.get("format") if isinstance(value, dict) else None
    if version != INDEX_FORMAT:
        raise ArtifactError(f"it holds an index of format {version}; this version reads {INDEX_FORMAT}: {REBUILD}")
    head = check_fields(
        value, backend=str, metric=str, quantiser=list, regions=list, dims=int, rows=int, k=int, recall=(int, float)
    )
    ours = head["backend"] in module_names(indexes.__name__)
    if not (ours or is_import_name(head["backend"])) or head["metric"] not in typing.get_args(Metric):
        raise ValueError(f"it is of backend {head['backend']!r} and metric {head['metric']!r}")
    if not all(1 <= head[name] < _NO_NUMBER for name in ("dims", "rows", "k")):
        raise ValueError("dims, rows or k is out of range")
    if head.get("scaler"):
        check_record(head["scaler"], "the index")
    if sorted(check_record(record, "the index")["path"] for record in head["quantiser"]) != sorted(Regions.FILES):
        raise ValueError(f"quantiser is not {' and '.join(Regions.FILES)}")
    for value in head["regions"]:
        record = check_fields(value, region=int, rows=int, home=int, effort=(int, float, type(None)), files=dict)
        for file in record["files"].values():
            check_record(file, "the index")
        numbers = (record["region"] + 1, record["rows"], record["home"] + 1, record["effort"] or 1)
        if not all(0 < number < _NO_NUMBER for number in numbers) or not record["files"]:
            raise ValueError("a region has no number, rows or files")
    return head


def _checked_backend(uri: str, written: str, named: str) -> str:
    """Return the index library that an index names, if it is ours or the caller names it too."""
    if written in module_names(indexes.__name__) or written == named:
        return written
    raise ArtifactError(
        f"{uri}/{INDEX_FILE} needs the index library {written!r}, which is imported only if you name it too: set "
        f"neighbours.backend={written}, or pass backend={written!r}"
    )


def _index_folder(uri: str) -> str:
    """Return the folder of the index, given it or its run."""
    run = storage.RunFolder(uri)
    manifest = run.manifest("neighbours")
    for folder in [uri] if manifest is None else [run.uri(manifest, "index")]:
        fs, path = storage.filesystem(storage.join(folder, INDEX_FILE))
        if storage.exists(fs, path):
            return folder
    raise ArtifactError(f"{uri} holds no index; build it first: ivis-spark neighbours --input ... --output ...")


def _fetch(uri: str, record: dict[str, Any], folder: str) -> str:
    """Return the local path of a file of the index, copied to `folder` if need be, after checking its digest."""
    source = storage.join(uri, record["path"])
    fs, remote = storage.filesystem(source)
    path = storage.local_path(source)
    try:
        if path is None:
            path = os.path.join(folder, record["path"])
            fs.get_file(remote, path)
        digest = storage.digest_file(path)
    except OSError as err:
        raise ArtifactError(f"index file {source} cannot be read ({err}); {REBUILD}") from err
    if digest["sha256"] != record["sha256"]:
        raise ArtifactError(
            f"index file {source} is not what was written: {digest['bytes']} bytes with sha256 "
            f"{digest['sha256'][:12]}, not {record['bytes']} with {record['sha256'][:12]}; {REBUILD}"
        )
    return path
