"""Neighbours by all features, of sampled rows of a table that is searched by its principal components.

They are found among all rows while these are projected, since only components are kept. Recall in the original space is
measured by them: what a search among components misses, and what the projection itself loses.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ivis_spark.core.knn.merge import NO_ID, merge_top_k, without_self
from ivis_spark.core.knn.metrics import Floats, Ints
from ivis_spark.core.knn.recall import Recall, recall_at_k
from ivis_spark.core.projection import is_sparse
from ivis_spark.core.scaling import Scaler
from ivis_spark.errors import UNREADABLE, ArtifactError

MOST_NEIGHBOURS = 50  # of a row; the recall of longer lists is that of their beginning
_BY_COMPONENTS = 15
_ROWS, _LEAST_ROWS, _ROW_BYTES = 500, 100, 64 << 20
CHUNK_BYTES = 32 << 20  # of rows, and of their distances, at once
# Of the squared lengths: what is left of the squared distance of two equal rows, by float32 and by float64.
_COPY_KEYS = {"float32": 1e-5, "float64": 1e-12}
_COPY_DISTANCE = 1e-2  # between the components, of variance 1, of two equal rows


def rows_to_measure(width: int) -> int:
    """Return how many rows the recall is measured on: fewer of very wide ones, which every task holds."""
    return min(_ROWS, max(_LEAST_ROWS, _ROW_BYTES // (8 * width)))


@dataclass(frozen=True, eq=False)
class NearestByFeatures:
    """The nearest rows, seen so far, of q sampled rows; the row itself is one of them.

    Attributes:
        own: Ids of the sampled rows, int64 (q,); `NO_ID` before they are seen.
        ids, keys: Nearest by all features: int64 (q, k), float32 (q, k) squared distances.
        near, near_keys: Nearest by components.
    """

    own: Ints
    ids: Ints
    keys: Floats
    near: Ints
    near_keys: Floats

    @classmethod
    def none(cls, rows: int) -> NearestByFeatures:
        """Return lists before any row was seen."""
        parts: list[Any] = [np.full(rows, NO_ID)]
        for k in (MOST_NEIGHBOURS + 1, _BY_COMPONENTS + 1):
            parts += [np.full((rows, k), NO_ID), np.full((rows, k), np.inf, np.float32)]
        return cls(*parts)

    def merge(self, other: NearestByFeatures) -> NearestByFeatures:
        """Keep the nearest of both."""
        rows = np.tile(np.arange(len(self.own)), 2)
        lists: list[Any] = []
        for ids, keys in (("ids", "keys"), ("near", "near_keys")):
            both = [np.concatenate([getattr(self, name), getattr(other, name)]) for name in (ids, keys)]
            lists += merge_top_k(rows, both[0], both[1], both[0].shape[1])[1:]
        return type(self)(np.maximum(self.own, other.own), *lists)

    def kept(self, n_rows: int) -> tuple[Recall, int]:
        """Return the recall of an exact search among components, and of how many neighbours."""
        k = max(1, min(_BY_COMPONENTS, n_rows - 1))
        near, keys = without_self(self.near, self.near_keys, self.own, _BY_COMPONENTS)
        recall = self.recall(self.own, near[:, :k], np.sqrt(keys[:, :k]), n_rows=n_rows)
        return recall or Recall.exact(n_rows), k

    @staticmethod
    def measured(k: int) -> int:
        """Return how many neighbours of lists of k are measured."""
        return min(k, MOST_NEIGHBOURS)

    def recall(self, rows: Ints, found: Ints, distances: Floats | None, *, n_rows: int) -> Recall | None:
        """Return the recall of lists, by all features; None if none of their rows was sampled.

        A row as near as the k-th counts as one of the k nearest. There may be more copies of a sampled row than are
        listed here: they are known by their distance.

        Args:
            rows: Ids of rows, int64 (m,).
            found: Their neighbours, int64 (m, k), without themselves; `NO_ID` where there are fewer.
            distances: Between components, float32 (m, k); None if they are not known.
            n_rows: Rows that the sample was drawn from.
        """
        k = self.measured(found.shape[1])
        order = np.argsort(self.own)
        place = order[np.minimum(np.searchsorted(self.own, rows, sorter=order), len(order) - 1)]
        sampled = self.own[place] == rows
        if not sampled.any():
            return None
        place, found = place[sampled], found[sampled, :k]
        ids, keys = without_self(self.ids[place], self.keys[place], self.own[place], MOST_NEIGHBOURS)
        same = found[:, :, None] == ids[:, None, :]
        found_keys = np.where(same, keys[:, None, :], np.inf).min(axis=2).astype(np.float32)
        if distances is not None:
            copies = (keys[:, k - 1 : k] == 0) & (distances[sampled, :k] <= _COPY_DISTANCE) & (found != NO_ID)
            found_keys[copies] = 0
        return recall_at_k(found_keys, keys[:, :k], n_rows=n_rows)

    def to_bytes(self) -> bytes:
        """Return the lists as an npz file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(self))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> NearestByFeatures:
        """Read what `to_bytes` gave.

        Raises:
            ArtifactError: if it is something else.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return cls(**arrays)
        except UNREADABLE as err:
            raise ArtifactError(f"the neighbours by all features cannot be read ({err}): build the rows again") from err


@dataclass(frozen=True, eq=False)
class FeatureSearch:
    """Sampled rows that are compared with all rows, a batch at a time. Sent to every task.

    Attributes:
        marks: What tells each of them from the others in the table, int64 (q,): its id, or a hash of its content.
        rows: Their features (q, d), an array or SciPy CSR.
        scaler: Scales and projects rows.
    """

    marks: Ints
    rows: Any
    scaler: Scaler

    @functools.cached_property
    def _order(self) -> Ints:
        return np.argsort(self.marks)

    @functools.cached_property
    def _queries(self) -> tuple[Any, Any, npt.NDArray[np.float64]]:
        """Scaled rows, what is taken off dense ones, so that float32 keeps their digits, and components."""
        rows, projected = self.scaler.scale(self.rows), self.scaler.transform(self.rows).astype(np.float64)
        centre = 0.0 if is_sparse(rows) else rows.mean(axis=0)
        return rows if is_sparse(rows) else (rows - centre).astype(np.float32), centre, projected

    def search(self, rows: Any, projected: Floats, marks: Ints, ids: Ints) -> NearestByFeatures:
        """Return the nearest of some rows. Runs on: executor. Memory: about 64 MiB.

        Args:
            rows: Their features (n, d).
            projected: Their components, float32 (n, c).
            marks: int64 (n,).
            ids: int64 (n,).
        """
        queries, centre, near = self._queries
        width = 4 * len(self.marks) + (0 if is_sparse(rows) else 2 * rows.shape[1])
        step, nearest = max(1, CHUNK_BYTES // (8 * width)), NearestByFeatures.none(len(self.marks))
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            here = self.scaler.scale(rows[part])
            here = here if is_sparse(here) else (here - centre).astype(np.float32)
            by_features = _nearest(queries, here, ids[part], MOST_NEIGHBOURS + 1)
            by_components = _nearest(near, projected[part].astype(np.float64), ids[part], _BY_COMPONENTS + 1)
            nearest = nearest.merge(NearestByFeatures(self._own(marks[part], ids[part]), *by_features, *by_components))
        return nearest

    def _own(self, marks: Ints, ids: Ints) -> Ints:
        own = np.full(len(self.marks), NO_ID)
        place = self._order[np.minimum(np.searchsorted(self.marks, marks, sorter=self._order), len(own) - 1)]
        here = self.marks[place] == marks
        np.maximum.at(own, place[here], ids[here])
        return own


def _nearest(queries: Any, rows: Any, ids: Ints, k: int) -> tuple[Ints, Floats]:
    """Return k of the nearest rows of each query, ids (q, k) and squared distances (q, k), in any order."""
    products = queries @ rows.T
    keys = np.asarray(products.toarray() if is_sparse(products) else products, dtype=np.float64)
    keys *= -2
    lengths = _lengths(queries)[:, None] + _lengths(rows)
    keys += lengths
    lengths *= _COPY_KEYS[str(queries.dtype)]
    keys[keys < lengths] = 0
    if keys.shape[1] < k:
        keys = np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=np.inf)
        ids = np.pad(ids, (0, keys.shape[1] - len(ids)), constant_values=NO_ID)
    places = np.argpartition(keys, k - 1, axis=1)[:, :k]
    return ids[places], np.take_along_axis(keys, places, axis=1).astype(np.float32)


def _lengths(rows: Any) -> npt.NDArray[np.float64]:
    if is_sparse(rows):
        return np.asarray(rows.multiply(rows).sum(axis=1)).ravel()
    return np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
