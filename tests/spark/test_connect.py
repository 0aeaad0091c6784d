"""Spark Connect: a trained model embeds through it; what needs Spark's executors directly is refused in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest

from ivis_spark.errors import ConfigError
from ivis_spark.spark.session import get_session

pytestmark = pytest.mark.spark
HERE = Path(__file__).parent.parent.parent
NEEDS = ("grpc", "grpc_status", "google.rpc")
# PySpark 3.5 does not hold Spark Connect's server.
MISSING = int(pyspark.__version__.partition(".")[0]) < 4 or not all(
    importlib.util.find_spec(name.partition(".")[0]) and importlib.util.find_spec(name) for name in NEEDS
)
PROGRAM = """
import json, sys
import numpy as np
from pyspark.sql import SparkSession
from ivis_spark import EmbeddingEvaluator, IvisEstimator, IvisModel
from ivis_spark.config import load_config
from ivis_spark.errors import ConfigError
from ivis_spark.pipeline import Pipeline
from ivis_spark.spark.session import get_session, is_connect
from small_model import small_model

settings = {"spark.ui.enabled": "false", "spark.sql.warehouse.dir": sys.argv[1]}
builder = SparkSession.builder.remote("local[2]")
for name, value in settings.items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()
assert is_connect(spark)
X = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
frame = spark.createDataFrame([(i, x.tolist()) for i, x in enumerate(X)], "id long, features array<float>")
model = IvisModel(small_model())
rows = model.transform(frame).orderBy("id").collect()
np.testing.assert_allclose([row["embedding"] for row in rows], model.to_encoder()(X), atol=1e-5)
for _ in range(2):
    model.write().overwrite().save(sys.argv[1] + "/model")
model = IvisModel.load(sys.argv[1] + "/model")
assert model.to_encoder()(X).shape == (50, 2)
IvisEstimator(k=7).save(sys.argv[1] + "/estimator")
assert IvisEstimator.load(sys.argv[1] + "/estimator").getK() == 7
assert EmbeddingEvaluator(k=5).evaluate(model.transform(frame)) > 0.5
pipeline = Pipeline(sys.argv[2], load_config(None, ["evaluate.k=5"]), get_spark=lambda: spark)
report = pipeline.evaluate()
refused = []
config = load_config(None, [])
for call in (
    lambda: IvisEstimator().fit(frame),
    lambda: get_session("stage"),
    lambda: pipeline.embed("again"),
    lambda: Pipeline(sys.argv[1] + "/new", config, get_spark=lambda: spark, source=frame).run(),
):
    try:
        call()
    except ConfigError as err:
        refused.append(str(err))
print("RESULT", json.dumps({"rows": len(rows), "refused": refused, "report": report.info}))
"""


@pytest.mark.slow
@pytest.mark.skipif(MISSING, reason="needs PySpark 4 with pyspark[connect]")
def test_a_model_embeds_through_a_connect_server(tmp_path: Path) -> None:
    paths = [str(HERE), str(HERE / "tests" / "serving")]
    # PySpark gives its server a free port only to those who test it.
    environment = {**os.environ, "SPARK_TESTING": "1", "PYSPARK_PYTHON": sys.executable}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    run = shutil.copytree(HERE / "tests" / "kept_runs" / "format-1", tmp_path / "run")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(run)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    assert found["rows"] == 50 and len(found["refused"]) == 4
    assert found["report"]["trustworthiness"] > 0.5 and (run / "report" / "manifest.json").exists()
    assert all("Spark Connect" in each and "IvisModel (transform" in each for each in found["refused"])


def test_a_connect_master_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sc://host:15002 is Spark Connect.*classic master.*IvisModel \(transform"):
        get_session("stage", master="sc://host:15002")
