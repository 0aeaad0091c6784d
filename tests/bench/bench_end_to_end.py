"""`ivis-spark run` on MNIST (70,000 x 784) and ivis 2.0.11 on the same rows, after each other: seconds and quality.

    python tests/bench/bench_end_to_end.py --data DIR --ivis-python PYTHON

Same k, network, loss and patience; batches, negatives, learning rate, cool-down and the bound of epochs are ours.
ivis is timed from the first line of its kNN to the last embedded row, without reading the data or importing
TensorFlow; ours is the whole command: starting Python, Spark and TensorFlow, reading, all stages, and the report. Its
seconds are given by step, with the sum of those that are neither search nor training nor embedding. --plain takes our
preset as it is. Each run is appended to tests/bench/results/end_to_end.jsonl with date, commit and machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow.parquet as pq
from common import append_result, mnist, parser, results_file, run_python, say, write_table

from ivis_spark.core import metrics
from ivis_spark.stages import STAGES
from ivis_spark.storage import RunFolder

K, PATIENCE = 15, 3
VOTERS = 100_000  # kNN and 10-NN are measured on at most so many rows, drawn at random
# ivis's loss and stopping rule in the place of our preset's, a learning rate that suits them, and a bound:
# ours needs fewer epochs for the same quality, and would use the rest for more of it.
SAME_LOSS = ["train.distance=pn", "train.global_weight=0", "train.schedule=constant", "train.learning_rate=0.004"]
SAME_LOSS += [f"neighbours.k={K}", f"train.patience={PATIENCE}", "train.epochs=20", "data.scaling=none"]

IVIS = """
import json, sys, time
import numpy as np
from ivis import Ivis
folder, k, patience = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
X = np.load(folder + "/X.npy")
started = time.perf_counter()
model = Ivis(k=k, model="szubert", n_epochs_without_progress=patience, verbose=0)
model.fit(X)
fitted = time.perf_counter()
Z = model.transform(X)
done = time.perf_counter()
np.save(folder + "/Z.npy", Z)
print("RESULT " + json.dumps({"fit": fitted - started, "transform": done - fitted, "total": done - started,
                              "epochs": len(model.loss_history_)}))
"""


def main() -> None:
    """Run both and print their seconds, quality and the ratio."""
    made = parser(__doc__, ivis=True)
    made.add_argument("--heap", default="2g", help="Spark's JVM heap")
    made.add_argument("--set", action="append", default=[], help="more settings of ours, section.key=value")
    made.add_argument("--plain", action="store_true", help="our loss and stopping rule, not those of ivis")
    options = made.parse_args()
    settings = [*([f"neighbours.k={K}", "data.scaling=none"] if options.plain else SAME_LOSS), *options.set]
    X, labels = mnist(options.data)
    with tempfile.TemporaryDirectory() as folder:
        table, output = os.path.join(folder, "table"), os.path.join(folder, "run")
        write_table(table, X, labels)
        ours = run_ours(table, output, settings, options.heap)
        embedded = pq.read_table(RunFolder(output).data("embeddings").removeprefix("file://")).sort_by("id")
        Z = np.stack(embedded["embedding"].to_numpy())
        say(f"ivis_spark: {ours:.1f} s; " + told(quality(X, Z, labels)))
        spent = seconds_by_step(output, ours)
        for name, seconds in spent.items():
            say(f"    {name:24} {seconds:6.1f} s{'' if is_work(name) else '  overhead'}")
        overhead = sum(seconds for name, seconds in spent.items() if not is_work(name))
        say(f"overhead, which is all but search, training and embedding: {overhead:.1f} s")
        row = {"rows": len(X), "set": settings, "seconds": ours, "overhead": overhead, "steps": spent}
        append_result(results_file("end_to_end"), row)
        if options.ivis_python:
            np.save(os.path.join(folder, "X.npy"), X)
            theirs = run_python(options.ivis_python, IVIS, folder, K, PATIENCE)
            said = told(quality(X, np.load(os.path.join(folder, "Z.npy")), labels))
            parts = ", ".join(f"{name} {theirs[name]:.1f}" for name in ("fit", "transform", "epochs"))
            say(f"ivis: {theirs['total']:.1f} s ({parts}); {said}")
            say(f"ivis / ivis_spark: {theirs['total'] / ours:.2f} times the wall time")


def seconds_by_step(output: str, total: float) -> dict[str, float]:
    """Return the seconds of each step of each stage, what a stage spent between them, and what lies between stages."""
    spent = {"start, stop": total}
    for stage in STAGES:
        with open(os.path.join(output, stage, "manifest.json"), encoding="utf-8") as file:
            info = json.load(file)["info"]
        steps = {f"{stage}: {name}": seconds for name, seconds in info["step_seconds"].items() if seconds >= 0.05}
        spent |= {**steps, f"{stage}: rest": info["seconds"] - sum(steps.values())}
        spent["start, stop"] -= info["seconds"]
    return spent


def is_work(step: str) -> bool:
    """Tell whether a step is search, training or embedding."""
    stage, _, name = step.partition(": ")
    return (stage == "neighbours" and name != "digest") or step in ("model: train", "embeddings: embed")


def run_ours(table: str, output: str, settings: list[str], heap: str, *, command: str = "run") -> float:
    """Run a command and return its seconds."""
    line = [sys.executable, "-m", "ivis_spark", command, "--input", table, "--output", output, "--id-col", "id"]
    line += ["--label-col", "label"] if command == "run" else []
    line += [part for setting in settings for part in ("--set", setting)]
    line += ["--spark-conf", f"spark.driver.memory={heap}"]
    started = time.perf_counter()
    done = subprocess.run(line, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return time.perf_counter() - started


def quality(X: np.ndarray, Z: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure an embedding: trustworthiness on 4,000 rows, 20,000 random triples, kNN on `VOTERS`, centroids on all."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(X))
    drawn = order[:4000]
    voters = slice(None) if len(X) <= VOTERS else order[:VOTERS]
    return {
        "trustworthiness@15": metrics.trustworthiness(X[drawn], Z[drawn], 15),
        "triplets": metrics.random_triplet_accuracy(X, Z, n_triplets=20_000, rng=rng),
        "kNN": metrics.knn_accuracy(Z[voters], labels[voters], k=15, rng=rng),
        "10-NN": neighbour_accuracy(Z[voters], labels[voters]),
        "centroids": metrics.centroid_correlation(X, Z, labels),
    }


def neighbour_accuracy(
    Z: np.ndarray, labels: np.ndarray, others: np.ndarray | None = None, expected: np.ndarray | None = None
) -> float:
    """Return the accuracy of the 10 nearest rows of Z: of its own rows, each left out, or of other rows by Z's."""
    from sklearn.neighbors import KNeighborsClassifier

    own = others is None
    classifier = KNeighborsClassifier(10).fit(Z, labels)
    near = classifier.kneighbors(None if own else others, return_distance=False)
    classes, codes = np.unique(labels, return_inverse=True)
    votes = (codes[near][:, :, None] == np.arange(len(classes))).sum(axis=1)
    return float(np.mean(classes[votes.argmax(axis=1)] == (labels if own else expected)))


def told(figures: dict[str, float]) -> str:
    """Return figures as a line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


if __name__ == "__main__":
    main()
