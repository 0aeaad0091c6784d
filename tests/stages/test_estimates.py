"""What `plan` says of tasks, by the constants of the code that works so."""

from __future__ import annotations

import pytest

from ivis_spark.config import load_config
from ivis_spark.core.sizes import BATCH_BYTES, PYTHON_BYTES
from ivis_spark.stages import embeddings, model
from ivis_spark.stages.estimate import Cluster

CLUSTER = Cluster(10, 8, 32 * 2**30)


def test_a_batch_of_wide_rows_is_bounded_by_bytes() -> None:
    tasks = [embeddings.estimate(1e6, dims, load_config(), CLUSTER, {}).task_bytes for dims in (784, 100_000)]
    assert tasks[0] == PYTHON_BYTES + 3 * 10_000 * 4 * (784 + 2)
    assert tasks[1] == PYTHON_BYTES + 3 * BATCH_BYTES


@pytest.mark.parametrize(("batch", "ahead"), [(1_000, 5), (100_000, 2)])
def test_batches_that_are_ready_count_towards_a_rank(batch: int, ahead: int) -> None:
    """Of 32 MiB, but two at least."""
    few, many = (
        model.estimate(1e7, 784, load_config(None, [f"train.batch_size={size}"]).for_rows(10**7), CLUSTER, {})
        for size in (2, batch)
    )
    of_few = 64 * 2 * 4 * 784 * 2
    assert many.task_bytes - few.task_bytes == ahead * 2 * 4 * 784 * batch - of_few
