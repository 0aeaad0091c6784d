"""What the driver collects besides the neighbours' samples (tests/spark/neighbours/test_stage.py), for large tables."""

from __future__ import annotations

import pytest

from ivis_spark.core.knn import regions
from ivis_spark.core.scaling import STATISTICS_BYTES, FeatureStatistics
from ivis_spark.core.sizes import SPLIT_BYTES
from ivis_spark.spark import anchors
from ivis_spark.spark.rows import ids, passes, sizes

RECORD, OBJECT = 1024, 200  # bytes of a file's record without statistics; of a row with a number or two, in Python


@pytest.mark.parametrize(("rows", "dims"), [(10**9, 128), (10**8, 784), (3 * 10**9, 64)])
def test_collected_results_stay_small(rows: int, dims: int) -> None:
    """By the constants of the code: under 256 MiB each."""
    tasks = rows * dims * 4 / SPLIT_BYTES
    statistics = STATISTICS_BYTES * dims
    collected = {
        "records of files": tasks * RECORD,
        "folded statistics and faults": statistics + 3 * dims * OBJECT,
        "hashes that anchors are drawn by": (rows / 2**anchors._GROUP_BITS + 2**anchors._GROUP_BITS) * OBJECT,
        "groups that rows are numbered in": 4 * rows * 4 * dims / ids._GROUP_BYTES * OBJECT,
    }
    assert {name: size for name, size in collected.items() if size > 2**28} == {}
    assert regions._BLOCK_VALUES * 8 < 2**28


def test_a_task_s_record_is_small_without_its_faults() -> None:
    counts = {f"nan {place}": 1 for place in range(784)}
    record = passes._record(path="s3://bucket/" + "x" * 200, digest="{}", rows=1, bytes=1, faults=counts, examples={})
    kept = next(iter(passes.fold_records(iter([record]))))
    assert record.nbytes > 10 * RECORD and kept.nbytes < RECORD


def test_statistics_of_many_tasks_fit_into_one_arrow_batch() -> None:
    """A record of them is no larger than a sparse row, by which the batches of its pass are sized."""
    *_, (_, piece) = FeatureStatistics.empty(3 * passes._PIECE_FEATURES).cut(passes._PIECE_FEATURES)
    assert len(piece.to_bytes()) == 8 + STATISTICS_BYTES * passes._PIECE_FEATURES
    assert len(piece.to_bytes()) <= 1.01 * sizes.features_bytes(10**6, stays_sparse=True)
