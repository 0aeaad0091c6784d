"""A target table keeps its promises whatever order jobs come in and wherever they die. No Spark is started."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ivis_spark import storage
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.spark.embedding import units
from ivis_spark.spark.embedding.history import Origin
from ivis_spark.spark.embedding.target import Target

Job = dict[int, list[int]]  # rows by day


def embed(job: Job, done: list[str] | None = None) -> Callable[[str], tuple[list[units.Unit], dict[str, Any]]]:
    """Return what embeds: a unit a day, a file of its rows each."""

    def write(files: list[str], folder: str) -> dict[str, Any]:
        day = int(files[0])
        path = Path(folder.removeprefix("file://")) / f"day={day}"
        path.mkdir(parents=True)
        pq.write_table(
            pa.table({"n": job[day]}), path / f"part-{len(list(path.parent.parent.iterdir()))}-{job}.parquet"
        )
        if done is not None:
            done.append(files[0])
        return {"rows": len(job[day])}

    def run(work: str) -> tuple[list[units.Unit], dict[str, Any]]:
        found = units.run_units(work, [[str(day)] for day in job], write)
        return found, {"rows": sum(unit.info["rows"] for unit in found)}

    return run


def rows(table: Path) -> Job:
    found: Job = {}
    for path in table.glob("day=*/*.parquet"):
        found.setdefault(int(path.parent.name[4:]), []).extend(pq.ParquetFile(path).read()["n"].to_pylist())
    return {day: sorted(values) for day, values in sorted(found.items())}


def put(table: Path, mode: str, key: str, job: Job, model: str | None = None) -> bool:
    """Return whether the job was done before."""
    info, before = Target(str(table), mode, ("day",)).put(key, embed(job), Origin(model))
    assert info["rows"] == sum(map(len, job.values()))
    return before


def test_modes_in_any_order(tmp_path: Path) -> None:
    A, B, C = {1: [0, 1, 2], 2: [3, 4]}, {2: [9]}, {2: [7]}
    assert not put(tmp_path, "append", "a", A)
    assert put(tmp_path, "append", "a", A) and rows(tmp_path) == A
    assert not put(tmp_path, "replace", "b", B) and rows(tmp_path) == {1: [0, 1, 2], 2: [9]}
    assert put(tmp_path, "replace", "b", B)
    assert not put(tmp_path, "replace", "c", C) and rows(tmp_path) == {1: [0, 1, 2], 2: [7]}
    assert not put(tmp_path, "replace", "b", B) and rows(tmp_path) == {1: [0, 1, 2], 2: [9]}
    assert put(tmp_path, "append", "a", A)
    assert not put(tmp_path, "overwrite", "o", C) and rows(tmp_path) == C
    assert put(tmp_path, "overwrite", "o", C)
    assert not put(tmp_path, "append", "a", A) and rows(tmp_path) == {1: [0, 1, 2], 2: [3, 4, 7]}
    assert not list(tmp_path.glob("_ivis_spark/work-*"))


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("mode", ["append", "overwrite", "replace"])
def test_a_job_that_dies_while_moving_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, at: int
) -> None:
    put(tmp_path, "append", "before", {1: [0]})
    calls: list[str] = []
    original = storage.move_file

    turn = threading.Lock()

    def dying(source: str, destination: str) -> None:
        with turn:
            if len(calls) == at:
                raise KeyboardInterrupt
            calls.append(source)
        original(source, destination)

    job = {1: [10], 2: [20], 3: [30]}
    monkeypatch.setattr(storage, "move_file", dying)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, mode, "job", job)
    monkeypatch.setattr(storage, "move_file", original)
    assert not put(tmp_path, "append", "next", {4: [40]})
    kept = [0] if mode == "append" else []
    assert rows(tmp_path) == {1: [*kept, 10], 2: [20], 3: [30], 4: [40]}
    assert not list(tmp_path.glob("_ivis_spark/work-*"))
    assert put(tmp_path, "append", "before", {1: [0]}) == (mode != "overwrite")


def test_a_unit_is_done_once(tmp_path: Path) -> None:
    done: list[str] = []
    job = {1: [1], 2: [2], 3: [3]}
    run = embed(job, done)
    first, _ = run(str(tmp_path))
    again, _ = run(str(tmp_path))
    assert done == ["1", "2", "3"] and again == first
    (tmp_path / "units" / "000001.json").write_text("{")
    run(str(tmp_path))
    assert done == ["1", "2", "3", "2"]


@pytest.mark.parametrize("mode", ["overwrite", "replace"])
def test_files_of_others_are_never_removed(tmp_path: Path, mode: str) -> None:
    put(tmp_path, "append", "a", {1: [0], 2: [5]})
    theirs = tmp_path / "day=1" / "theirs.parquet"
    pq.write_table(pa.table({"n": [7]}), theirs)
    with pytest.raises(InputError, match=r"day=1/theirs\.parquet\. Move them away"):
        put(tmp_path, mode, "b", {1: [1]})
    assert rows(tmp_path) == {1: [0, 7], 2: [5]}
    assert not put(tmp_path, "replace", "c", {2: [6]})
    assert rows(tmp_path) == {1: [0, 7], 2: [6]}
    theirs.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tmp_path / "_elsewhere")
    assert not put(tmp_path, mode, "b", {1: [1]})
    assert rows(tmp_path) == ({1: [1]} if mode == "overwrite" else {1: [1], 2: [6]})


def test_tables_that_are_not_plain_parquet(tmp_path: Path) -> None:
    (tmp_path / "_delta_log").mkdir()
    with pytest.raises(InputError, match="is a Delta table"):
        Target(str(tmp_path), "append", ())
    assert [path.name for path in tmp_path.iterdir()] == ["_delta_log"]


def test_a_record_of_an_earlier_version(tmp_path: Path) -> None:
    record = tmp_path / "_ivis_spark" / "abc.json"
    record.parent.mkdir()
    record.write_text('{"number": 1, "mode": "append", "info": {}, "done": true, "moves": [], "removals": []}')
    with pytest.raises(ArtifactError, match=r"abc\.json: it was written by an earlier version .*: embed into a new"):
        put(tmp_path, "append", "a", {1: [0]})


def test_a_journal_that_lists_no_files_is_refused(tmp_path: Path) -> None:
    """A text would be taken for names of one character each."""
    journal = tmp_path / "_ivis_spark" / "000001-a.json"
    journal.parent.mkdir()
    (tmp_path / "d").write_text("a file of the table")
    journal.write_text('{"number": 1, "key": "a", "mode": "append", "info": {"rows": 1}, "removals": "d", "moves": []}')
    with pytest.raises(ArtifactError, match=r"000001-a\.json"):
        put(tmp_path, "append", "a", {1: [0]})
    assert (tmp_path / "d").exists()


def test_a_lock_that_is_lost_leaves_the_table_alone(tmp_path: Path) -> None:
    put(tmp_path, "append", "a", {1: [0]})

    def lost() -> None:
        raise ArtifactError("another run holds the lock")

    with pytest.raises(ArtifactError, match="another run"):
        Target(str(tmp_path), "overwrite", ("day",)).put("b", embed({1: [1]}), check=lost)
    assert rows(tmp_path) == {1: [0]} and put(tmp_path, "append", "a", {1: [0]})


@pytest.mark.parametrize("mode", ["append", "overwrite", "replace"])
def test_a_table_keeps_its_partition_columns(tmp_path: Path, mode: str) -> None:
    put(tmp_path, "append", "a", {1: [0]})
    Target(str(tmp_path), mode, ("day",)).check_partitions()
    for other in [()] * (mode != "replace") + [("month",), ("day", "hour")]:
        with pytest.raises(InputError, match=r"partitioned by day, .*: use --set embed\.partition_by=day, or choose"):
            Target(str(tmp_path), mode, other).check_partitions()


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_the_files_of_a_table_are_of_one_model(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str) -> None:
    put(tmp_path, "append", "a", {1: [0], 2: [1]}, "first")
    assert '"model": "first"' in (tmp_path / "_ivis_spark" / "000001-a.done").read_text()
    said = r"holds 2 files .* by another model \(first; .* is second\).*: choose another --target, or --mode overwrite"
    with pytest.raises(InputError, match=said):
        put(tmp_path, mode, "b", {1: [2]}, "second")
    assert rows(tmp_path) == {1: [0], 2: [1]}
    shutil.rmtree(tmp_path / "day=1")
    shutil.rmtree(tmp_path / "day=2")
    assert not put(tmp_path, mode, "b", {1: [2]}, "second")
    assert not put(tmp_path, "overwrite", "c", {3: [3]}, "first") and rows(tmp_path) == {3: [3]}
    record = tmp_path / "_ivis_spark" / "000003-c.done"
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "model"}))
    assert not caplog.records
    assert not put(tmp_path, mode, "d", {4: [4]}, "second")
    assert [r.getMessage() for r in caplog.records if "did not record the model" in r.getMessage()]
