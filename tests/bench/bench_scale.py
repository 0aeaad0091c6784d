"""Scale in miniature: rows a second, recall and its tail, peak memory, bytes shuffled, files.

    python tests/bench/bench_scale.py [--case rows] [--rows 10000000] [--master 'local-cluster[2,1,2048]'] [--work DIR]

Cases: `journey`, a run of all stages over many rows of a mixture; `rows`, their neighbours alone; `counts`, as many
regions, files and records as 1e9 rows x 128 have, of some hundred rows each; `sample`, rows of 784 features whose
regions are learnt from a hundredth of the usual sample, which must be refused or make regions of like sizes, and deal
no rows by number. Two executors, each a JVM of 1 GB with a Python worker beside it, and a driver of 1 GB. Recall is
the stage's own, against exact search for a sample of rows. Each run is appended to tests/bench/results/scale.jsonl with
date, commit and machine.
"""

from __future__ import annotations

import glob
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import append_result, parser, processor_seconds, results_file, say

from ivis_spark.config import NeighboursConfig, load_config
from ivis_spark.core.knn import regions as quantiser
from ivis_spark.core.knn.regions import Regions
from ivis_spark.core.knn.sizes import build_sizes
from ivis_spark.errors import InputError
from ivis_spark.pipeline import Pipeline
from ivis_spark.spark.neighbours.stage import build_neighbours
from ivis_spark.spark.session import get_session

_FILE_BYTES = 64 << 20
CASES = {
    "journey": (10_000_000, 32),
    "rows": (10_000_000, 32),
    "counts": (1_000_000, 8),
    "sample": (1_000_000, 784),
}
Work = Callable[[Any, str, dict[str, Any]], dict[str, Any]]
SHOWN = "recall short_rows n_regions largest_region median_region margin replicas step_seconds stages model".split()


