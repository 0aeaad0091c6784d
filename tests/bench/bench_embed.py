"""Rows/s of embedding a Parquet table in Spark, next to the scan, a pass-through, and what is usually written.

    python tests/bench/bench_embed.py [--rows 400000] [--dims 100] [--memory-rows 5000000]

All run szubert on all cores and write to Spark's `noop` sink; rounds of all alternate and the best of each counts:

scan          the table is read
pass-through  every batch goes to Python and back (mapInArrow), nothing is done
transform     `IvisModel.transform`: the embedding is added to all columns
without       the same, the features left out, as the `embed` job does it
embed_udf     `withColumn("embedding", embed_udf(model)(...))`
np.stack      a pandas UDF that stacks the rows of a batch, with the network as one writes it in NumPy
np.stack+     the same with our network
Keras         a pandas UDF that stacks the rows of a batch and calls `predict` of a Keras model loaded once a worker

With --memory-rows the table is first embedded as often as it takes to reach so many rows, and the memory of the Python
workers is watched. Each run is appended to tests/bench/results/embed.jsonl with date, commit and machine.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from common import append_result, parser, random_clusters, results_file, say, write_table
from pyspark.sql import DataFrame
from pyspark.sql.functions import pandas_udf

from ivis_spark import Ivis, IvisModel, embed_udf
from ivis_spark.core.dense import DenseNetwork
from ivis_spark.nn.networks import build_encoder, dense_network
from ivis_spark.spark.embedding.embed import embed_frame
from ivis_spark.spark.partitioning import cores
from ivis_spark.spark.session import get_session

ROUNDS = 4
BILLION, BILLION_DIMS = 1e9, 128


def main() -> None:
    """Write a table, embed it in each way and print rates and ratios."""
    made = parser(__doc__, data=False)
    made.add_argument("--rows", type=int, default=400_000)
    made.add_argument("--dims", type=int, default=100)
    made.add_argument("--memory-rows", type=int, default=0)
    options = made.parse_args()
    keras_model = build_encoder("szubert", (options.dims,), 2, 1)
    network = dense_network(keras_model)
    if network is None:
        raise SystemExit("the encoder is not a chain of Dense layers")
    local = Ivis(verbose=0)
    local.encoder_ = keras_model
    model = IvisModel.from_local(local)
    with tempfile.TemporaryDirectory() as folder:
        path, keras_path = os.path.join(folder, "table"), os.path.join(folder, "model.keras")
        write_table(path, random_clusters(options.rows, options.dims, 10)[0])
        keras_model.save(keras_path)
        batches = {"spark.sql.execution.arrow.maxRecordsPerBatch": "10000"}
        spark = get_session("bench-embed", settings=batches)
        table = spark.read.parquet(path)
        ways: dict[str, Callable[[], DataFrame]] = {
            "scan": lambda: table,
            "pass-through": lambda: table.mapInArrow(pass_through, table.schema),
            "transform": lambda: model.transform(table),
            "without": lambda: embed_frame(table, model.to_encoder(), invalid="error"),
            "embed_udf": lambda: table.withColumn("embedding", embed_udf(model, spark)("features")),
            "np.stack": lambda: table.withColumn("embedding", plain_udf(PlainNetwork(network))("features")),
            "np.stack+": lambda: table.withColumn("embedding", plain_udf(network)("features")),
            "Keras": lambda: table.withColumn("embedding", keras_udf(keras_path)("features")),
        }
        if options.memory_rows:  # first: the workers keep the TensorFlow that the others load
            often = spark.read.parquet(*[path] * -(-options.memory_rows // options.rows))
            watch_memory(model.transform(often), options.memory_rows)
        best = dict.fromkeys(ways, np.inf)
        for _ in range(ROUNDS):
            for name, make in ways.items():
                best[name] = min(best[name], seconds(make()))
        tell(best, options.rows, cores(spark), options.dims)
        spark.stop()


def tell(best: dict[str, float], rows: int, n_cores: int, dims: int) -> None:
    """Print rates, ratios, and what a billion rows of 128 features would cost at the rate of `without`."""
    for name, taken in best.items():
        ratios = "".join(f"  {best[other] / taken:5.2f} x {other}" for other in ("pass-through", "np.stack", "Keras"))
        say(f"{name:12} {rows / taken:10,.0f} rows/s{ratios}")
    rates = {name: round(rows / taken) for name, taken in best.items()}
    append_result(results_file("embed"), {"rows": rows, "dims": dims, "cores": n_cores, "rows_per_second": rates})
    # Reading, moving and the first layer grow with the features; taking all of the cost to do so errs upwards.
    rate = rows / best["without"] / n_cores * dims / BILLION_DIMS
    read, written = BILLION * (4 * BILLION_DIMS + 8), BILLION * (4 * 2 + 8)
    say(
        f"1e9 rows x {BILLION_DIMS}: 1e9 / ({rate:,.0f} rows/s a core) / 3600 = {BILLION / rate / 3600:.1f} "
        f"core-hours; reads {read / 1e9:.0f} GB and writes {written / 1e9:.0f} GB, not compressed"
    )


def pass_through(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Do nothing in Python."""
    yield from batches


