"""Quality and wall time beside what one would take instead: all figures of the README's table, with their spread.

    python tests/bench/bench_quality.py --data DIR --rows results.jsonl --page results.md \
        --ivis-python PYTHON --rivals-python PYTHON [--seeds 3] [--cases mnist cytometry] [--systems fast ivis umap]

Each system embeds MNIST (70,000 x 784) and cytometry (100,000 x 8) into 2 dimensions, seed after seed, one at a time.
Ours is the whole command: starting Python, Spark and TensorFlow, reading, all stages and the report; the others are
timed from the call to the embedding. Every run is appended to the rows, with date, commit, versions and machine; the
page is made of all rows. The rivals' environment has umap-learn, pacmap and openTSNE; a system without its
environment is left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from bench_end_to_end import IVIS, PATIENCE, K, quality, run_ours
from common import cytometry, mnist, parser, run_python, say, write_table

from ivis_spark.storage import RunFolder

OURS = {"fast": ["preset=fast"], "ivis": ["preset=ivis", f"train.patience={PATIENCE}"]}
EMBED = """
import importlib.metadata, json, sys, time
import numpy as np
folder, seed = sys.argv[1], int(sys.argv[2])
X = np.load(folder + "/X.npy")
np.random.seed(seed)
{prepare}
started = time.perf_counter()
Z = {embed}
seconds = time.perf_counter() - started
np.save(folder + "/Z.npy", np.asarray(Z))
print("RESULT " + json.dumps({{"total": seconds, "version": importlib.metadata.version("{package}")}}))
"""
# A seed would keep umap-learn to one thread: its runs differ by themselves.
RIVALS = {
    "umap-learn": ("umap-learn", "import umap", "umap.UMAP().fit_transform(X)"),
    "PaCMAP": ("pacmap", "import pacmap", "pacmap.PaCMAP(random_state=seed).fit_transform(X)"),
    "openTSNE": ("openTSNE", "import openTSNE", "openTSNE.TSNE(n_jobs=-1, random_state=seed).fit(X)"),
}
CASES = {"mnist": mnist, "cytometry": cytometry}
FIGURES = ("seconds", "trustworthiness@15", "triplets", "kNN", "centroids")


def main() -> None:
    """Run what was asked for, append the rows, and write the page."""
    made = parser(__doc__, ivis=True)
    made.add_argument("--rivals-python", help="python of an environment with umap-learn, pacmap and openTSNE")
    made.add_argument("--rows", default="results.jsonl", help="file that a line a run is appended to")
    made.add_argument("--page", help="Markdown page to make of the rows")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    systems = [*OURS, "ivis 2", *RIVALS]
    made.add_argument("--systems", nargs="*", choices=systems, default=systems)
    made.add_argument("--heap", default="2g", help="Spark's JVM heap")
    made.add_argument("--set", action="append", default=[], help="more settings of ours, section.key=value")
    options = made.parse_args()
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            X, labels = CASES[case](options.data)
            np.save(os.path.join(folder, "X.npy"), X)
            write_table(os.path.join(folder, "table"), X, labels)
            for seed in range(options.seeds):
                for system in options.systems:
                    run_system(case, system, seed, (X, labels), folder, options)
    if options.page:
        with open(options.rows, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        with open(options.page, "w", encoding="utf-8") as file:
            file.write(page(rows))


def run_system(
    case: str, system: str, seed: int, data: tuple[np.ndarray, np.ndarray], folder: str, options: argparse.Namespace
) -> None:
    """Run one system once, print its row and append it."""
    if system in OURS:
        facts = embed_ours(system, seed, folder, options)
    elif system == "ivis 2" and options.ivis_python:
        facts = {"version": "2.0.11", **run_python(options.ivis_python, IVIS, folder, K, PATIENCE)}
    elif system in RIVALS and options.rivals_python:
        package, prepare, embed = RIVALS[system]
        program = EMBED.format(package=package, prepare=prepare, embed=embed)
        facts = run_python(options.rivals_python, program, folder, seed)
    else:
        return
    X, labels = data
    figures = quality(X, np.load(os.path.join(folder, "Z.npy")), labels)
    row = {"case": case, "system": system, "seed": seed, "version": facts["version"], "seconds": facts["total"]}
    row |= figures | {"date": datetime.date.today().isoformat(), "commit": commit(), "machine": machine()}
    say(", ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{value}" for name, value in row.items()))
    with open(options.rows, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def embed_ours(preset: str, seed: int, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run our command into a run folder of its own and leave the embedding as Z.npy."""
    with tempfile.TemporaryDirectory() as scratch:
        output = os.path.join(scratch, "run")
        settings = [*OURS[preset], f"neighbours.k={K}", f"random_state={seed}", "data.scaling=none", *options.set]
        seconds = run_ours(os.path.join(folder, "table"), output, settings, options.heap)
        embedded = pq.read_table(RunFolder(output).data("embeddings").removeprefix("file://")).sort_by("id")
    np.save(os.path.join(folder, "Z.npy"), np.stack(embedded["embedding"].to_numpy()))
    return {"total": seconds, "version": commit()}


def commit() -> str:
    """Return the commit of this checkout."""
    here = os.path.dirname(__file__)
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    """Return cores and kind of this machine."""
    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {sys.version.split()[0]}"


def page(rows: list[dict[str, Any]]) -> str:
    """Return a page with a table a case: mean and standard deviation of each system's runs."""
    parts = ["# Quality and wall time\n\nMade by `tests/bench/bench_quality.py` of its rows; do not edit.\n"]
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        parts.append(
            f"\n## {case}\n\n| system | version | runs | {' | '.join(FIGURES)} | date |\n" + "|---" * 9 + "|\n"
        )
        for key in dict.fromkeys((row["system"], row["version"]) for row in own):
            runs = [row for row in own if (row["system"], row["version"]) == key]
            cells = [spread(run[name] for run in runs) for name in FIGURES]
            parts.append(f"| {' | '.join(key)} | {len(runs)} | {' | '.join(cells)} | {runs[-1]['date']} |\n")
    return "".join([*parts, "\nMachines: ", "; ".join(dict.fromkeys(row["machine"] for row in rows)), ".\n"])


def spread(values: Iterable[float]) -> str:
    """Return mean and standard deviation."""
    found = np.array(list(values))
    digits = 1 if found.max() > 2 else 3
    return f"{found.mean():.{digits}f} ± {found.std():.{digits}f}"


if __name__ == "__main__":
    main()