def main() -> None:
    """Write the rows, build, and print what it took."""
    made = parser(__doc__, data=False)
    made.add_argument("--case", choices=list(CASES), default="rows")
    made.add_argument("--rows", type=int)
    made.add_argument("--k", type=int, default=15)
    made.add_argument("--target-recall", type=float, default=0.93)
    made.add_argument("--master", default="local-cluster[2,1,2048]")
    made.add_argument("--results", default=results_file("scale"), help="file that a line per run is appended to")
    made.add_argument("--work", help="folder for the table and what Spark spills")
    options = made.parse_args()
    rows, dims = CASES[options.case]
    rows = options.rows or rows
    settings = {"k": options.k, "target_recall": options.target_recall}
    if options.case == "counts":
        regions = build_sizes(1e9, 128, NeighboursConfig(), copies=1.0).regions
        # Lists of few neighbours: those of more would lie in more regions of so few rows than a row is copied to
        settings |= {"region_rows": rows // regions, "leaf_rows": 64, "k": 5, "target_recall": 0.7}
    if options.case == "sample":
        regions = build_sizes(1e6, dims, NeighboursConfig(), copies=1.0).regions
        settings |= {"region_rows": rows // regions}  # as many of any number of rows
        quantiser.SAMPLE_BYTES //= 100
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        write_mixture(os.path.join(folder, "rows"), rows, dims, packed=options.case != "journey")
        work = journey if options.case == "journey" else build
        row = {"case": options.case, "rows": rows, "dims": dims, "settings": settings, "master": options.master}
        try:
            row |= measured(work, folder, rows, settings, options.master)
        except InputError as refusal:
            row |= {"refused": str(refusal)}
    for name, value in append_result(options.results, row).items():
        say(f"{name}: {value}")


def measured(work: Work, folder: str, rows: int, settings: dict[str, Any], master: str) -> dict[str, Any]:
    """Work in a session of its own, and return what it took."""
    spark_settings = {
        "spark.driver.memory": "1g",
        "spark.executor.memory": "1g",
        "spark.local.dir": os.path.join(folder, "spill"),
        "spark.ui.enabled": "false",
    }
    spark = get_session("bench-scale", master=master, settings=spark_settings)
    started, cpu = time.perf_counter(), processor_seconds()
    with watched_memory() as peak:
        info = work(spark, folder, settings)
        cpu = processor_seconds() - cpu
    row = {"seconds": round(time.perf_counter() - started, 1), "core_seconds": round(cpu, 1)}
    row |= {"rows_per_core_second": round(rows / cpu), "peak_mb": {name: round(peak[name]) for name in sorted(peak)}}
    row |= {"shuffled_bytes": shuffled_bytes(spark)}
    row |= {"files": sum(len(names) for _, _, names in os.walk(os.path.join(folder, "out")))}
    row |= {name: info[name] for name in SHOWN if name in info}
    row["largest_by_median"] = round(info["largest_region"] / info["median_region"], 2)
    parts = Regions.load(glob.glob(f"{folder}/out/**/index", recursive=True)[0]).parts
    row["hash_sharded"] = int((parts > 1).sum())
    spark.stop()
    return row


def build(spark: Any, folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Find the neighbours, and return the facts of the stage."""
    table = spark.read.parquet(os.path.join(folder, "rows"))
    return build_neighbours(table, NeighboursConfig(**settings), random_state=0, folder=f"file://{folder}/out")


def journey(spark: Any, folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run all stages, and return the facts of the neighbours, and the seconds and bytes of each stage."""
    given = [f"neighbours.{name}={value}" for name, value in settings.items()]
    config = load_config(None, ["data.id_col=id", *given])
    pipeline = Pipeline(f"{folder}/out", config, get_spark=lambda: spark, input_uri=f"{folder}/rows")
    manifests = pipeline.run()
    stages = {
        stage: {
            "seconds": manifest.info["seconds"],
            "bytes": sum(record["bytes"] for record in manifest.files),
            "files": len(manifest.files),
        }
        for stage, manifest in manifests.items()
    }
    trained = {name: manifests["model"].info[name] for name in ("anchors", "epochs")}
    return {**manifests["neighbours"].info, "stages": stages, "model": trained}


def write_mixture(path: str, rows: int, dims: int, *, packed: bool = True) -> None:
    """Write rows of 200 Gaussian clusters of very different weights and widths, some thousand at a time.

    They are packed as by the stage `rows`, or arrays.
    """
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 201)
    centres, widths = rng.random((200, dims)), 0.02 + 0.1 * rng.random(200)
    os.makedirs(path)
    step = _FILE_BYTES // (4 * dims)
    for number, start in enumerate(range(0, rows, step)):
        ids = np.arange(start, min(rows, start + step))
        labels = rng.choice(200, len(ids), p=weights / weights.sum())
        X = (centres[labels] + rng.standard_normal((len(ids), dims)) * widths[labels][:, None]).astype("<f4")
        step_of, kind = (4 * dims, pa.binary()) if packed else (dims, pa.list_(pa.float32()))
        offsets = pa.py_buffer(np.arange(0, len(ids) * step_of + 1, step_of, dtype=np.int32))
        if packed:
            features = pa.Array.from_buffers(kind, len(ids), [None, offsets, pa.py_buffer(X.tobytes())])
        else:
            features = pa.ListArray.from_buffers(kind, len(ids), [None, offsets], children=[pa.array(X.reshape(-1))])
        table = pa.table({"id": ids, "features": features})
        pq.write_table(
            table, os.path.join(path, f"part-{number:04d}.parquet"), row_group_size=max(1024, (8 << 20) // (4 * dims))
        )


@contextmanager
def watched_memory() -> Iterator[dict[str, float]]:
    """Yield the highest resident MB seen of the driver's Python, the JVMs and the Python workers, each the largest."""
    peak: dict[str, float] = {}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1):
            for name, value in resident().items():
                peak[name] = max(peak.get(name, 0.0), value)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak["driver python"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> dict[str, float]:
    """Return the resident MB of the largest process of each kind below this one, from /proc."""
    parents, found = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/cmdline") as command:
                    parents[int(entry)] = int(stat.read().rsplit(")", 1)[1].split()[1])
                    found[int(entry)] = command.read().replace("\0", " ")
            except OSError:
                continue
    sizes: dict[str, float] = {}
    for process, command in found.items():
        above, seen = process, set()
        while above in parents and above != os.getpid() and above not in seen:
            seen.add(above)
            above = parents[above]
        if above != os.getpid() or process == os.getpid():
            continue
        kinds = {
            "CoarseGrainedExecutorBackend": "executor JVM",
            "SparkSubmit": "driver JVM",
            "pyspark": "python worker",
        }
        kind = next((text for name, text in kinds.items() if name in command), None)
        if kind is not None:
            try:
                with open(f"/proc/{process}/statm") as statm:
                    size = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            except OSError:
                continue
            sizes[kind] = max(sizes.get(kind, 0.0), size)
    return sizes


def shuffled_bytes(spark: Any) -> int:
    """Return the bytes that all executors wrote for shuffles."""
    executors = spark.sparkContext._jsc.sc().statusStore().executorList(False)
    return sum(int(executors.apply(i).totalShuffleWrite()) for i in range(executors.size()))


if __name__ == "__main__":
    main()
