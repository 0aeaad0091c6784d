"""The five metrics: how rows are prepared, compared, ranked and routed. The one place that knows them.

Distances are those of Annoy: euclidean; angular = sqrt(2 - 2 cos), with cos = 0 where a row is all zeros; manhattan;
hamming = number of features that differ after binarising at > 0.5; dot = the dot product itself, largest first.

Inside the package rows are compared by `keys`, float32, smaller is nearer: the squared distance for euclidean and
angular, the distance for manhattan and hamming, the negated product for dot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

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

    def target(self, X: Floats, centre: Floats | None = None) -> Target:
        """Make prepared rows ready to be compared with many queries; `centre` is taken off both, their own if None."""
        return Target(self, X, middle(X) if centre is None else centre)

    def extend(self, Q: Floats, centre: Floats) -> Floats:
        """Return prepared queries, (q, d), as `Target.rank_keys` takes them: less the centre, and a column of ones."""
        if self.metric == "manhattan":
            return Q
        extended = np.empty((len(Q), Q.shape[1] + 1), dtype=np.float32)
        np.subtract(Q, centre if self.centred else np.float32(0), out=extended[:, :-1])
        extended[:, -1] = 1
        return extended

    @property
    def centred(self) -> bool:
        """Whether rows may be moved."""
        return self.metric in ("euclidean", "hamming")

    @property
    def projects(self) -> bool:
        """Whether rows can be compared along some directions: where keys are squared euclidean distances."""
        return self.metric in ("euclidean", "hamming", "angular")

    @property
    def routing(self) -> Space:
        """The space in which routed rows are compared."""
        return Space("manhattan" if self.metric == "manhattan" else "euclidean")

    def distance_keys(self, Q: Floats, X: Floats) -> Floats:
        """Return float32 (q, n): squared euclidean or L1 distances, within rounding, none negative."""
        target = self.target(X)
        extended = self.extend(Q, target.centre)
        keys = target.rank_keys(extended)
        if self.metric != "manhattan":
            keys += self.squares(extended)[:, None]
        return np.asarray(np.maximum(keys, 0, out=keys))

    def border(self, keys: Floats, between: Floats) -> Floats:
        """Return how far rows are behind the borders between their nearest point and others.

        Args:
            keys: float32 (n, w), of the euclidean or manhattan space: to points, the nearest first.
            between: float32 (n, w): from the nearest point to them. For L1, half the difference stands for the border.
        """
        behind = np.maximum(keys - keys[:, :1], 0) / 2
        if self.metric == "manhattan":
            return behind
        return np.asarray(behind / np.sqrt(np.maximum(between, np.finfo(np.float32).tiny)))

    def squares(self, extended: Floats) -> Floats:
        """Return the squared norms, float32 (q,), of queries as `extend` gives them; `reach` takes these."""
        own = extended if self.metric == "manhattan" else extended[:, :-1]
        return np.asarray(np.einsum("ij,ij->i", own, own))

    def reach(self, rank_keys: Floats, squares: Floats, norm_bound: float) -> Floats:
        """Return the routed distance, float32 (q,), of what has these rank keys (q,) from queries of these squares."""
        if self.metric == "manhattan":
            return rank_keys
        if self.metric == "angular":
            return np.asarray(np.sqrt(np.maximum(rank_keys + 1, 0)))
        if self.metric == "dot":
            norms = np.sqrt(squares)
            squared = 2 * norm_bound * (norm_bound + rank_keys / np.where(norms > 0, norms, 1))
            return np.sqrt(np.maximum(squared, 0)).astype(np.float32)
        return np.asarray(np.sqrt(np.maximum(rank_keys + squares, 0)))

    def pair_keys(self, Q: Floats, X: Floats, positions: Ints) -> Floats:
        """Return the keys of given pairs, computed from differences and so free of cancellation.

        Args:
            Q: Prepared queries, shape (q, d).
            X: Prepared rows, shape (n, d).
            positions: Shape (q, c): rows of X to compare query i with.

        Returns:
            float32, shape (q, c). The same pair gives the same bits in any batch.
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
            compared, place = np.unique(positions, return_inverse=True)
            empty_rows = ~X[compared].any(axis=1)
            keys[~Q.any(axis=1)[:, None] | empty_rows[place].reshape(positions.shape)] = 2.0
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

    def route_rows(self, X: Floats, norm_bound: float) -> Floats:
        """Return prepared rows in the space that leaves are laid out in, where nearer means likelier a neighbour.

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
    """Prepared rows with what makes comparing them to blocks of queries one matrix product.

    Centred, |x|^2 is no larger than the distances themselves, so that |x|^2 - 2 qx cancels little.
    """

    def __init__(self, space: Space, X: Floats, centre: Floats) -> None:
        self.space, self.centre = space, centre
        if space.metric == "manhattan":
            self._columns = np.ascontiguousarray(X.T)
            return
        shifted = X - centre if space.centred else X
        extended = np.empty((len(X), X.shape[1] + 1), np.float32)
        np.multiply(shifted, np.float32(-1 if space.metric == "dot" else -2), out=extended[:, :-1])
        # |x|^2 rides along as one more feature: no pass over the product is needed for it
        extended[:, -1] = np.einsum("ij,ij->i", shifted, shifted) if space.centred else space.metric == "angular"
        self._columns = extended.T

    def rank_keys(self, extended: Floats) -> Floats:
        """Return float32 (q, n) that orders the rows of each query, given by `extend`, as their keys do.

        Within rounding; |q|^2 is left out.
        """
        if self.space.metric == "manhattan":
            return _manhattan(extended, self._columns)
        return np.asarray(extended @ self._columns)


def middle(X: Floats) -> Floats:
    """Return the median of some rows, float32 (d,): one far row would pull a mean away from all others."""
    if not len(X):
        return np.zeros(X.shape[1], np.float32)
    return np.median(X[:: max(1, len(X) // _CENTRE_ROWS)], axis=0).astype(np.float32)


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
