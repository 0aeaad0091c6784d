"""`Ivis` against ivis 2.0.11, each the same program in a process of its own: seconds, and the quality it reaches.

    python tests/bench/bench_local.py CASE --data DIR --ivis-python PYTHON

Cases: mnist (70,000 x 784, k=15) and cytometry (100,000 x 8, k=150), szubert and patience 3, `fit` timed and the
embedding judged; supervised, semi (half the labels masked) and svm (MNIST, test accuracy of score_samples), boston
(regression, R2), kdd99 (maaten, 5 % of the rows to train on, average precision of the attack class on the rest), iris
(the documentation's example from the start of Python to the end). Each run is appended to
tests/bench/results/local.jsonl with date, commit and machine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from common import append_result, cytometry, mnist, parser, results_file, run_python, say

from ivis_spark.core import metrics

PROGRAM = """
import importlib, json, sys, time
import numpy as np
package, folder, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
Ivis = importlib.import_module(package).Ivis
data = np.load(folder + "/data.npz")
labels = [data["Y"]] if "Y" in data else []
model = Ivis(verbose=0, **options)
started = time.perf_counter()
model.fit(data["X"], *labels)
seconds = time.perf_counter() - started
apply = model.score_samples if labels else model.transform
np.savez(folder + "/out.npz", **{name: apply(data[name]) for name in ("X", "T") if name in data})
print("RESULT " + json.dumps({"fit": seconds, "epochs": len(model.loss_history_)}))
"""
IRIS = """
import importlib, sys
import numpy as np
Ivis = importlib.import_module(sys.argv[1]).Ivis
X = np.load(sys.argv[2] + "/data.npz")["X"]
model = Ivis(embedding_dims=2, k=15, verbose=0)
embeddings = model.fit_transform((X - X.min(axis=0)) / np.ptp(X, axis=0))
print('RESULT {"epochs": %d}' % len(model.loss_history_))
"""
PLAIN = {"model": "szubert", "n_epochs_without_progress": 3}
SUPERVISED = {"n_epochs_without_progress": 5, "supervision_weight": 0.9}
OPTIONS: dict[str, dict[str, Any]] = {
    "mnist": {**PLAIN, "k": 15},
    "cytometry": {**PLAIN, "k": 150},
    "supervised": SUPERVISED,
    "semi": SUPERVISED,
    "svm": {**SUPERVISED, "supervision_metric": "categorical_hinge"},
    "boston": {"k": 15, "batch_size": 16, "supervision_metric": "mae", "n_epochs_without_progress": 60},
    "kdd99": {"k": 15, "model": "maaten", "n_epochs_without_progress": 5, "supervision_weight": 0.8},
    "iris": {},
}


def main() -> None:
    """Run one case with both and print a line each, and the ratio of the seconds."""
    made = parser(__doc__, ivis=True)
    made.add_argument("case", choices=OPTIONS)
    made.add_argument("--seeds", type=int, default=1, help="runs of ours, with random_state 0, 1, ...")
    options = made.parse_args()
    arrays, judge = load(options.case, options.data)
    theirs = None
    with tempfile.TemporaryDirectory() as folder:
        np.savez(os.path.join(folder, "data.npz"), **arrays)
        program = IRIS if options.case == "iris" else PROGRAM
        if options.ivis_python:
            theirs = run_python(options.ivis_python, program, "ivis", folder, json.dumps(OPTIONS[options.case]))
            report(options.case, "ivis", theirs, folder, judge)
        for seed in range(options.seeds):
            own = {**OPTIONS[options.case], "random_state": seed}
            ours = run_python(sys.executable, program, "ivis_spark", folder, json.dumps(own))
            report(options.case, f"ivis_spark, seed {seed}", ours, folder, judge)
            if theirs:
                name = "seconds" if options.case == "iris" else "fit"
                say(f"ivis / ivis_spark: {theirs[name] / ours[name]:.2f} times the {name} time")


def report(case: str, name: str, result: dict[str, Any], folder: str, judge: Any) -> None:
    """Print seconds and figures of a run, and append them to the results."""
    path = os.path.join(folder, "out.npz")
    figures = judge(np.load(path)) if os.path.exists(path) else {}
    fit = f"fit {result['fit']:.1f} s, " if "fit" in result else ""
    said = "".join(f", {key} {value:.4f}" for key, value in figures.items())
    say(f"{name}: {fit}{result['seconds']:.1f} s in all, {result['epochs']} epochs{said}")
    append_result(results_file("local"), {"case": case, "system": name, **result, **figures})


def load(case: str, folder: str | None) -> tuple[dict[str, np.ndarray], Any]:
    """Return the arrays of a case (X, and Y with labels, and T to test on) and what judges its output."""
    if case in ("mnist", "cytometry"):
        X, labels = mnist(folder) if case == "mnist" else cytometry(folder)
        return {"X": X}, lambda out: embedding_quality(X, out["X"], labels)
    if case in ("supervised", "semi", "svm"):
        X, labels = mnist(folder)
        X, labels, T, expected = X[10_000:], labels[10_000:], X[:10_000], labels[:10_000]  # the test images come first
        Y = labels.astype(np.int64)
        if case == "semi":
            Y[np.random.default_rng(0).permutation(len(Y))[: len(Y) // 2]] = -1
        if case == "svm":
            Y = np.eye(10, dtype=np.float32)[Y]
        accuracy = lambda out: {"test accuracy": (out["T"].argmax(axis=1) == expected).mean()}  # noqa: E731
        return {"X": X, "Y": Y, "T": T}, accuracy
    if folder is None:
        raise SystemExit(f"{case} needs --data")
    table = pq.read_table(
        os.path.join(folder, case, "kdd99_10percent.parquet" if case == "kdd99" else f"{case}.parquet")
    )
    names = [name for name in table.column_names if name not in ("y", "attack")]
    X = np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float32)
    labels = table["y"].to_numpy()
    if case == "iris":
        return {"X": X}, lambda out: {}
    return boston(X, labels) if case == "boston" else kdd99(X, labels)


def boston(X: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], Any]:
    """Return 404 rows to train on and 102 to test on, min-max scaled by the former, and R2 of both."""
    drawn = np.random.default_rng(0).permutation(len(X))
    train, test = drawn[:404], drawn[404:]
    scaled = (X - X[train].min(axis=0)) / np.ptp(X[train], axis=0)

    def r2(out: Any) -> dict[str, float]:
        parts = {"R2 train": (out["X"], labels[train]), "R2 test": (out["T"], labels[test])}
        return {name: 1 - ((y - p[:, 0]) ** 2).sum() / ((y - y.mean()) ** 2).sum() for name, (p, y) in parts.items()}

    return {"X": scaled[train], "Y": labels[train].astype(np.float32), "T": scaled[test]}, r2


def kdd99(X: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], Any]:
    """Return a stratified 5 % to train on and the rest to test on, min-max scaled by the former."""
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import train_test_split

    attack = (labels > 0).astype(np.int64)
    train, test = train_test_split(np.arange(len(X)), train_size=0.05, stratify=attack, random_state=1234)
    low, spread = X[train].min(axis=0), np.ptp(X[train], axis=0)
    scaled = np.clip((X - low) / np.where(spread > 0, spread, 1), -1, 2).astype(np.float32)
    judge = lambda out: {"average precision": average_precision_score(attack[test], out["T"][:, 1])}  # noqa: E731
    return {"X": scaled[train], "Y": attack[train], "T": scaled[test]}, judge


def embedding_quality(X: np.ndarray, Z: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure an embedding as the comparison with ivis does: trustworthiness on 4,000 rows, the rest on more."""
    from sklearn.model_selection import train_test_split
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    rng = np.random.default_rng(0)
    drawn = rng.permutation(len(X))[:4000]
    figures = {
        "trustworthiness": metrics.trustworthiness(X[drawn], Z[drawn], 15),
        "triplets": metrics.random_triplet_accuracy(X, Z, n_triplets=20_000, rng=rng),
        "centroids": metrics.centroid_correlation(X, Z, labels),
    }
    drawn = rng.permutation(len(X))[:20_000]
    train, test, y_train, y_test = train_test_split(Z[drawn], labels[drawn], random_state=0)
    for name, classifier in (("kNN", KNeighborsClassifier(15)), ("SVM", SVC())):
        figures[name] = classifier.fit(train, y_train).score(test, y_test)
    return figures


if __name__ == "__main__":
    main()
