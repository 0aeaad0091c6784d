"""A model of a tenth of the rows as anchors beside one of all: seconds of each stage, and the quality of both.

    python tests/bench/bench_anchors.py --data DIR [--rows 100000] [--anchors 10000] [--seeds 0 1 2]

Rows are labelled cells of cytometry, 8 features; beyond its 370,087 rows, or without a folder, a Gaussian mixture. Both
embed all rows, by the whole command and its default settings. A figure that is lower by more than .01 with anchors, in
the mean over the seeds, is marked, and the exit code is 1 then. For 1 million rows: --rows 1000000 --anchors 100000.
Means are appended to tests/bench/results/anchors.jsonl with date, commit and machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from bench_end_to_end import quality, run_ours, told
from common import append_result, cytometry, parser, random_clusters, results_file, say, write_table

from ivis_spark.stages import STAGES
from ivis_spark.storage import RunFolder

CELLS = 370_087
WORSE = 0.01


def main() -> None:
    """Run both, seed after seed, and compare the means."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=100_000)
    made.add_argument("--anchors", type=int, default=10_000)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--heap", default="2g", help="Spark's JVM heap")
    made.add_argument("--set", action="append", default=[], help="more settings, section.key=value")
    options = made.parse_args()
    known = options.data is not None and options.rows <= CELLS
    X, labels = cytometry(options.data, options.rows) if known else random_clusters(options.rows, 32, 20)
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        table = os.path.join(folder, "table")
        write_table(table, X, labels)
        for seed in options.seeds:
            for anchors in ("all", str(options.anchors)):
                output = os.path.join(folder, f"{anchors}-{seed}")
                settings = [f"triplets.anchors={anchors}", f"random_state={seed}", "data.scaling=none", *options.set]
                seconds = run_ours(table, output, settings, options.heap)
                figures = quality(X, embedding(output), labels)
                found.setdefault(anchors, []).append(figures)
                say(f"anchors {anchors}, seed {seed}: {seconds:.1f} s ({stage_seconds(output)}); {told(figures)}")
    every, some = (mean_of(figures) for figures in found.values())
    marks = [f"{name} {some[name] - every[name]:+.3f}{'!' * (every[name] - some[name] > WORSE)}" for name in every]
    say(
        f"{options.anchors:,} anchors of {options.rows:,} rows less all, {len(options.seeds)} seeds: {', '.join(marks)}"
    )
    row = {"rows": options.rows, "dims": X.shape[1], "anchors": options.anchors, "seeds": len(options.seeds)}
    row |= {"all": rounded(every), "some": rounded(some)}
    append_result(results_file("anchors"), row)
    sys.exit(int(any(mark.endswith("!") for mark in marks)))


def embedding(output: str) -> Any:
    """Return the embedding of all rows in the order of their ids."""
    table = pq.read_table(RunFolder(output).data("embeddings").removeprefix("file://")).sort_by("id")
    return np.stack(table["embedding"].to_numpy())


def stage_seconds(output: str) -> str:
    """Return the seconds of each stage, and the epochs."""
    folder = RunFolder(output)
    infos = {stage: folder.require(stage, "run").info for stage in STAGES}
    return ", ".join(f"{stage} {info['seconds']:.1f}" for stage, info in infos.items()) + (
        f", {infos['model']['epochs']} epochs"
    )


def mean_of(figures: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure."""
    return {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Return figures as they are kept."""
    return {name: round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    main()
