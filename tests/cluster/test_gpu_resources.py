"""The GPU that Spark gives a task: executors of a real local-cluster that were told of two GPUs each.

The machine needs none. Spark hands out whatever addresses its discovery script finds, and what is tested is that a
task's TensorFlow is shown its own address and no other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from clusters import environment

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.cluster

PROGRAM = """
import json, os, sys, tempfile
import keras
import numpy as np
from pyspark import BarrierTaskContext, TaskContext
from ivis_spark.serving.encoder import Encoder, KerasNetwork
from ivis_spark.spark.embedding.embed import load_encoder
from ivis_spark.spark.session import get_session
from ivis_spark.spark.training import gpus_of
from ivis_spark.train.rank import rank_environment

script, amount = sys.argv[1:]
found = {"amount": amount, "discoveryScript": script}
settings = {f"spark.worker.resource.gpu.{name}": value for name, value in found.items()}
if amount != "0":
    settings |= {"spark.executor.resource.gpu.amount": amount, "spark.task.resource.gpu.amount": "1"}
spark = get_session("gpus", master="local-cluster[2,2,1024]", settings={**settings, "spark.ui.enabled": "false"})
layers = [keras.layers.Input((4, 4)), keras.layers.Conv1D(2, 2), keras.layers.Flatten()]
with tempfile.TemporaryDirectory() as folder:
    keras.Sequential(layers).save(folder + "/model.keras")
    content = open(folder + "/model.keras", "rb").read()
network = KerasNetwork(content, input_shape=(4, 4), n_outputs=6)
shared = spark.sparkContext.broadcast(Encoder(network, scaler=None))

def embed(_):
    embedding = load_encoder(shared)(np.zeros((3, 16), np.float32))
    given = TaskContext.get().resources()
    addresses = given["gpu"].addresses if "gpu" in given else ["-1"]
    yield addresses, os.environ["CUDA_VISIBLE_DEVICES"], embedding.shape

def train(_):
    context = BarrierTaskContext.get()
    given = context.resources()
    shown = rank_environment(0, gpus_of(context), 1)["CUDA_VISIBLE_DEVICES"]
    yield given["gpu"].addresses if "gpu" in given else ["-1"], shown

tasks = spark.sparkContext.parallelize(range(4), 4)
found = {body.__name__: tasks.barrier().mapPartitions(body).collect() for body in (embed, train)}  # all 4 at once
print("RESULT", json.dumps(found))
"""


@pytest.mark.parametrize("amount", [2, 0])
def test_tasks_see_the_gpu_that_spark_gave_them_and_no_other(tmp_path: Path, amount: int) -> None:
    script = tmp_path / "discover.sh"
    script.write_text("""#!/bin/sh\necho '{"name": "gpu", "addresses": ["5", "7"]}'\n""")
    script.chmod(0o755)
    command = [sys.executable, "-c", PROGRAM, str(script), str(amount)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("RESULT "))
    assert len(found["embed"]) == len(found["train"]) == 4
    for given, shown, *shape in (*found["embed"], *found["train"]):
        assert given == [shown] and shape in ([], [[3, 6]])
    expected = {"5", "7"} if amount else {"-1"}
    assert {shown for _, shown in found["train"]} == expected
