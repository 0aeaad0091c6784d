"""Neighbours of all rows in Spark, next to ivis 2.0.11's `AnnoyKnnMatrix.build(precompute=True)`: seconds and recall.

    python tests/bench/bench_neighbours.py --data DIR --ivis-python PYTHON [--only mnist] [--set neighbours.k=20]

Ours is the whole stage with Spark's overhead, from packed rows in Parquet to the published table, in a session that is
up already. Recall is against exact search for 1,000 rows; ties by distance count as found. Each run is appended to
tests/bench/results/neighbours.jsonl with date, commit and machine.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from common import (
    append_result,
    cytometry,
    kdd99,
    mnist,
    moved_digits,
    parser,
    processor_seconds,
    results_file,
    run_python,
    say,
    write_table,
)

from ivis_spark import storage
from ivis_spark.config import load_config
from ivis_spark.core.knn.exact import exact_neighbours
from ivis_spark.core.knn.recall import recall_at_k
from ivis_spark.spark.neighbours.stage import build_neighbours
from ivis_spark.spark.rows import columns as frames
from ivis_spark.spark.rows import ingest, tables
from ivis_spark.spark.session import get_session

CASES = {"mnist": (lambda data: mnist(data)[0], 15), "cytometry": (lambda data: cytometry(data)[0], 150)}
CASES |= {
    "cytometry-92500": (lambda data: cytometry(data, 92_500)[0], 150),
    "cytometry-all": (lambda data: cytometry(data, None)[0], 150),
    "kdd99": (kdd99, 15),
    "digits-300000": (lambda data: moved_digits(data, 300_000), 15),
    "digits-1000000": (lambda data: moved_digits(data, 1_000_000), 15),
    "digits-2000000": (lambda data: moved_digits(data, 2_000_000), 15),
}
IVIS = """
import json, sys, time
import numpy as np
from ivis.data.neighbour_retrieval import AnnoyKnnMatrix
folder, k = sys.argv[1], int(sys.argv[2])
X = np.load(folder + "/X.npy")
started = time.perf_counter()
matrix = AnnoyKnnMatrix.build(X, path=folder + "/annoy.index", k=k, metric="euclidean", precompute=True, verbose=0)
seconds = time.perf_counter() - started
rows = np.load(folder + "/asked.npy")
np.save(folder + "/found.npy", np.asarray([matrix[int(row)] for row in rows]))
print("RESULT " + json.dumps({"build": seconds}))
"""


def main() -> None:
    """Run the cases and print a line for each program."""
    made = parser(__doc__, ivis=True)
    made.add_argument("--only", choices=list(CASES), action="append")
    made.add_argument("--target-recall", type=float)
    made.add_argument("--set", action="append", default=[], help="a setting, like neighbours.leaf_rows=400")
    options = made.parse_args()
    spark = get_session("bench-neighbours")
    for name in options.only or ["mnist", "cytometry"]:
        load, k = CASES[name]
        compare(spark, name, load(options.data), k, options)


def compare(spark: Any, name: str, X: np.ndarray, k: int, options: Any) -> None:
    """Time both on the same rows and print seconds, recall and the ratio."""
    asked = np.sort(np.random.default_rng(0).permutation(len(X))[:1000])
    ids = np.arange(len(X))
    _, exact = exact_neighbours(X[asked], X, k, "euclidean", own=asked, ids=ids)
    target = options.target_recall or (0.95 if k < 100 else 0.98)
    with tempfile.TemporaryDirectory() as folder:
        write_table(os.path.join(folder, "table"), X)
        np.save(os.path.join(folder, "X.npy"), X)
        np.save(os.path.join(folder, "asked.npy"), asked)
        settings = [f"neighbours.k={k}", f"neighbours.target_recall={target}", *options.set]
        ours, cpu, found, info = run_ours(spark, folder, k, settings)
        recall = recall_at_k(keys_of(X, asked, found[asked]), exact, n_rows=len(X))
        say(f"{name}: ivis_spark {ours:.1f} s, {cpu:.1f} core-seconds, {len(X) / cpu:,.0f} rows/s a core")
        say(f"{name}: recall {recall.value:.4f}; {info}")
        row = {"case": name, "rows": len(X), "dims": X.shape[1], "k": k, "set": options.set, "target_recall": target}
        row |= {"seconds": ours, "core_seconds": cpu, "rows_per_core_second": len(X) / cpu, "recall": recall.value}
        row |= {"largest_by_median": info["largest_region"] / info["median_region"], "n_regions": info["n_regions"]}
        if options.ivis_python:
            theirs = run_python(options.ivis_python, IVIS, folder, k)["build"]
            near = np.load(os.path.join(folder, "found.npy"))
            near = np.array([row[row != own][:k] for row, own in zip(near, asked, strict=True)])
            recall = recall_at_k(keys_of(X, asked, near), exact, n_rows=len(X))
            say(f"{name}: ivis {theirs:.1f} s, recall {recall.value:.4f}; ivis / ivis_spark {theirs / ours:.2f}")
            row |= {"ivis_seconds": theirs, "ivis_recall": recall.value, "ratio": theirs / ours}
        append_result(results_file("neighbours"), row)


def run_ours(spark: Any, folder: str, k: int, settings: list[str]) -> tuple[float, float, np.ndarray, dict[str, Any]]:
    """Ingest, then time the stage; return its seconds, those of all cores, the table and its facts."""
    config = load_config(None, ["data.format=parquet", "data.id_col=id", "data.scaling=none", *settings])
    run = storage.RunFolder(os.path.join(folder, "run"))
    with run.build("rows", {}) as stage:
        source = frames.resolve(tables.read_table(spark, os.path.join(folder, "table"), config.data), config.data)
        stage.info.update(ingest.ingest(source, config.data, stage))
    started, cpu = time.perf_counter(), processor_seconds()
    with run.build("neighbours", {}) as stage:
        rows = spark.read.parquet(run.data("rows")).select("id", "features")
        info = build_neighbours(rows, config.neighbours, random_state=0, folder=stage.uri)
        stage.digests.update(info.pop("digests"))
        stage.info.update(info)
    taken, cpu = time.perf_counter() - started, processor_seconds() - cpu
    table = pq.read_table(run.data("neighbours").removeprefix("file://")).sort_by("id")
    found = table["neighbour_ids"].combine_chunks().flatten().to_numpy().reshape(-1, k)
    info = run.require("neighbours", "neighbours").info
    kept = ("n_regions", "largest_region", "median_region", "replicas", "recall", "backend", "step_seconds")
    return taken, cpu, found, {name: info[name] for name in kept}


def keys_of(X: np.ndarray, asked: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return squared distances of what was found, computed in the same way for everybody."""
    keys = [((X[near] - X[row]) ** 2).sum(axis=1) for row, near in zip(asked, found, strict=True)]
    return np.sort(np.array(keys, dtype=np.float32), axis=1)


if __name__ == "__main__":
    main()
