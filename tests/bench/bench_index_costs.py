"""What a row costs in each index, measured beside what the model of `choose_backend` says: the model's calibration.

    python tests/bench/bench_index_costs.py

One thread; microseconds a row, building the index included. The last column says whether `auto` picks the faster.
"""

from __future__ import annotations

import time

import numpy as np
import threadpoolctl
from common import parser, random_clusters, say

from ivis_spark.core.knn.index import choose_backend, estimate_costs, make_index

CASES = [
    ("euclidean", 8, 2000, 15),
    ("euclidean", 8, 2000, 150),
    ("euclidean", 32, 2000, 15),
    ("euclidean", 784, 2000, 15),
    ("euclidean", 32, 20_000, 15),
    ("euclidean", 8, 50_000, 15),
    ("angular", 32, 2000, 15),
    ("dot", 32, 2000, 15),
    ("hamming", 64, 2000, 15),
    ("manhattan", 8, 2000, 15),
    ("manhattan", 64, 2000, 15),
    ("manhattan", 64, 20_000, 15),
]


def main() -> None:
    """Print a line a case."""
    parser(__doc__, data=False).parse_args()
    right = 0
    with threadpoolctl.threadpool_limits(1):
        for metric, dims, rows, k in CASES:
            X = random_clusters(rows, dims, 10)[0]
            expected = estimate_costs(metric, dims=dims, cell_rows=rows, k=k, n_trees=50, search_k=-1)
            found = {backend: measured(backend, X, metric, k) for backend in ("exact", "annoy")}
            picked = choose_backend(metric, dims=dims, cell_rows=rows, k=k, n_trees=50, search_k=-1).backend
            right += found[picked] <= 1.2 * min(found.values())
            say(
                f"{metric:>10} {dims:>4} dims {rows:>6} rows k={k:<4}"
                + "".join(f" {name}: {found[name]:7.1f} us (model {expected[name]:7.1f})" for name in found)
                + f"  auto: {picked}{'' if found[picked] == min(found.values()) else ', the slower'}"
            )
    say(f"auto is within 20 % of the faster in {right} of {len(CASES)}")


def measured(backend: str, X: np.ndarray, metric: str, k: int) -> float:
    """Return microseconds a row of building and of searching up to 4,000 rows."""
    started = time.perf_counter()
    index = make_index(backend, X, metric, n_trees=50, search_k=-1, seed=0)
    built = (time.perf_counter() - started) / len(X)
    started, asked = time.perf_counter(), 0
    for numbers, _ in index.query_all(k + 1):
        asked += len(numbers)
        if asked >= 4000:
            break
    return 1e6 * (built + (time.perf_counter() - started) / asked)


if __name__ == "__main__":
    main()
