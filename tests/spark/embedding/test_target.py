"""A target table keeps its promises whatever order jobs come in and wherever they die. No Spark is started."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ivis_spark import storage
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.spark.embedding import units
from ivis_spark.spark.embedding.history import Origin, Todo, current_files
from ivis_spark.spark.embedding.target import Table, Target

Job = dict[int, list[int]]  # rows by file of the input: those of file 1 are of day 1, those of file 201 of days 1 and 2


@pytest.fixture(autouse=True)
def _warnings_only(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever level another test of this process has set."""
    caplog.set_level(logging.WARNING, "ivis_spark")


def embed(
    job: Job, done: list[str] | None = None, *, together: bool = False
) -> Callable[..., tuple[list[units.Unit], dict[str, Any]]]:
    """Return what embeds, a unit a file or all together, and lists the files in `done`."""

    def write(files: list[str], folder: str) -> dict[str, Any]:
        for number in map(int, files):
            days = [day for day in (number % 100, number // 100) if day]
            for place, day in enumerate(days):
                path = Path(folder.removeprefix("file://")) / f"day={day}"
                path.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.table({"n": job[number][place :: len(days)]}), path / f"part-{uuid.uuid4()}.parquet")
        if done is not None:
            done.extend(files)
        return {"rows": sum(len(job[int(file)]) for file in files)}

    def run(work: str, todo: Todo | None = None) -> tuple[list[units.Unit], dict[str, Any]]:
        again = [list(group) for group in todo.again] if todo else []
        new = todo.new if todo else list(map(str, job))
        found = units.run_units(work, [*again, *([new] if together else [[file] for file in new])], write, fixed=again)
        return found, {"rows": sum(unit.info["rows"] for unit in found)}

    return run


def origin(job: Job, model: str | None = None, settings: str | None = None) -> Origin:
    return Origin(model, {str(file): str(rows) for file, rows in job.items()}, settings)


def rows(table: Path) -> Job:
    found: Job = {}
    for path in table.glob("day=*/*.parquet"):
        found.setdefault(int(path.parent.name[4:]), []).extend(pq.ParquetFile(path).read()["n"].to_pylist())
    return {day: sorted(values) for day, values in sorted(found.items())}


def put(table: Path, mode: str, key: str, job: Job, model: str | None = None) -> bool:
    """Return whether the job was done before."""
    return Target(str(table), mode, ("day",)).put(key, embed(job), origin(job, model))[1]


def append(table: Path, job: Job, *, together: bool = False) -> list[str]:
    """Append as `put_into` does; return the files of the input that were embedded."""
    done: list[str] = []
    key = storage.fingerprint(list(job.items()))
    before = Target(str(table), "append", ("day",)).put(key, embed(job, done, together=together), origin(job))[1]
    assert before == (not done)
    return done


def remove(table: Path, *days: int) -> None:
    for day in days:
        shutil.rmtree(table / f"day={day}")


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
    original = storage.files._move_file

    turn = threading.Lock()

    def dying(source: str, destination: str) -> None:
        with turn:
            if len(calls) == at:
                raise KeyboardInterrupt
            calls.append(source)
        original(source, destination)

    job = {1: [10], 2: [20], 3: [30]}
    monkeypatch.setattr(storage.files, "_move_file", dying)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, mode, "job", job)
    monkeypatch.setattr(storage.files, "_move_file", original)
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
    together = Todo(["1"], {("2", "3"): {"day=2", "day=3"}})
    assert [unit.input for unit in run(str(tmp_path), together)[0]] == [["2", "3"], ["1"]]


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
        Target(str(tmp_path), "overwrite", ("day",)).put("b", embed({1: [1]}), origin({1: [1]}), check=lost)
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
    named = Origin("second", {"1": "2"}, None, "file:///runs/cells", "2026-11-28T01:00:00Z")
    with pytest.raises(InputError, match=r"\(first; .* is second, that of file:///runs/cells, trained \S+Z\)"):
        Target(str(tmp_path), mode, ("day",)).put("b", embed({1: [2]}), named)
    assert rows(tmp_path) == {1: [0], 2: [1]}
    remove(tmp_path, 1, 2)
    assert not put(tmp_path, mode, "b", {1: [2]}, "second")
    assert not put(tmp_path, "overwrite", "c", {3: [3]}, "first") and rows(tmp_path) == {3: [3]}
    record = tmp_path / "_ivis_spark" / "000003-c.done"
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "model"}))
    assert not caplog.records
    assert not put(tmp_path, mode, "d", {4: [4]}, "second")
    assert [r.getMessage() for r in caplog.records if "recorded neither model nor input" in r.getMessage()]


