"""Records of ingest's tasks: what the driver collects of each stays small."""

from __future__ import annotations

from ivis_spark.core.scaling import FeatureStatistics
from ivis_spark.spark.rows.passes import _record, fold_records


def test_statistics_and_faults_of_tasks_are_folded() -> None:
    """Of 784 columns with a fault each, the driver collects one set of counts, not one per task."""
    tasks = []
    for number in range(50):
        counts = {f"nan {place}": 1 + number for place in range(784)}
        statistics = FeatureStatistics.empty(784)
        tasks.append(_record(f"file-{number}", "{}", 10, 100, 1, statistics, counts, {"nan": f"id-{99 - number}"}))
    *files, folded = (record for batch in fold_records(iter(tasks)) for record in batch.to_pylist())
    assert [file["path"] for file in files] == [f"file-{number}" for number in range(50)]
    assert all(file["rows"] == 10 and file["dropped"] == 1 for file in files)
    assert not any(file[name] for file in files for name in ("statistics", "faults", "examples"))
    assert folded["path"] is None and folded["rows"] == folded["dropped"] == 0
    assert dict(folded["faults"]) == {f"nan {place}": sum(range(1, 51)) for place in range(784)}
    assert dict(folded["examples"]) == {"nan": "id-50"}
    assert len(FeatureStatistics.from_bytes(folded["statistics"]).constant) == 784
