"""Quality and wall time beside what one would take instead: all figures of the README's table, with their spread.

    python tests/bench/bench_quality.py --data DIR --ivis-python PYTHON --rivals-python PYTHON \
        [--seeds 3] [--cases mnist cytometry] [--systems fast Ivis umap-learn] [--held-out 10000]

Each system embeds MNIST (70,000 x 784) and cytometry (100,000 x 8) into 2 dimensions, seed after seed, one at a time.
Systems fast, components and ivis are our whole command: starting Python, Spark and TensorFlow, reading, all stages and
the report; the others, also `Ivis` in memory, are timed from the call to the embedding. With --held-out the first rows
(of MNIST its test images) are left out of the fit and embedded afterwards; their accuracy is by the 10 nearest fitted
rows. Every run is appended to the rows, tests/bench/results/quality.jsonl, with date, commit, versions and machine,
of which the page docs/explanation/results.md and its pictures are made (--seeds 0 only makes these). The rivals'
environment has umap-learn, pacmap and openTSNE; a system without its environment is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from bench_end_to_end import IVIS, PATIENCE, K, neighbour_accuracy, quality, run_ours
from common import append_result, commit, cytometry, mnist, parser, results_file, run_python, say, write_table

from ivis_spark.storage import RunFolder

OURS = {
    "fast": ["preset=fast"],
    "components": ["preset=fast", "data.components=auto"],
    "ivis": ["preset=ivis", f"train.patience={PATIENCE}"],
}
EMBED = """
import importlib.metadata, json, sys, time
import numpy as np
folder, seed, held = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
X = np.load(folder + "/X.npy")
X, T = X[held:], X[:held]
np.random.seed(seed)
{prepare}
started = time.perf_counter()
{fit}
seconds, cpu = time.perf_counter() - started, time.process_time()
np.save(folder + "/Z.npy", np.asarray(Z))
if held:
    np.save(folder + "/T.npy", np.asarray({apply}))
version = importlib.metadata.version("{package}")
print("RESULT " + json.dumps({{"total": seconds, "cpu_seconds": cpu, "version": version}}))
"""
# Package, imports, fit and what applies it to other rows. A seed would keep umap-learn to one thread: its runs differ
# by themselves.
PROGRAMS = {
    "umap-learn": (
        "umap-learn",
        "import umap",
        "model = umap.UMAP().fit(X); Z = model.embedding_",
        "model.transform(T)",
    ),
    "PaCMAP": (
        "pacmap",
        "import pacmap",
        "model = pacmap.PaCMAP(random_state=seed); Z = model.fit_transform(X)",
        "model.transform(T, basis=X)",
    ),
    "openTSNE": (
        "openTSNE",
        "import openTSNE",
        "Z = openTSNE.TSNE(n_jobs=-1, random_state=seed).fit(X)",
        "Z.transform(T)",
    ),
    "Ivis": (
        "ivis_spark",
        "from ivis_spark import Ivis; model = Ivis(preset='fast', n_components=50, random_state=seed, verbose=0)",
        "Z = model.fit_transform(X)",
        "model.transform(T)",
    ),
}
CASES = {"mnist": mnist, "cytometry": cytometry}
TITLES = {"mnist": "MNIST, 70,000 x 784", "cytometry": "Cytometry, 100,000 x 8"}
DOCS = os.path.join(os.path.dirname(__file__), "..", "..", "docs")
HEAD = """# Results

All runs of the comparison with other programs: wall time in seconds, and figures of the embedding (what they mean is
in {{doc}}`metrics`). Dots are runs with one seed each; tables give mean and standard deviation.

{meanings}

```console
$ python tests/bench/bench_quality.py --data DIR --ivis-python PYTHON --rivals-python PYTHON
$ ls docs/_static  # the pictures of this page, which it makes with the page
results_cytometry.png  results_mnist.png
```