class PlainNetwork:
    """szubert written down: a product, a sum and SELU a layer."""

    def __init__(self, network: DenseNetwork) -> None:
        self._layers = [(layer.kernel, layer.bias) for layer in network.layers]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        for position, (kernel, bias) in enumerate(self._layers):
            rows = rows @ kernel + bias
            if position < len(self._layers) - 1:
                below = 1.6732632 * (np.exp(np.minimum(rows, 0)) - 1)
                rows = 1.050701 * np.where(rows > 0, rows, below)
        return rows


def plain_udf(network: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Return what is usually written, but for the network."""

    def embed(features: pd.Series) -> pd.Series:
        return pd.Series(list(network(np.stack(features.to_numpy()))))

    embed.__annotations__ = {"features": pd.Series, "return": pd.Series}
    return pandas_udf(embed, "array<float>")


def keras_udf(path: str) -> Any:
    """Return what is usually written."""

    def embed(features: pd.Series) -> pd.Series:
        import builtins

        if not hasattr(builtins, "_bench_model"):
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
            import tensorflow as tf

            from ivis_spark.nn.persistence import load_keras

            tf.config.threading.set_intra_op_parallelism_threads(1)
            builtins._bench_model = load_keras(path)  # type: ignore[attr-defined]
        model = builtins._bench_model  # type: ignore[attr-defined]
        return pd.Series(list(model.predict(np.stack(features.to_numpy()), batch_size=1024, verbose=0)))

    embed.__annotations__ = {"features": pd.Series, "return": pd.Series}
    return pandas_udf(embed, "array<float>")


def seconds(frame: DataFrame) -> float:
    """Run a frame to the end."""
    started = time.perf_counter()
    frame.write.format("noop").mode("overwrite").save()
    return time.perf_counter() - started


def watch_memory(frame: DataFrame, rows: int) -> None:
    """Run a frame and print the most memory that a Python worker held in each quarter of the time."""
    seen: list[tuple[float, float]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.25):
            most = max((resident_mb(pid) for pid in workers()), default=0.0)
            seen.append((time.perf_counter(), most))

    thread = threading.Thread(target=look)
    thread.start()
    taken = seconds(frame)
    stop.set()
    thread.join()
    start, width = seen[0][0], (seen[-1][0] - seen[0][0]) / 4 + 1e-9
    quarters = [max((mb for at, mb in seen if int((at - start) / width) == q), default=0.0) for q in range(4)]
    say(f"{rows:,} rows in {taken:.0f} s; most memory of a worker by quarter: {[round(mb) for mb in quarters]} MB")


def workers() -> list[int]:
    """Return the process ids of Spark's Python workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parents = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            grand = Path("/proc", parents, "stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if b"pyspark.daemon" in command and (b"java" in Path("/proc", grand, "cmdline").read_bytes()):
            ours = int(Path("/proc", grand, "stat").read_text().rsplit(")", 1)[1].split()[1])
            if ours == os.getpid():
                found.append(int(folder.name))
    return found


def resident_mb(pid: int) -> float:
    """Return a process's resident memory."""
    try:
        return int(Path("/proc", str(pid), "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


if __name__ == "__main__":
    main()
