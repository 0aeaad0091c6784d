"""Scale in miniature: rows a second, recall and its tail, peak memory, bytes shuffled, files.

    python tests/bench/bench_scale.py [--case rows] [--rows 10000000] [--master 'local-cluster[2,1,2048]'] [--work DIR]

Cases: `journey`, a run of all stages over many rows of a mixture; `rows`, their neighbours alone; `counts`, as many
regions, files and records as 1e9 rows x 128 have, of some hundred rows each; `sample`, rows of 784 features whose
regions are learnt from a hundredth of the usual sample, which must be refused or make regions of like sizes, and deal
no rows by number. Two executors, each a JVM of 1 GB with a Python worker beside it, and a driver of 1 GB. Recall is
the stage's own, against exact search for a sample of rows.
"""

from __future__ import annotations

import glob
import json
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
from common import parser, say

from ivis_spark.config import NeighboursConfig, load_config
from ivis_spark.core.knn import regions as quantiser
from ivis_spark.core.knn.regions import Regions
from ivis_spark.core.knn.sizes import build_sizes
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
SHOWN = ("n_regions", "largest_region", "median_region", "margin", "replicas", "step_seconds")


def main() -> None:
    """Write the rows, build, and print what it took."""
    made = parser(__doc__, data=False)
    made.add_argument("--case", choices=list(CASES), default="rows")
    made.add_argument("--rows", type=int)
    made.add_argument("--k", type=int, default=15)
    made.add_argument("--target-recall", type=float, default=0.93)
    made.add_argument("--master", default="local-cluster[2,1,2048]")
    made.add_argument("--work", help="folder for the table and what Spark spills")
    options = made.parse_args()
    rows, dims = CASES[options.case]
    rows = options.rows or rows
    settings = {"k": options.k, "target_recall": options.target_recall}
    if options.case == "counts":
        regions = build_sizes(1e9, 128, NeighboursConfig(), copies=1.0).regions
        settings |= {"region_rows": rows // regions, "leaf_rows": 64}
    if options.case == "sample":
        quantiser.SAMPLE_BYTES //= 100
        regions = build_sizes(1e6, dims, NeighboursConfig(), copies=1.0).regions
        settings |= {"region_rows": rows // regions}  # as many of any number of rows
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        write_mixture(os.path.join(folder, "rows"), rows, dims, packed=options.case != "journey")
        work = journey if options.case == "journey" else build
        measured(work, folder, rows, dims, settings, options.master)


def measured(work: Work, folder: str, rows: int, dims: int, settings: dict[str, Any], master: str) -> None:
    """Work in a session of its own, and print what it took."""
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
    seconds = time.perf_counter() - started
    say(f"{rows:,} x {dims}, {settings}: {seconds:.0f} s, {cpu:.0f} core-seconds, {rows / cpu:,.0f} rows/s a core")
    say(f"recall {info['recall']}, short rows {info['short_rows']}")
    say("peak MB: " + ", ".join(f"{name} {value:.0f}" for name, value in sorted(peak.items())))
    files = sum(len(names) for _, _, names in os.walk(os.path.join(folder, "out")))
    say(f"shuffled {shuffled_bytes(spark) / 2**30:.2f} GiB, {files} files")
    say(json.dumps({name: info[name] for name in SHOWN}))
    dealt = int((Regions.load(glob.glob(f"{folder}/out/**/index", recursive=True)[0]).parts > 1).sum())
    say(f"largest region {info['largest_region'] / info['median_region']:.2f} times the median; {dealt} hash-sharded")
    spark.stop()


def build(spark: Any, folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Find the neighbours, and return the facts of the stage."""
    table = spark.read.parquet(os.path.join(folder, "rows"))
    return build_neighbours(table, NeighboursConfig(**settings), random_state=0, folder=f"file://{folder}/out")


def journey(spark: Any, folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run all stages, print the seconds and bytes of each, and return the facts of the neighbours."""
    given = [f"neighbours.{name}={value}" for name, value in settings.items()]
    config = load_config(None, ["data.id_col=id", *given])
    pipeline = Pipeline(f"{folder}/out", config, get_spark=lambda: spark, input_uri=f"{folder}/rows")
    manifests = pipeline.run()
    for stage, manifest in manifests.items():
        stored = sum(record["bytes"] for record in manifest.files)
        say(f"{stage:<12}{manifest.info['seconds']:8.1f} s {stored / 2**20:8.1f} MiB {len(manifest.files):6} files")
    say(f"trained on {manifests['model'].info['anchors']:,} anchors, {manifests['model'].info['epochs']} epochs")
    return manifests["neighbours"].info


def processor_seconds() -> float:
    """Return the processor seconds of all processes of this session so far, those that ended included."""
    ticks = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                parts = stat.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(parts[3]) == os.getsid(0):
            ticks += sum(map(int, parts[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


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
