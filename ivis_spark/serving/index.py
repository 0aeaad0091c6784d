"""The index that a build of the neighbours leaves: search new rows in it, in any Python process, without Spark.

Only the cells nearest to the rows asked for are opened, by mmap, once; each file's digest is checked before.
"""

from __future__ import annotations

import os
import tempfile
import typing
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ivis_spark import storage
from ivis_spark.config import Metric
from ivis_spark.core.knn.index import INDEXES, CellIndex, load_index
from ivis_spark.core.knn.merge import NO_ID, merge_top_k, without_self
from ivis_spark.core.knn.metrics import Floats, Ints, Space
from ivis_spark.core.knn.quantiser import Router
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import UNREADABLE, ArtifactError, InputError
from ivis_spark.manifest import check_fields, check_record

INDEX_FILE = "index.json"
INDEX_FORMAT = 2
_REMEDY = "build the neighbours anew"
_QUERY_ROWS = 4096
_CACHE_BYTES = 1 << 30  # of open cells; the least recently used are closed first


@dataclass(frozen=True)
class _Cell:
    """An open cell: ids int64 (n,), ascending, and the index of those rows."""

    ids: Ints
    index: CellIndex
    size: int


class PartitionedIndex:
    """Balanced cells with an index each, as the stage `neighbours` published them.

    Runs on: driver, executor, or any process. Not thread-safe. Memory: the cells that were asked, up to 1 GiB of files.

    Args:
        uri: Folder with `index.json`, the router and the files of the cells.
        head: Content of `index.json`.
        router: Cells.
    """

    def __init__(self, uri: str, head: dict[str, Any], router: Router) -> None:
        self.uri, self._head, self._router = uri, head, router
        self._cells = {int(cell["cell"]): cell for cell in head["cells"]}
        self._home_rows = np.zeros(router.n_cells, dtype=np.int64)
        for number, cell in self._cells.items():
            self._home_rows[number] = cell["home_rows"]
        self._open: OrderedDict[int, _Cell] = OrderedDict()

    @classmethod
    def load(cls, uri: str) -> PartitionedIndex:
        """Open a published index; reads `index.json` and the router, and no cell yet.

        Args:
            uri: The run folder, or the folder of the index itself, local or anywhere fsspec reaches.

        Raises:
            ArtifactError: if there is no index, a file is torn or altered, or it is of a newer format.
        """
        uri = _index_folder(storage.normalise_uri(uri))
        head = storage.read_json(storage.join(uri, INDEX_FILE), read_head, remedy=_REMEDY)
        with tempfile.TemporaryDirectory(prefix="ivis-spark-router-") as folder:
            paths = [_fetch(uri, record, folder) for record in head["router"]]
            router = Router.load(os.path.dirname(paths[0]))
        if max((cell["cell"] for cell in head["cells"]), default=0) >= router.n_cells:
            raise ArtifactError(f"{uri}/{INDEX_FILE} lists cells that its router does not have; {_REMEDY}")
        return cls(uri, head, router)

    @property
    def metric(self) -> str:
        """Metric of the distances."""
        return str(self._head["metric"])

    @property
    def dims(self) -> int:
        """Features of a row."""
        return int(self._head["dims"])

    @property
    def rows(self) -> int:
        """Rows in the index."""
        return int(self._head["rows"])

    @property
    def k(self) -> int:
        """Neighbours that the build found for each of its rows."""
        return int(self._head["k"])

    @property
    def recall(self) -> float:
        """Share of the true `k` neighbours that a query finds, as estimated on the rows of the build."""
        return float(self._head["probes"]["recall"])

    @property
    def scaler(self) -> Scaler | None:
        """What the rows of the index went through before they came into it."""
        return Scaler.from_mapping(self._head["scaler"]) if self._head.get("scaler") else None

    def query(
        self,
        X: npt.NDArray[Any],
        k: int | None = None,
        *,
        scaled: bool = False,
        own: Ints | None = None,
        probes: int | None = None,
    ) -> tuple[Ints, Floats]:
        """Find the nearest rows of the index.

        Args:
            X: Numbers, shape (n, d), finite: rows as the user has them.
            k: Neighbours wanted; that of the build if left out.
            scaled: Whether X went through the scaler of the index already.
            own: int64, shape (n,): ids of the rows, to leave each itself out if it is in the index.
            probes: Most cells to search a row; what the build measured to reach its recall if left out.

        Returns:
            ids int64 (n, k) and distances float32 (n, k), nearest first, ties by id. Where the nearest cells hold too
            few rows, the next ones are searched too, so that every row gets k.

        Raises:
            InputError: if X has another width or is not finite, or k is not less than the rows of the index.
            ArtifactError: if a file of a cell is missing, torn or altered; names it.
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
                ids[part], keys[part] = self._query(rows[part], k, probes)
            else:
                ids[part], keys[part] = without_self(*self._query(rows[part], k + 1, probes), own[part], k)
        return ids, Space(self.metric).distances(keys)

    def _checked(self, X: npt.NDArray[Any], *, scaled: bool) -> Floats:
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.dims:
            raise InputError(f"rows of shape {X.shape} were given; the index wants (n, {self.dims})")
        scaler = None if scaled else self.scaler
        rows = np.ascontiguousarray(X if scaler is None else scaler.transform(X), dtype=np.float32)
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows).all(axis=1)).sum())
            raise InputError(f"{bad} of {len(rows)} rows hold NaN or infinity; fix or drop them first")
        return rows

    def _query(self, rows: Floats, k: int, probes: int | None) -> tuple[Ints, Floats]:
        """Search a block of rows: ids (n, k) and keys (n, k)."""
        asking, cells = self._probed(rows, k, probes)
        order = np.argsort(cells, kind="stable")
        asking, cells = asking[order], cells[order]
        ids, keys = np.full((len(cells), k), NO_ID, np.int64), np.full((len(cells), k), np.inf, np.float32)
        bounds = np.flatnonzero(np.diff(cells, prepend=-1))
        for start, stop in zip(bounds, np.append(bounds[1:], len(cells)), strict=True):
            cell = self._cell(int(cells[start]))
            width = min(k, len(cell.ids))
            numbers, near = cell.index.query(rows[asking[start:stop]], width)
            ids[start:stop, :width], keys[start:stop, :width] = cell.ids[numbers], near
        _, ids, keys = merge_top_k(asking, ids, keys, k)
        return ids, keys

    def _probed(self, rows: Floats, k: int, probes: int | None) -> tuple[Ints, npt.NDArray[np.int32]]:
        """Return (row, cell) pairs: the cells to search, without empty ones."""
        chosen = self._head["probes"]
        cut = float("inf") if probes is not None or chosen["cut"] is None else chosen["cut"]
        zeros = np.zeros(len(rows), np.int64)
        found, cells, _ = self._router.assign(
            rows,
            zeros,
            overlap=probes or chosen["cells"],
            cut=cut,
            as_queries=Space(self.metric).asymmetric,
            cell_rows=self._home_rows,
            least=k,
        )
        enough = np.bincount(found, weights=self._home_rows[cells], minlength=len(rows)) >= k
        if not enough.all():  # cells that share a centroid are not ranked beside each other: ask all
            short = np.flatnonzero(~enough)
            everywhere = np.fromiter(self._cells, np.int32)
            kept = enough[found]
            found = np.concatenate([found[kept], np.repeat(short, len(everywhere))])
            cells = np.concatenate([cells[kept], np.tile(everywhere, len(short))])
        filled = np.isin(cells, np.fromiter(self._cells, np.int32))
        return found[filled], cells[filled]

    def _cell(self, number: int) -> _Cell:
        """Return a cell, opened when it is first asked for."""
        if number not in self._open:
            self._open[number] = self._load_cell(self._cells[number])
            while sum(cell.size for cell in self._open.values()) > _CACHE_BYTES and len(self._open) > 1:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def _load_cell(self, record: dict[str, Any]) -> _Cell:
        files = record["files"]
        with tempfile.TemporaryDirectory(prefix="ivis-spark-cell-") as folder:  # what is open by mmap outlives it
            ids, vectors = (_fetch(self.uri, files[kind], folder) for kind in ("ids", "vectors"))
            search_k = int(self._head["search_k"])
            try:
                numbers = np.load(ids, allow_pickle=False)
                index = load_index(str(self._head["backend"]), vectors, self.metric, self.dims, search_k=search_k)
            except UNREADABLE as err:
                raise ArtifactError(f"cell {record['cell']} of {self.uri} cannot be read ({err}); {_REMEDY}") from err
        return _Cell(numbers, index, sum(int(file["bytes"]) for file in files.values()))


def read_head(value: Any) -> dict[str, Any]:
    """Return what JSON gave if it is the content of an `index.json`.

    Raises:
        ArtifactError: if it is of another format.
        ValueError: if it is none.
    """
    found = value.get("format") if isinstance(value, dict) else None
    if found != INDEX_FORMAT:
        raise ArtifactError(f"it holds an index of format {found}; this version reads {INDEX_FORMAT}: {_REMEDY}")
    numbers = {"dims": int, "rows": int, "k": int, "search_k": int}
    head = check_fields(value, backend=str, metric=str, probes=dict, router=list, cells=list, **numbers)
    if head["backend"] not in INDEXES or head["metric"] not in typing.get_args(Metric):
        raise ValueError(f"it is of backend {head['backend']!r} and metric {head['metric']!r}")
    check_fields(head["probes"], cells=int, cut=(int, float, type(None)), recall=(int, float))
    if min(head["dims"], head["rows"], head["k"], head["probes"]["cells"]) < 1:
        raise ValueError("dims, rows, k or probes is not positive")
    if head.get("scaler"):
        Scaler.from_mapping(head["scaler"])
    if sorted(check_record(record, "the index")["path"] for record in head["router"]) != Router.FILES:
        raise ValueError(f"router is not {' and '.join(Router.FILES)}")
    for cell in head["cells"]:
        read_cell(cell)
    return head


def read_cell(value: Any) -> dict[str, Any]:
    """Return the record of a cell's files. Raises ValueError if it is none."""
    cell = check_fields(value, cell=int, home_rows=int, files=dict)
    for kind in ("ids", "vectors"):
        check_record(cell["files"].get(kind), "the index")
    if cell["cell"] < 0 or cell["home_rows"] < 0:
        raise ValueError("a cell's number or rows are negative")
    return cell


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
        found = storage.digest_file(path)
    except OSError as err:
        raise ArtifactError(f"index file {source} cannot be read ({err}); {_REMEDY}") from err
    if found["sha256"] != record["sha256"]:
        raise ArtifactError(
            f"index file {source} is not what was written: {found['bytes']} bytes with sha256 {found['sha256'][:12]}, "
            f"not {record['bytes']} with {record['sha256'][:12]}; {_REMEDY}"
        )
    return path
