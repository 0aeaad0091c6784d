"""Rows/s of embedding a Parquet table in Spark, next to a plain pandas UDF that stacks the rows of a batch.

    python tests/bench/bench_embed.py [--rows 400000] [--dims 100]

Both run the same forward pass (szubert in NumPy) on all cores and write to Spark's `noop` sink, so what differs is how
rows get from Spark to the network and back. Rounds of all alternate; the best of each counts.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from common import parser, random_clusters, say, write_table
from pyspark.sql import DataFrame
from pyspark.sql.functions import pandas_udf

from ivis_spark.core.dense import DenseNetwork
from ivis_spark.nn.networks import build_encoder, dense_network
from ivis_spark.spark.embed import Encoder, embed_frame, embed_udf
from ivis_spark.spark.session import get_session

ROUNDS = 4


def main() -> None:
    """Write a table, embed it in each way and print rates and ratios."""
    made = parser(__doc__, data=False)
    made.add_argument("--rows", type=int, default=400_000)
    made.add_argument("--dims", type=int, default=100)
    options = made.parse_args()
    network = dense_network(build_encoder("szubert", (options.dims,), 2, 1))
    if network is None:
        raise SystemExit("the encoder is not a chain of Dense layers")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "table")
        write_table(path, random_clusters(options.rows, options.dims, 10)[0])
        spark = get_session("bench-embed")
        table = spark.read.parquet(path)
        encoder = Encoder(network, None)
        ways: dict[str, Callable[[], DataFrame]] = {
            "embed_frame": lambda: embed_frame(table, encoder, invalid="error"),
            "embed_udf": lambda: table.select("id", embed_udf(spark, encoder)("features").alias("embedding")),
            "np.stack": lambda: table.select("id", plain_udf(network)("features").alias("embedding")),
            "scan": lambda: table,
        }
        best = dict.fromkeys(ways, np.inf)
        for _ in range(ROUNDS):
            for name, make in ways.items():
                best[name] = min(best[name], seconds(make()))
        spark.stop()
    for name, taken in best.items():
        say(f"{name:12} {options.rows / taken:10,.0f} rows/s  {best['np.stack'] / taken:5.2f} x np.stack")


def plain_udf(network: DenseNetwork) -> Any:
    """Return what is usually written."""

    def embed(features: pd.Series) -> pd.Series:
        return pd.Series(list(network(np.stack(features.to_numpy()))))

    embed.__annotations__ = {"features": pd.Series, "return": pd.Series}
    return pandas_udf(embed, "array<float>")


def seconds(frame: DataFrame) -> float:
    """Run a frame to the end."""
    started = time.perf_counter()
    frame.write.format("noop").mode("overwrite").save()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
