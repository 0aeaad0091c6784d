"""What a row costs in each index library, measured beside what the model of `choose_backend` says: its calibration.

    python tests/bench/bench_index_costs.py

One thread; microseconds per row, building the index included, at the least effort that finds 95 % of the neighbours.
The last column says whether `auto` picks the faster.
"""

from __future__ import annotations

import time

import numpy as np
import threadpoolctl
from common import parser, random_clusters, say

from ivis_spark.core.knn.indexes import IndexSettings, choose_backend, installed_indexes
from ivis_spark.core.knn.search import calibrate

SETTINGS = IndexSettings(leaf_rows=256, n_trees=50)
CASES = [
    ("euclidean", 8, 16_000, 15),
    ("euclidean", 8, 16_000, 150),
    ("euclidean", 32, 16_000, 15),
    ("euclidean", 784, 16_000, 15),
    ("euclidean", 32, 100_000, 15),
    ("angular", 32, 16_000, 15),
    ("dot", 32, 16_000, 15),
    ("hamming", 64, 16_000, 15),
    ("manhattan", 64, 16_000, 15),
]


def main() -> None:
    """Print a line per case."""
    parser(__doc__, data=False).parse_args()
    right = 0
    with threadpoolctl.threadpool_limits(1):
        for metric, dims, rows, k in CASES:
            X = random_clusters(rows, dims, 10)[0]
            expected = {name: kind.cost(dims, rows, k, SETTINGS) for name, kind in installed_indexes().items()}
            found = {name: measured(name, X, metric, k) for name in installed_indexes()}
            picked = choose_backend("auto", dims, rows, k, SETTINGS)[0]
            right += found[picked] <= 1.2 * min(found.values())
            say(
                f"{metric:>10} {dims:>4} dims {rows:>6} rows k={k:<4}"
                + "".join(f" {name}: {found[name]:7.1f} us (model {expected[name]:7.1f})" for name in found)
                + f"  auto: {picked}{'' if found[picked] == min(found.values()) else ', the slower'}"
            )
    say(f"auto is within 20 % of the faster in {right} of {len(CASES)}")


def measured(backend: str, X: np.ndarray, metric: str, k: int) -> float:
    """Return microseconds per row of building, and of searching up to 4,000 rows."""
    ids = np.arange(len(X))
    started = time.perf_counter()
    index = installed_indexes()[backend].build(X, ids, metric, SETTINGS)
    built = (time.perf_counter() - started) / len(X)
    effort = calibrate(index, X, ids, ids[:: len(X) // 100], k, 0.95)
    queries = X if backend == "leaves" else X[:4000]
    started = time.perf_counter()
    index.query(queries, k + 1, effort)
    return 1e6 * (built + (time.perf_counter() - started) / len(queries))


if __name__ == "__main__":
    main()
