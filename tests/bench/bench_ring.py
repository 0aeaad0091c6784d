"""Triplets/s of 2 ranks of 1 core against 1 rank of 1 core, and where the time of a step goes.

    python tests/bench/bench_ring.py [--data DIR] [--batch 1024] [--epochs 6] [--rounds 3]

szubert on MNIST (random rows without --data), blocks read by Petastorm as in training; every rank is pinned to a core
of its own. Rounds of all settings alternate; the best epoch of each counts, since other load only slows it down.

together/alone is the speed-up. The allreduce share is what a step is longer than that of the same two ranks training
apart, at the same time, without messages. The wait share is what an epoch's steps spend in the call that takes the next
batch.

The last lines are arithmetic, not measurement: the efficiency t / (t + c) at N ranks, each with as many triplets a step
as here, for a step of t seconds without messages and a ring that sends M bytes of gradients in
c = 2 (N - 1) / N * M / bandwidth + 2 (N - 1) * latency.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from bench_reader import write_blocks
from common import mnist, parser, say

from ivis_spark.train.backends.horovod import device_environment, rendezvous, ring_environment

# Bytes a second and seconds a message.
NETWORKS = {"25 Gb/s Ethernet, TCP": (25e9 / 8, 30e-6), "NVLink, 300 GB/s": (300e9, 3e-6)}

PROGRAM = """
import os, sys, json, time
os.sched_setaffinity(0, {int(os.environ["HOROVOD_RANK"]) % os.cpu_count()})
import keras
import numpy as np
import tensorflow as tf
from ivis_spark.config import TrainConfig
from ivis_spark.train.reading.blocks import Place, TripletBlocks
from ivis_spark.train.reading.reader import block_dataset
from ivis_spark.nn.losses import triplet_loss
from ivis_spark.nn.model import TripletModel
from ivis_spark.nn.networks import build_encoder
from ivis_spark.train.backends.horovod import Backend, HorovodBackend
from ivis_spark.train.loop import fit

mode, batch, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
blocks = TripletBlocks(**json.loads(sys.argv[4]))
backend = Backend() if mode == "alone" else HorovodBackend(sys.argv[5])
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
place = Place(backend.rank, backend.n_ranks)
steps = blocks.steps_per_epoch(batch)
config = TrainConfig(epochs=epochs, patience=epochs, batch_size=batch)
read = lambda: block_dataset(blocks, batch_size=batch, random_state=0, negatives=config.negatives, place=place)
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
    options = made.parse_args()
    ranks = {"alone": 1, "together": 2, "apart": 2}
    best: dict[str, float] = {}
    waits: dict[str, list[float]] = {mode: [] for mode in ranks}
    with tempfile.TemporaryDirectory() as folder:
        X, _ = mnist(options.data)
        blocks = write_blocks(folder, len(X), X.shape[1], X)
        program = os.path.join(folder, "rank.py")  # TensorFlow compiles loops of functions whose source is in a file
        with open(program, "w", encoding="utf-8") as file:
            file.write(PROGRAM)
        for _ in range(options.rounds):
            for mode, count in ranks.items():
                results = run(program, mode, count, json.dumps(vars(blocks)), options)
                epoch = min(max(times) for times in zip(*(each["seconds"] for each in results), strict=True))
                best[mode] = min(epoch, best.get(mode, epoch))
                waits[mode].append(max(each["wait"] for each in results))
    steps, weights = results[0]["steps"], results[0]["weights"]
    for mode, seconds in best.items():
        rate = steps * options.batch / seconds
        say(
            f"{mode:9} {ranks[mode]} x 1 core: {rate:9,.0f} triplets/s, {1000 * seconds / steps:.2f} ms a step, "
            f"waiting for data {min(waits[mode]):.1%}"
        )
    say(f"together / alone: {best['alone'] / best['together']:.2f}")
    share = 1 - best["apart"] / best["together"]
    say(f"allreduce share of a step: {share:.1%} ({4 * weights / 1024:.0f} KiB of gradients)")
    for name, (bandwidth, latency) in NETWORKS.items():
        step, size = best["apart"] / steps, 4 * weights
        efficiency = {
            n: step / (step + 2 * (n - 1) / n * size / bandwidth + 2 * (n - 1) * latency) for n in (8, 64, 512)
        }
        say(f"expected over {name}: " + ", ".join(f"{share:.0%} at {n} ranks" for n, share in efficiency.items()))


def run(program: str, mode: str, count: int, blocks: str, options: Any) -> list[dict[str, Any]]:
    """Run the ranks of one setting and return what each measured."""
    with rendezvous() if mode != "alone" else contextlib.nullcontext(0) as port:
        processes = []
        for rank in range(count):
            environment = {
                **os.environ,
                **device_environment([], 1),
                **ring_environment(rank, ["localhost"] * count, port, stall_timeout_seconds=60),
                "TF_CPP_MIN_LOG_LEVEL": "2",
            }
            command = [sys.executable, program, mode, str(options.batch), str(options.epochs), blocks]
            command.append(options.compression)
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in processes]
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("RESULT ")]
    if len(lines) != count:
        raise SystemExit(f"{mode}: {count - len(lines)} of {count} ranks failed, see above")
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


if __name__ == "__main__":
    main()
