"""Embedding with only `ivis_spark[spark]`: no process imports TensorFlow, Horovod, Petastorm or Annoy.

`make test-embed` runs this in an environment of its own with the newest PySpark and pyarrow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow]

# Imported by every Python process, driver and workers, before anything else.
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "horovod", "petastorm", "annoy"):
            raise ImportError(name + " must not be imported to embed")

sys.meta_path.insert(0, Block())
"""
PROGRAM = """
import json, sys
import numpy as np
import pyarrow, pyspark
from ivis_spark import IvisModel, cli, embed_udf
from ivis_spark.serving.folder import ModelFolder
from ivis_spark.spark.session import get_session
from ivis_spark.storage import RunFolder

sys.path.insert(0, sys.argv[2])
from small_model import small_model

folder = sys.argv[1]
spark = get_session("alone", master="local[2]", settings={"spark.ui.enabled": "false"})
X = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
schema = "id long, features array<float>"
frame = spark.createDataFrame([(i, x.tolist()) for i, x in enumerate(X)], schema).repartition(4)
IvisModel(small_model(), scoresCol="scores").save(folder + "/model")
model = IvisModel.load(folder + "/model")
expected = model.to_encoder()(X)

def check(found, column="embedding"):
    rows = found.orderBy("id").collect()
    np.testing.assert_allclose([row[column] for row in rows], expected, atol=1e-5)
    return len(rows)

rows = model.transform(frame).orderBy("id").collect()
np.testing.assert_allclose([row["scores"] for row in rows], model.to_encoder().score(expected), atol=1e-5)
done = {"transform": check(model.transform(frame))}
spark.udf.register("ivis_embed", embed_udf(model))
frame.createOrReplaceTempView("t")
done["sql"] = check(spark.sql("SELECT id, ivis_embed(features) AS embedding FROM t"))
frame.write.parquet(folder + "/table")
code = cli.main(["embed", "--input", folder + "/table", "--output", folder + "/model", "--quiet"])
assert code == 0, code
done["job"] = check(spark.read.parquet(RunFolder(folder + "/model").data("embeddings-table")))
print("RESULT", json.dumps({**done, "pyspark": pyspark.__version__, "pyarrow": pyarrow.__version__}))
"""


def test_embedding_imports_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK)
    root = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join([str(tmp_path / "site"), root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable},
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(lines[0].removeprefix("RESULT "))
    assert (found["transform"], found["sql"], found["job"]) == (500, 500, 500)
