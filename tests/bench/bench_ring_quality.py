"""Quality of the embedding that 2 ranks on a Spark local-cluster train, beside that of one process.

    python tests/bench/bench_ring_quality.py [--data DIR | --prepared RUN] [--epochs 20] [--batch 1024] [--seeds 1]

Both train szubert on the same triplets of MNIST (random clusters without --data), with the same batch, epochs and seed;
the report measures both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

from common import mnist, parser, say, write_table

from ivis_spark.storage import RunFolder, read_json

FIGURES = ("trustworthiness", "knn_accuracy", "random_triplet_accuracy", "centroid_correlation")


def main() -> None:
    """Prepare the triplets once, train both ways with each seed, and print."""
    made = parser(__doc__)
    made.add_argument("--prepared", help="run folder that has triplets and labels already")
    made.add_argument("--epochs", type=int, default=20)
    made.add_argument("--batch", type=int, default=1024)
    made.add_argument("--seeds", type=int, default=1)
    made.add_argument("--backends", nargs="+", default=["horovod", "tensorflow"])
    options = made.parse_args()
    ways = {"1 process": ["train.backend=local"]}
    for backend in options.backends:
        ways[f"2 ranks, {backend}"] = [f"train.backend={backend}", "train.num_ranks=2"]
    with tempfile.TemporaryDirectory() as folder:
        prepared = options.prepared or prepare(folder, options.data)
        for seed in range(options.seeds):
            for way, settings in ways.items():
                run = os.path.join(folder, f"{way}-{seed}".replace(" ", "-").replace(",", ""))
                shutil.copytree(prepared, run)
                shared = [f"train.epochs={options.epochs}", f"train.patience={options.epochs}"]
                shared += [f"train.batch_size={options.batch}", f"random_state={seed}"]
                pairs = [part for pair in settings + shared for part in ("--set", pair)]
                command(run, "train", "--master", "local-cluster[2,1,1024]", *pairs)
                command(run, "embed")
                command(run, "evaluate")
                done = RunFolder(run)
                figures = read_json(done.uri(done.require("report", "evaluate"), "metrics.json"))
                say(f"seed {seed}, {way:20}: " + ", ".join(f"{name} {figures[name]:.4f}" for name in FIGURES))


def prepare(folder: str, data: str | None) -> str:
    """Make a run folder with triplets."""
    table, run = os.path.join(folder, "table"), os.path.join(folder, "prepared")
    write_table(table, *mnist(data))
    command(run, "neighbours", "--input", table, "--id-col", "id", "--label-col", "label")
    command(run, "triplets")
    return run


def command(run: str, name: str, *arguments: str) -> None:
    """Run a command of the package, or end with its message."""
    line = [sys.executable, "-m", "ivis_spark.cli", name, "--output", run, "--quiet", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYSPARK_PYTHON": sys.executable})
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
