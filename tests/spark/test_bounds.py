"""What the driver collects besides the neighbours' samples (tests/spark/neighbours/test_stage.py), for large tables."""

from __future__ import annotations

import pytest

from ivis_spark.core.knn import regions
from ivis_spark.core.scaling import FeatureStatistics
from ivis_spark.core.sizes import SPLIT_BYTES
from ivis_spark.spark import anchors
from ivis_spark.spark.rows import ids, ingest, passes

RECORD, OBJECT = 1024, 200  # bytes of a file's record without statistics; of a row with a number or two, in Python


@pytest.mark.parametrize(("rows", "dims"), [(10**9, 128), (10**8, 784), (3 * 10**9, 64)])
def test_collected_results_stay_small(rows: int, dims: int) -> None:
    """By the constants of the code: under 256 MiB each."""
    tasks = rows * dims * 4 / SPLIT_BYTES
    statistics = len(FeatureStatistics.empty(dims).to_bytes())
    collected = {
        "records of files": tasks * RECORD,
        "folded statistics and faults": ingest._MOST_FOLDS * (statistics + 3 * dims * OBJECT),
        "hashes that anchors are drawn by": (rows / 2**anchors._GROUP_BITS + 2**anchors._GROUP_BITS) * OBJECT,
        "groups that rows are numbered in": 4 * rows * 4 * dims / ids._GROUP_BYTES * OBJECT,
    }
    assert {name: size for name, size in collected.items() if size > 2**28} == {}
    assert regions._BLOCK_VALUES * 8 < 2**28


def test_a_task_s_record_is_small_without_its_statistics() -> None:
    counts = {f"nan {place}": 1 for place in range(784)}
    record = passes._record("s3://bucket/" + "x" * 200, "{}", 1, 1, 0, FeatureStatistics.empty(784), counts, {})
    kept = next(iter(passes.fold_records(iter([record]))))
    assert record.nbytes > 20 * RECORD and kept.nbytes < RECORD