def test_files_embedded_with_other_settings_are_refused(tmp_path: Path) -> None:
    target, job = Target(str(tmp_path), "append", ("day",)), {1: [0], 2: [1]}
    target.put("a", embed(job), origin(job, settings="drop"))
    with pytest.raises(InputError, match="already holds 2 of the 3 files of the input, embedded with other settings"):
        target.put("b", embed({**job, 3: [2]}), origin({**job, 3: [2]}, settings="null"))
    assert not target.put("c", embed({3: [2]}), origin({3: [2]}, settings="null"))[1]
    assert rows(tmp_path) == {1: [0], 2: [1], 3: [2]}


def test_the_same_job_from_files_elsewhere_is_done_once(tmp_path: Path) -> None:
    """The rows of a run that was moved, or whose rows were built again, have other names."""
    put(tmp_path, "append", "a", {1: [0], 2: [1]})
    assert put(tmp_path, "append", "a", {101: [0], 102: [1]}) and rows(tmp_path) == {1: [0], 2: [1]}
    remove(tmp_path, 1)
    with pytest.raises(InputError, match="cannot be written again alone"):
        put(tmp_path, "append", "a", {101: [0], 102: [1]})


def test_what_a_job_that_died_at_its_end_left_does_no_harm(tmp_path: Path) -> None:
    put(tmp_path, "append", "a", {1: [0]})
    record = json.loads((tmp_path / "_ivis_spark" / "000001-a.done").read_text())
    moves = [["_ivis_spark/work-a/1", name] for name in record.pop("files")]
    (tmp_path / "_ivis_spark" / "000001-a.json").write_text(json.dumps({**record, "moves": moves, "removals": []}))
    put(tmp_path, "overwrite", "b", {2: [1]})
    put(tmp_path, "append", "c", {3: [2]})
    assert rows(tmp_path) == {2: [1], 3: [2]}


