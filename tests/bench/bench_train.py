"""Rate of training in triplets/s, and that of ivis 2.0.11 beside it.

    python tests/bench/bench_train.py [--mnist DIR] [--ivis-python PYTHON] [--epochs N]

Both train the same network (szubert, batches of 128) on the same rows and neighbours; only the fit is timed, the first
epoch (compilation) left out. Rounds of both alternate, and the best epoch of each counts: other load only
ever slows an epoch down. Each run is appended to tests/bench/results/train.jsonl with date, commit and machine.
"""

from __future__ import annotations

import argparse
import glob
import os
import subprocess
import sys
import tempfile

import numpy as np
from common import append_result, results_file

K, BATCH, ROUNDS = 15, 128, 3

TIMED_IVIS = """
import sys, time
import numpy as np
from ivis import Ivis
import tensorflow as tf
class Clock(tf.keras.callbacks.Callback):
    seconds = []
    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()
    def on_epoch_end(self, epoch, logs=None):
        Clock.seconds.append(time.perf_counter() - self.start)
data = np.load(sys.argv[1])
Ivis(k={k}, batch_size={batch}, epochs=int(sys.argv[2]), neighbour_matrix=data["neighbours"], callbacks=[Clock()],
     verbose=0).fit(data["X"])
print("SECONDS", *Clock.seconds)
"""

TIMED_OURS = """
import sys, time
import keras
import numpy as np
from ivis_spark.config import TrainConfig
from ivis_spark.data.triplets import triplet_dataset
from ivis_spark.nn.losses import triplet_loss
from ivis_spark.nn.model import TripletModel
from ivis_spark.nn.networks import build_encoder
from ivis_spark.train.loop import fit
class Clock(keras.callbacks.Callback):
    seconds = []
    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()
    def on_epoch_end(self, epoch, logs=None):
        Clock.seconds.append(time.perf_counter() - self.start)
data = np.load(sys.argv[1])
X, epochs = data["X"], int(sys.argv[2])
model = TripletModel(build_encoder("szubert", (X.shape[1],), 2, 1), triplet_loss("pn"))
config = TrainConfig(epochs=epochs, patience=epochs)
drawn = {"batch_size": {batch}, "random_state": 1, "negatives": config.negatives}
dataset, steps = triplet_dataset(X, data["neighbours"], **drawn)
fit(model, dataset, steps_per_epoch=steps, config=config, callbacks=[Clock()])
print("SECONDS", *Clock.seconds)
"""


def main() -> None:
    """Time and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", help="folder of Parquet files with a column `features`; else random rows")
    parser.add_argument("--ivis-python", help="python of an environment with ivis 2.0.11")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--only", choices=["mnist", "cytometry"])
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    data = {
        "mnist": lambda: load_mnist(options.mnist) if options.mnist else rng.random((70_000, 784), dtype=np.float32),
        "cytometry": lambda: rng.random((100_000, 8), dtype=np.float32),
    }
    for name, load in data.items():
        if options.only in (None, name):
            compare(name, load(), options, rng)


def load_mnist(folder: str) -> np.ndarray:
    """Read all images, scaled to [0, 1]."""
    import pyarrow.parquet as pq

    columns = [pq.read_table(path)["features"] for path in sorted(glob.glob(os.path.join(folder, "*.parquet")))]
    flat = np.concatenate([np.asarray(chunk.flatten()) for column in columns for chunk in column.chunks])
    return (flat.reshape(-1, 784) / 255).astype(np.float32)


def compare(name: str, X: np.ndarray, options: argparse.Namespace, rng: np.random.Generator) -> None:
    """Time both programs on rows `X` with random neighbours; the rate does not depend on which they are."""
    neighbours = (np.arange(len(X))[:, None] + rng.integers(1, len(X) // 2, size=(len(X), K))) % len(X)
    rates: dict[str, list[float]] = {"ivis_spark": [], "ivis": []}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "data.npz")
        np.savez(path, X=X, neighbours=neighbours)
        for _ in range(ROUNDS):
            rates["ivis_spark"] += time_epochs(sys.executable, TIMED_OURS, path, options.epochs)
            if options.ivis_python:
                rates["ivis"] += time_epochs(options.ivis_python, TIMED_IVIS, path, options.epochs)
    row: dict[str, object] = {"case": name, "rows": len(X), "dims": X.shape[1], "epochs": options.epochs}
    for program, seconds in rates.items():
        if seconds:
            best, median = len(X) / min(seconds), len(X) / float(np.median(seconds))
            row[program] = {"best": round(best), "median": round(median)}
            sys.stdout.write(f"{name:10} {X.shape} {program:10} best {best:9,.0f}  median {median:9,.0f} triplets/s\n")
    if rates["ivis"]:
        ours, theirs = np.asarray(rates["ivis_spark"]), np.asarray(rates["ivis"])
        best, median = theirs.min() / ours.min(), np.median(theirs) / np.median(ours)
        sys.stdout.write(f"{name:10} ivis_spark / ivis: {best:.2f} (best epochs), {median:.2f} (median)\n")
        row |= {"ratio_best": round(best, 3), "ratio_median": round(float(median), 3)}
    sys.stdout.flush()
    append_result(results_file("train"), row)


def time_epochs(python: str, program: str, path: str, epochs: int) -> list[float]:
    """Run a program in its own process and return the seconds of each epoch but the first."""
    code = program.replace("{k}", str(K)).replace("{batch}", str(BATCH))
    done = subprocess.run(
        [python, "-c", code, path, str(epochs)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if not lines:
        raise SystemExit(f"{python} failed:\n{done.stderr[-2000:]}")
    return [float(value) for value in lines[0].split()[2:]]


if __name__ == "__main__":
    main()
