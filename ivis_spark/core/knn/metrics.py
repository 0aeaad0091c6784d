"""The five metrics: how rows are prepared, compared, ranked and routed. The one place that knows them.

Distances are those of Annoy: euclidean; angular = sqrt(2 - 2 cos), with cos = 0 where a row is all zeros; manhattan;
hamming = number of features that differ after binarising at > 0.5; dot = the dot product itself, largest first.

Inside the package rows are compared by `keys`, float32, smaller is nearer: the squared distance for euclidean and
angular, the distance for manhattan and hamming, the negated product for dot.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_EPSILON = np.finfo(np.float32).eps
_SYMMETRIC_DIMS = 48  # with fewer, the plain product is as fast
_SYMMETRIC_BYTES = 160 << 20
_CENTRE_ROWS = 64  # sampled for the centre, which need not be exact
_GATHER_BYTES = 4 << 20  # about what a core's second-level cache holds


class Space:
    """A metric. Runs on: driver and executor; holds no data and is cheap to make.

    Args:
        metric: `euclidean`, `angular`, `manhattan`, `hamming` or `dot`.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def prepare(self, X: npt.NDArray[Any]) -> Floats:
        """Return the rows as the other methods want them: float32, contiguous; on the sphere or binary if need be.

        Args:
            X: Any numeric type, shape (n, d).
        """
        if self.metric == "hamming":
            return np.ascontiguousarray(X > 0.5, dtype=np.float32)
        rows = np.ascontiguousarray(X, dtype=np.float32)
        if self.metric != "angular":
            return rows
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        return (rows / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)

    def target(self, X: Floats) -> Target:
        """Make prepared rows ready to be compared with many queries."""
        return Target(self, X)

    def pair_keys(self, Q: Floats, X: Floats, positions: Ints) -> Floats:
        """Return the keys of given pairs, computed from differences and so free of cancellation.

        Args:
            Q: Prepared queries, shape (q, d).
            X: Prepared rows, shape (n, d).
            positions: Shape (q, c): rows of X to compare query i with.

        Returns:
            float32, shape (q, c). The same pair gives the same bits whatever stands around it.
        """
        keys = np.empty(positions.shape, dtype=np.float32)
        step = max(1, _GATHER_BYTES // max(1, 4 * positions.shape[1] * X.shape[1]))
        room = np.empty((min(step, len(Q)), positions.shape[1], X.shape[1]), dtype=np.float32)
        for start in range(0, len(Q), step):
            part = slice(start, start + step)
            own = Q[part, None, :]
            # Without a mode that cannot fail, `take` would fill another array first.
            others = np.take(X, positions[part], axis=0, out=room[: len(own)], mode="clip")
            if self.metric == "dot":
                keys[part] = -np.einsum("qcd,qcd->qc", others, np.broadcast_to(own, others.shape))
                continue
            others -= own
            if self.metric == "manhattan":
                keys[part] = np.abs(others, out=others).sum(axis=2)
            else:
                keys[part] = np.einsum("qcd,qcd->qc", others, others)
        if self.metric == "angular":
            empty_rows, empty_queries = ~X.any(axis=1), ~Q.any(axis=1)
            keys[empty_queries[:, None] | empty_rows[positions]] = 2.0
        return keys

    def distances(self, keys: Floats) -> Floats:
        """Return the distances, as Annoy defines them, that belong to `keys`."""
        if self.metric in ("euclidean", "angular"):
            return np.sqrt(np.maximum(keys, 0))
        return -keys if self.metric == "dot" else keys

    def keys_of(self, distances: Floats) -> Floats:
        """Return the keys that belong to `distances`: what `distances` undoes."""
        if self.metric in ("euclidean", "angular"):
            return distances * distances
        return -distances if self.metric == "dot" else distances

    def norm_bound(self, X: Floats) -> float:
        """Return what `route_rows` needs to lift rows for dot: the largest norm among prepared rows; else 0."""
        return float(np.sqrt(np.einsum("ij,ij->i", X, X).max())) if self.metric == "dot" and len(X) else 0.0

    @property
    def asymmetric(self) -> bool:
        """Whether a row is routed to one place as data and to another as query."""
        return self.metric == "dot"

    def route_rows(self, X: Floats, norm_bound: float) -> Floats:
        """Return prepared rows in the space that cells are laid out in, where nearer means likelier a neighbour.

        For dot that is the sphere of radius `norm_bound`, reached by one more coordinate (Bachrach et al., RecSys
        2014): there the largest product and the smallest distance are the same. Longer rows are pulled onto it.
        """
        if self.metric != "dot":
            return X
        squared = np.einsum("ij,ij->i", X, X)
        lift = np.sqrt(np.maximum(norm_bound * norm_bound - squared, 0))
        return np.concatenate([X, lift[:, None].astype(np.float32)], axis=1)

    def route_queries(self, X: Floats, norm_bound: float) -> Floats:
        """Return prepared queries in the space of `route_rows`: for dot scaled to the sphere, with no lift."""
        if self.metric != "dot":
            return X
        norms = np.sqrt(np.einsum("ij,ij->i", X, X))
        scaled = X * (norm_bound / np.where(norms > 0, norms, 1))[:, None]
        return np.concatenate([scaled, np.zeros((len(X), 1))], axis=1).astype(np.float32)


class Target:
    """Prepared rows with what makes comparing them to blocks of queries one matrix product."""

    def __init__(self, space: Space, X: Floats) -> None:
        self.space, self.rows = space, X
        if space.metric == "manhattan":
            self._manhattan_columns = np.ascontiguousarray(X.T)
            return
        # Centred, |x|^2 is no larger than the distances themselves, so that |x|^2 - 2 qx cancels little. The median,
        # because one far row would pull a mean away from all others.
        centred = space.metric in ("euclidean", "hamming") and len(X) > 0
        few = X[:: max(1, len(X) // _CENTRE_ROWS)]
        self._centre = np.median(few, axis=0).astype(np.float32) if centred else None
        self._shifted = X if self._centre is None else X - self._centre
        if space.metric == "angular":
            self._last = np.ones(len(X), dtype=np.float32)
        elif space.metric == "dot":
            self._last = np.zeros(len(X), dtype=np.float32)
        else:
            self._last = np.einsum("ij,ij->i", self._shifted, self._shifted)
        self._scale = np.float32(-1 if space.metric == "dot" else -2)
        self._columns: Floats | None = None

    def rank_keys(self, Q: Floats) -> Floats:
        """Return float32 (q, n) that orders the rows of each query as their keys do, within rounding."""
        if self.space.metric == "manhattan":
            return _manhattan(Q, self._manhattan_columns)
        if self._columns is None:  # |x|^2 rides along as one more feature: no pass over the product is needed for it
            self._columns = np.concatenate([self._scale * self._shifted, self._last[:, None]], axis=1).T
        longer = np.empty((len(Q), Q.shape[1] + 1), dtype=np.float32)
        np.subtract(Q, np.float32(0) if self._centre is None else self._centre, out=longer[:, :-1])
        longer[:, -1] = 1
        return np.asarray(longer @ self._columns)

    def rank_keys_of_all(self, step: int) -> Iterator[Floats]:
        """Yield `rank_keys` of the rows themselves, `step` rows at a time.

        Where it pays, the product of the rows with themselves is made at once: BLAS then computes half of it.
        """
        n, dims = self.rows.shape
        if self.space.metric == "manhattan" or dims < _SYMMETRIC_DIMS or 4 * n * n > _SYMMETRIC_BYTES:
            for start in range(0, n, step):
                yield self.rank_keys(self.rows[start : start + step])
            return
        product = self._shifted @ self._shifted.T
        for start in range(0, n, step):
            part = product[start : start + step]
            part *= self._scale
            part += self._last
            yield part

    def squared(self, Q: Floats) -> Floats:
        """Return float32 (q, n): squared euclidean distances, within rounding, none negative."""
        shifted = Q if self._centre is None else Q - self._centre
        keys = self.rank_keys(Q) + np.einsum("ij,ij->i", shifted, shifted)[:, None]
        return np.asarray(np.maximum(keys, 0))

    def slack(self, Q: Floats, keys: Floats) -> Floats:
        """Return float32 like `keys`, shape (q, c): how far they may be from those of `pair_keys`, by rounding.

        For keys of `squared`, or of `rank_keys` under manhattan.
        """
        scale = _EPSILON * np.float32(8 + 2 * self.rows.shape[1] ** 0.5)  # r errors add up like a random walk
        if self.space.metric == "manhattan":
            return np.asarray(scale * keys)
        shifted = Q if self._centre is None else Q - self._centre
        lengths = np.sqrt(np.einsum("ij,ij->i", shifted, shifted))[:, None]
        return np.asarray(scale * np.square(2 * lengths + np.sqrt(keys)))  # |x| <= |q| + |q - x|


def _manhattan(Q: Floats, columns: Floats) -> Floats:
    """Return sum |q - x|, a feature at a time over blocks of queries that stay in the cache."""
    keys = np.zeros((len(Q), columns.shape[1]), dtype=np.float32)
    step = max(1, (_GATHER_BYTES // 16) // max(1, columns.shape[1] * 4))
    buffer = np.empty((step, columns.shape[1]), dtype=np.float32)
    for start in range(0, len(Q), step):
        part = keys[start : start + step]
        difference = buffer[: len(part)]
        for feature, column in enumerate(columns):
            np.subtract(Q[start : start + step, feature, None], column, out=difference)
            np.abs(difference, out=difference)
            part += difference
    return keys