def test_partitions_may_begin_with_an_underscore(tmp_path: Path) -> None:
    for name in ("_c0=1/part-0.parquet", "_work/part-1.parquet", ".tmp=1/part-2.parquet", "_c0=1/_part-3.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert Target(str(tmp_path), "append", ("_c0",)).data_files().keys() == {"_c0=1/part-0.parquet"}


def test_append_embeds_only_what_is_not_there_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert append(tmp_path, {1: [0], 2: [1]}) == ["1", "2"]
    assert append(tmp_path, {1: [0], 2: [1], 3: [2]}) == ["3"]
    assert append(tmp_path, {2: [1], 3: [2]}) == [] and rows(tmp_path) == {1: [0], 2: [1], 3: [2]}
    put(tmp_path, "replace", "r", {3: [3], 4: [4]})
    assert append(tmp_path, {3: [3], 4: [4], 5: [5]}) == ["5"] and not caplog.records
    assert append(tmp_path, {1: [0, 6], 5: [5]}) == ["1"]
    [said] = [record.getMessage() for record in caplog.records]
    assert (
        "embedded before in another state, all rows of which are added now: 1, for example 1." in said
        and "--mode replace" in said
    )
    assert append(tmp_path, {1: [0, 6], 5: [5]}) == [] == append(tmp_path, {1: [0]})
    assert rows(tmp_path) == {1: [0, 0, 6], 2: [1], 3: [3], 4: [4], 5: [5]}
    put(tmp_path, "overwrite", "o", {2: [1]})
    assert append(tmp_path, {1: [0], 2: [1]}) == ["1"] and rows(tmp_path) == {1: [0], 2: [1]}


def test_what_was_deleted_is_written_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job: Job = {1: [0], 201: [10, 20], 3: [30]}
    append(tmp_path, {1: [0], 201: [10, 20]})
    append(tmp_path, job)
    full = {1: [0, 10], 2: [20], 3: [30]}
    remove(tmp_path, 2)
    assert append(tmp_path, job) == ["201"] and rows(tmp_path) == full
    assert "files of it are gone; input files embedded again to restore their rows: 1" in caplog.text
    remove(tmp_path, 1, 3)
    assert append(tmp_path, {**job, 4: [40]}) == ["1", "201", "3", "4"] and rows(tmp_path) == {**full, 4: [40]}
    assert append(tmp_path, {**job, 4: [40]}) == []


@pytest.mark.parametrize("mode", ["overwrite", "replace"])
def test_a_job_of_which_files_are_gone_is_done_again(tmp_path: Path, mode: str) -> None:
    job: Job = {1: [0], 201: [10, 20]}
    put(tmp_path, "append", "a", {3: [30]})
    put(tmp_path, mode, "m", job)
    for again in (mode, "append"):
        remove(tmp_path, 2)
        assert not put(tmp_path, again, "m", job)
        assert rows(tmp_path) == {1: [0, 10], 2: [20], **({3: [30]} if mode == "replace" else {})}
        assert put(tmp_path, again, "m", job)


def test_what_a_later_job_replaced_is_not_missing(tmp_path: Path) -> None:
    A: Job = {201: [10, 20]}
    append(tmp_path, A)
    put(tmp_path, "replace", "b", {2: [9]})
    for _ in range(2):
        assert append(tmp_path, A) == []
        remove(tmp_path, 1)
        assert append(tmp_path, A) == ["201"] and rows(tmp_path) == {1: [10], 2: [9]}
    remove(tmp_path, 2)
    assert append(tmp_path, A) == [] and rows(tmp_path) == {1: [10]}


def test_rows_that_cannot_be_written_again_alone(tmp_path: Path) -> None:
    append(tmp_path, {1: [0], 2: [1]}, together=True)
    remove(tmp_path, 1)
    changed: Job = {1: [0], 2: [5]}
    for job in (changed, {1: [0]}):
        with pytest.raises(InputError, match=r"gone, like day=1/.*made from files of which some, like 2, were changed"):
            append(tmp_path, job)
    assert append(tmp_path, {3: [3]}) == ["3"] and rows(tmp_path) == {2: [1], 3: [3]}
    remove(tmp_path, 2)
    assert sorted(append(tmp_path, changed)) == ["1", "2"] and rows(tmp_path) == {1: [0], 2: [5], 3: [3]}
    file = next((tmp_path / "day=2").iterdir())
    file.rename(file.with_name("compacted.parquet"))
    with pytest.raises(InputError, match=r"that it did not write, like day=2/compacted\.parquet: .* only new files as"):
        append(tmp_path, changed)


def test_records_of_an_earlier_version_know_their_own_job(tmp_path: Path) -> None:
    job: Job = {1: [0], 2: [1]}
    append(tmp_path, job)
    [record] = (tmp_path / "_ivis_spark").glob("*.done")
    fields = json.loads(record.read_text())
    record.write_text(json.dumps({name: value for name, value in fields.items() if name not in ("input", "model")}))
    assert append(tmp_path, job) == []
    remove(tmp_path, 1)
    assert append(tmp_path, job) == ["1", "2"] and rows(tmp_path) == job
    table = Table(str(tmp_path))
    assert current_files(table.done()) == set(table.data_files())
    assert append(tmp_path, {**job, 3: [2]}) == ["3"]


def test_writing_again_that_dies_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job: Job = {1: [0], 201: [10, 20]}
    append(tmp_path, job)
    remove(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(storage.files, "_move_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            append(tmp_path, job)
    assert rows(tmp_path) == {1: [0]}
    assert append(tmp_path, job) == [] and rows(tmp_path) == {1: [0, 10], 2: [20]}
