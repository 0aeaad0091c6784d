"""Ranks as tasks of a Spark session. Killing them, and clusters of several machines' shape: tests/cluster."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.tf, pytest.mark.slow]

from triplet_blocks import write_blocks  # noqa: E402

from ivis_spark.config import TrainConfig  # noqa: E402
from ivis_spark.errors import ConfigError, IvisError, TrainingError  # noqa: E402
from ivis_spark.nn.persistence import load_model  # noqa: E402
from ivis_spark.spark import training  # noqa: E402
from ivis_spark.spark.training import count_slots, train_on_ring  # noqa: E402
from ivis_spark.train.job import TrainingJob  # noqa: E402


def make_job(folder: Path, **settings) -> TrainingJob:
    options = {"backend": "tensorflow", "num_ranks": 2, "epochs": 3, "batch_size": 64, **settings}
    return TrainingJob(
        write_blocks(folder / "blocks", [3, 5, 4]),
        TrainConfig(**options),
        label_values=None,
        random_state=3,
        model_uri=str(folder / "model"),
        checkpoint_uri=str(folder / "checkpoints"),
    )


@pytest.mark.horovod
@pytest.mark.parametrize("backend", ["horovod", "tensorflow"])
def test_ranks_train_in_tasks_and_the_driver_hears_of_it(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture, backend: str
) -> None:
    pytest.importorskip(backend)
    caplog.set_level(logging.INFO)
    facts = train_on_ring(spark, make_job(tmp_path, backend=backend))
    assert (facts["ranks"], facts["epochs"], facts["restarts"]) == (2, 3, 0)
    assert facts["loss"][-1] < facts["loss"][0]
    assert "epoch 3/3" in caplog.text
    assert load_model(str(tmp_path / "model")).encoder.output_shape == (None, 2)
    assert not list((tmp_path / "checkpoints").glob("progress*"))


def test_more_ranks_than_slots_are_refused_at_once(spark: SparkSession, tmp_path: Path) -> None:
    assert count_slots(spark) == 2
    with pytest.raises(ConfigError, match=r"num_ranks=4 needs as many task slots at once; the session has 2"):
        train_on_ring(spark, make_job(tmp_path, num_ranks=4))


@pytest.mark.parametrize(
    ("results", "error", "message"),
    [
        ([{"rank": 0, "kind": "lost", "error": "a peer"}, {"rank": 1, "kind": "killed", "error": "signal 9"}], None,
         "rank 1 on b: signal 9"),
        ([{"rank": 0, "kind": "lost", "error": "a peer"}, {"rank": 1, "kind": "raised", "error": "KeyError: 'x'"}],
         TrainingError, r"rank 1 on b raised KeyError: 'x'"),
        ([{"rank": 0, "facts": {}}, {"rank": 1, "kind": "refused", "type": "ConfigError", "error": "no"}],
         ConfigError, "rank 1 on b: no"),
        ([{"rank": None, "kind": "lost", "error": "an executor was lost"}], None, "ranks were lost: an executor"),
    ],
)  # fmt: skip
def test_the_rank_that_began_it_is_named(results: list, error: type[IvisError] | None, message: str) -> None:
    hosts = [{"host": host, **result} for host, result in zip("ab", results, strict=False)]
    if error is None:
        assert training._explain(hosts).startswith(message)
    else:
        with pytest.raises(error, match=message):
            training._explain(hosts)
