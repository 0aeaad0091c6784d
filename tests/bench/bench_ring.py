"""Triplets/s of 2 ranks of 1 core against 1 rank of 1 core, by every backend, and where the time of a step goes.

    python tests/bench/bench_ring.py [--data DIR] [--batch 1024] [--epochs 6] [--rounds 3] [--backends tensorflow]

szubert on MNIST (random rows without --data), blocks read as in training; every rank is pinned to a core of its own.
Rounds of all settings alternate; the best epoch of each round counts, since other load only slows it down, and the
median of the rounds.

The speed-up is of the ranks together over one alone. The share of messages is what a step is longer than that of the
same two ranks training apart, at the same time, without messages. The wait share is what an epoch's steps spend in the
call that takes the next batch.

The table is arithmetic, not measurement: the efficiency t / (t + c) at N ranks, each with as many triplets a step as
here, for a step of t seconds without messages and a ring that sends M bytes of gradients in
c = m + 2 (N - 1) / N * M / bandwidth + 2 (N - 1) * latency, where m is what this backend's message costs here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench_reader import write_blocks
from common import mnist, parser, say

from ivis_spark.train.backends import Meeting, load_backend
from ivis_spark.train.rank import rank_environment

# Bytes a second and seconds a message.
NETWORKS = {"25 Gb/s Ethernet, TCP": (25e9 / 8, 30e-6), "NVLink, 300 GB/s": (300e9, 3e-6)}

PROGRAM = """
import os, sys, json, time
os.sched_setaffinity(0, {int(os.environ["IVIS_SPARK_RANK"]) % os.cpu_count()})
import keras
import numpy as np
import tensorflow as tf
from ivis_spark.config import TrainConfig
from ivis_spark.train.dataset.blocks import Position, TripletBlocks
from ivis_spark.train.dataset.block_dataset import block_dataset
from ivis_spark.nn.losses import triplet_loss
from ivis_spark.nn.model import TripletModel
from ivis_spark.nn.networks import build_encoder
from ivis_spark.train.backends import load_backend
from ivis_spark.train.loop import fit

mode, batch, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
blocks = TripletBlocks(**json.loads(sys.argv[4]))
config = TrainConfig(epochs=epochs, patience=epochs, batch_size=batch, gradient_compression=sys.argv[5])
backend = load_backend("local" if mode == "alone" else sys.argv[6])(config)
sums = backend.sum_gradients, backend.sum_values
if mode == "apart":
    backend.sum_gradients = backend.sum_values = lambda values: values

class Clock(keras.callbacks.Callback):
    seconds = []
    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()
    def on_epoch_end(self, epoch, logs=None):
        Clock.seconds.append(time.perf_counter() - self.start)

model = TripletModel(build_encoder("szubert", (blocks.dims,), 2, 1), triplet_loss("pn"), reducer=backend)
position = Position(backend.rank, backend.n_ranks)
steps = blocks.steps_per_epoch(batch)
read = lambda: block_dataset(blocks, batch_size=batch, random_state=0, negatives=config.negatives, position=position)
fit(model, read(), steps_per_epoch=steps, config=config, callbacks=[Clock()])

@tf.function
def waited(batches, steps):
    total = tf.constant(0.0, tf.float64)
    for _ in tf.range(steps):
        tf.autograph.experimental.set_loop_options(parallel_iterations=1)
        start = tf.timestamp()
        batch = next(batches)
        total += tf.timestamp() - start
        model.train_step(batch)
    return total

batches = iter(read())
waited(batches, tf.constant(4))
start = time.perf_counter()
wait = float(waited(batches, tf.constant(steps)))
share = wait / (time.perf_counter() - start)
size = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
backend.sum_gradients, backend.sum_values = sums
backend.leave()
time.sleep(2)  # others may still read the last message from this one
found = {"seconds": Clock.seconds[1:], "wait": share, "steps": steps, "weights": size}
print("RESULT " + json.dumps(found), flush=True)
os._exit(0)
"""


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=1024, help="triplets of a step, over all ranks")
    made.add_argument("--epochs", type=int, default=6)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--compression", choices=["none", "fp16"], default="none")
    known = [name for name in ("horovod", "tensorflow") if importlib.util.find_spec(name)]
    made.add_argument("--backends", nargs="+", default=known)
    options = made.parse_args()
    settings = [("alone", "local"), *((mode, name) for name in options.backends for mode in ("together", "apart"))]
    seconds: dict[tuple[str, str], list[float]] = {setting: [] for setting in settings}
    waits: dict[tuple[str, str], list[float]] = {setting: [] for setting in settings}
    with tempfile.TemporaryDirectory() as folder:
        X, _ = mnist(options.data)
        blocks = write_blocks(folder, len(X), X.shape[1], X)
        program = os.path.join(folder, "rank.py")  # TensorFlow compiles loops of functions whose source is in a file
        with open(program, "w", encoding="utf-8") as file:
            file.write(PROGRAM)
        for _ in range(options.rounds):
            for setting in settings:
                results = run(program, *setting, json.dumps(vars(blocks)), options)
                epochs = [max(times) for times in zip(*(each["seconds"] for each in results), strict=True)]
                seconds[setting].append(min(epochs) / results[0]["steps"])
                waits[setting].append(max(each["wait"] for each in results))
    step = {setting: statistics.median(times) for setting, times in seconds.items()}
    for (mode, name), time in step.items():
        say(
            f"{mode:9} {name:10}: {options.batch / time:9,.0f} triplets/s, {1000 * time:.2f} ms a step, waiting for "
            f"data {statistics.median(waits[mode, name]):.1%}"
        )
    size = 4 * results[0]["weights"]
    for name in options.backends:
        alone, together, apart = step["alone", "local"], step["together", name], step["apart", name]
        message = together - apart
        say(f"{name}: speed-up {alone / together:.2f}, messages {message / together:.1%} of a step ({size >> 10} KiB)")
        for network, (bandwidth, latency) in NETWORKS.items():
            costs = {n: message + 2 * (n - 1) / n * size / bandwidth + 2 * (n - 1) * latency for n in (8, 64, 512)}
            shares = ", ".join(f"{apart / (apart + cost):.0%} at {n} ranks" for n, cost in costs.items())
            say(f"  expected over {network}: {shares}")


def run(program: str, mode: str, name: str, blocks: str, options: Any) -> list[dict[str, Any]]:
    """Run the ranks of one setting and return what each measured."""
    count = 1 if mode == "alone" else 2
    barrier, texts = threading.Barrier(count), [""] * count

    def start(rank: int) -> str:
        def share(text: str) -> list[str]:
            texts[rank] = text
            barrier.wait()
            return list(texts)

        with load_backend(name).meet(Meeting(rank, ["localhost"] * count, share, 60, 60)) as joining:
            environment = {**os.environ, **rank_environment(rank, [], 1), **joining}
            command = [sys.executable, program, mode, str(options.batch), str(options.epochs), blocks]
            command += [options.compression, name]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            barrier.wait()
        return done.stdout

    with ThreadPoolExecutor(count) as pool:
        outputs = list(pool.map(start, range(count)))
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("RESULT ")]
    if len(lines) != count:
        raise SystemExit(f"{mode} {name}: {count - len(lines)} of {count} ranks failed, see above")
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


if __name__ == "__main__":
    main()
