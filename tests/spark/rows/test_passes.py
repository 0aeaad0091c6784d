"""Records of ingest's tasks: what the driver collects of each stays small."""

from __future__ import annotations

import numpy as np

from ivis_spark.core.scaling import FeatureStatistics
from ivis_spark.spark.rows.passes import _record, fold_records


def test_statistics_and_faults_of_tasks_are_folded() -> None:
    """Of 784 columns with a fault each, the driver collects one set of counts, not one per task."""
    tasks, rows = [], np.random.default_rng(0).normal(size=(50, 784))
    for number in range(50):
        counts = {f"nan {place}": 1 + number for place in range(784)}
        facts = {"path": f"file-{number}", "digest": "{}", "rows": 10, "bytes": 100, "dropped": 1}
        tasks.append(_record(**facts, faults=counts, examples={"nan": f"id-{99 - number}"}))
        for first, part in FeatureStatistics.of(rows[[number]]).cut(500):
            tasks.append(_record(first=first, statistics=part.to_bytes()))
    records = [record for batch in fold_records(iter(tasks)) for record in batch.to_pylist()]
    files, (folded, *pieces) = records[:50], records[50:]
    assert [file["path"] for file in files] == [f"file-{number}" for number in range(50)]
    assert all(file["rows"] == 10 and file["dropped"] == 1 for file in files)
    assert not any(file[name] for file in files for name in ("statistics", "faults", "examples"))
    assert folded["path"] is None and folded["rows"] == folded["dropped"] == 0
    assert dict(folded["faults"]) == {f"nan {place}": sum(range(1, 51)) for place in range(784)}
    assert dict(folded["examples"]) == {"nan": "id-50"}
    assert [piece["first"] for piece in pieces] == [0, 500] and not any(piece["path"] for piece in pieces)
    whole = FeatureStatistics.joined([FeatureStatistics.from_bytes(piece["statistics"]) for piece in pieces])
    assert whole.count == 50
    np.testing.assert_allclose(whole.mean, rows.mean(axis=0))
    np.testing.assert_array_equal(whole.high, rows.max(axis=0))