The command appends its runs to `tests/bench/results/quality.jsonl`, which has those of all days, and makes this page.
"""
# What the page says of systems and figures that have rows.
MEANINGS = {
    "fast": "System fast is the whole command with `preset=fast`, from starting Python and Spark to the report.",
    "components": "System components is the whole command with `preset=fast` and `data.components=auto`.",
    "ivis": "System ivis is the whole command with `preset=ivis`.",
    "Ivis": "System Ivis is `Ivis(preset='fast', n_components=50)` in memory.",
    "seconds": "Of programs that are not the whole command, only the fit is timed; seconds of a busy machine are left "
    "out.",
    "10-NN": "10-NN is the accuracy of the 10 nearest rows, each left out of its own vote.",
    "held-out 10-NN": "Held-out 10-NN is that of rows which were not in the fit, by the fitted ones.",
}
FIGURES = ("seconds", "trustworthiness@15", "triplets", "kNN", "10-NN", "held-out 10-NN", "centroids")


def main() -> None:
    """Run what was asked for, append the rows, and write the page."""
    made = parser(__doc__, ivis=True)
    made.add_argument("--rivals-python", help="python of an environment with umap-learn, pacmap and openTSNE")
    made.add_argument("--rows", default=results_file("quality"), help="file that a line per run is appended to")
    made.add_argument("--docs", default=DOCS, help="folder whose explanation/results.md and pictures are made")
    made.add_argument("--held-out", type=int, default=0, help="rows left out of the fit and embedded afterwards")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    systems = [*OURS, "ivis 2", *PROGRAMS]
    made.add_argument("--systems", nargs="*", choices=systems, default=systems)
    made.add_argument("--heap", default="2g", help="Spark's JVM heap")
    made.add_argument("--set", action="append", default=[], help="more settings of ours, section.key=value")
    options = made.parse_args()
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            X, labels = CASES[case](options.data)
            np.save(os.path.join(folder, "X.npy"), X)
            write_table(os.path.join(folder, "table"), X[options.held_out :], labels[options.held_out :])
            write_table(os.path.join(folder, "held"), X[: options.held_out], labels[: options.held_out])
            for seed in range(options.seeds):
                for system in options.systems:
                    run_system(case, system, seed, (X, labels), folder, options)
    with open(options.rows, encoding="utf-8") as file:
        runs = [json.loads(line) for line in file]
    with open(os.path.join(options.docs, "explanation", "results.md"), "w", encoding="utf-8") as file:
        file.write(page(runs))
    for case in TITLES:
        plot([run for run in runs if run["case"] == case], os.path.join(options.docs, "_static", f"results_{case}.png"))


def run_system(
    case: str, system: str, seed: int, data: tuple[np.ndarray, np.ndarray], folder: str, options: argparse.Namespace
) -> None:
    """Run one system once, print its row and append it."""
    held = options.held_out
    if system in OURS:
        facts = embed_ours(system, seed, folder, options)
    elif system == "ivis 2" and options.ivis_python and not held:
        facts = {"version": "2.0.11", **run_python(options.ivis_python, IVIS, folder, K, PATIENCE)}
    elif system in PROGRAMS and (system == "Ivis" or options.rivals_python):
        package, prepare, fit, apply = PROGRAMS[system]
        program = EMBED.format(package=package, prepare=prepare, fit=fit, apply=apply)
        facts = run_python(sys.executable if system == "Ivis" else options.rivals_python, program, folder, seed, held)
    else:
        return
    X, labels = data[0][held:], data[1][held:]
    Z = np.load(os.path.join(folder, "Z.npy"))
    figures: dict[str, Any] = quality(X, Z, labels)
    if held:
        others = np.load(os.path.join(folder, "T.npy"))
        figures["held-out 10-NN"] = neighbour_accuracy(Z, labels, others, data[1][:held])
    figures |= {"rows": len(X), "cpu_seconds": facts.get("cpu_seconds")}
    row = {"case": case, "system": system, "seed": seed, "version": facts["version"], "seconds": facts["total"]}
    row = append_result(options.rows, row | figures)
    say(", ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{value}" for name, value in row.items()))


def embed_ours(preset: str, seed: int, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run our command into a run folder of its own and leave the embedding as Z.npy."""
    with tempfile.TemporaryDirectory() as scratch:
        output = os.path.join(scratch, "run")
        settings = [*OURS[preset], f"neighbours.k={K}", f"random_state={seed}", "data.scaling=none", *options.set]
        seconds = run_ours(os.path.join(folder, "table"), output, settings, options.heap)
        names = {"Z.npy": "embeddings"}
        if options.held_out:
            run_ours(os.path.join(folder, "held"), output, [], options.heap, command="embed")
            names["T.npy"] = "embeddings-held"
        for name, stage in names.items():
            data = RunFolder(output).data(stage).removeprefix("file://")
            embedded = pq.read_table(data).sort_by("id")
            np.save(os.path.join(folder, name), np.stack(embedded["embedding"].to_numpy()))
    return {"total": seconds, "version": commit()}


def page(rows: list[dict[str, Any]]) -> str:
    """Return a page with a picture and a table a case: mean and standard deviation of each system's runs."""
    named = {row["system"] for row in rows} | {name for row in rows for name in row}
    meanings = " ".join(meaning for name, meaning in MEANINGS.items() if name in named)
    parts = [HEAD.format(meanings=textwrap.fill(meanings, 116, break_on_hyphens=False))]
    for case, title in TITLES.items():
        own = [row for row in rows if row["case"] == case]
        shown = [name for name in FIGURES if any(name in row for row in own)]
        rule = "|---" * (4 + len(shown))
        parts.append(f"\n## {title}\n\n![Figures of every run](../_static/results_{case}.png)\n\n")
        parts.append(f"| system | version | runs | {' | '.join(shown)} | date |\n{rule}|\n")
        for key, runs in by_system(own).items():
            cells = [spread(run[name] for run in runs if run.get(name) is not None) for name in shown]
            parts.append(f"| {' | '.join(key)} | {len(runs)} | {' | '.join(cells)} | {runs[-1]['date']} |\n")
    return "".join([*parts, "\nMachines: ", "; ".join(dict.fromkeys(row["machine"] for row in rows)), ".\n"])


def by_system(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the rows of each system and version; those with rows held out of the fit are a system of their own."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        name = row["system"] + (", some held out" if "held-out 10-NN" in row else "")
        found.setdefault((name, row["version"]), []).append(row)
    return found


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draw each figure of each run as a dot, a line a system: what repeats, and what does not."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    systems = list(by_system([row for row in rows if "held-out 10-NN" not in row]).items())[::-1]
    shown = [name for name in FIGURES if name not in ("10-NN", "held-out 10-NN")]
    figure, axes = plt.subplots(1, len(shown), figsize=(11, 0.6 + 0.4 * len(systems)), sharey=True)
    for axis, name in zip(axes, shown, strict=True):
        for place, (_, runs) in enumerate(systems):
            found = [run[name] for run in runs if run.get(name) is not None]
            axis.plot(found, [place] * len(found), "o", alpha=0.6, color=f"C{place % 10}")
        axis.set_title(name, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.15, y=0.15)
    axes[0].set_xlim(left=0)
    axes[0].set_yticks(range(len(systems)), [name for (name, _), _ in systems])
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


def spread(values: Iterable[float]) -> str:
    """Return mean and standard deviation."""
    found = np.array(list(values))
    if not len(found):
        return ""
    digits = 1 if found.max() > 2 else 3
    return f"{found.mean():.{digits}f} ± {found.std():.{digits}f}"


if __name__ == "__main__":
    main()
