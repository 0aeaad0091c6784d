"""`status`, `verify` and `clean` of a table that `embed --target` wrote."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ivis_spark import storage
from ivis_spark.cli import main
from ivis_spark.runtime.lock import RunLock
from ivis_spark.spark.embedding.history import Origin
from ivis_spark.spark.embedding.target import Table, Target
from ivis_spark.spark.embedding.units import Unit

RUN, TRAINED = "file:///runs/cells", "2026-11-28T01:00:00Z"


def put(table: Path, mode: str, job: dict[str, str], *, named: bool = True) -> None:
    """Embed files, given with their days, a unit each."""

    def embed(work: str, todo: object) -> tuple[list[Unit], dict[str, object]]:
        units = []
        for file, day in job.items():
            place = Path(storage.local_path(storage.join(work, file)) or "", f"day={day}", f"{file}.parquet")
            place.parent.mkdir(parents=True)
            place.write_text("rows")
            units.append(Unit([file], storage.join(work, file), [(f"day={day}/{file}.parquet", 4)], {"rows": 3}))
        return units, {"rows": 3 * len(job)}

    made_by = (RUN, TRAINED) if named else (None, None)
    origin = Origin("digest", dict.fromkeys(job, "1"), None, *made_by)
    Target(str(table), mode, ("day",)).put(storage.fingerprint(sorted(job)), embed, origin)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(words)
    said = capsys.readouterr()
    return code, (said.out or said.err).strip()


def test_the_jobs_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "append", {"a": "1", "b": "2"}, named=False)
    put(tmp_path, "replace", {"c": "2"})
    code, text = run(capsys, "status", str(tmp_path))
    first, second = text.splitlines()[3:]
    assert code == 0 and text.startswith(f"file://{tmp_path}: table of `embed --target`, 2 files")
    assert re.fullmatch(r" +1  20\S+Z  append +6 +2  digest", first)
    assert re.fullmatch(rf" +2  20\S+Z  replace +3 +1  digest, that of {RUN}, trained {TRAINED}", second)
    last = json.loads(run(capsys, "status", str(tmp_path), "--json")[1])["jobs"][1]
    assert (last["run"], last["trained"], last["rows"]) == (RUN, TRAINED, 3)


def test_files_of_a_table_that_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "append", {"a": "1", "b": "2"})
    put(tmp_path, "replace", {"c": "2"})  # b is rightly gone
    (tmp_path / "day=1" / "other.parquet").write_text("theirs")
    code, text = run(capsys, "verify", str(tmp_path))
    assert code == 0 and text.startswith("2 files of 2 jobs are there; 1 other files, which `embed` did not write. Not")
    assert json.loads(run(capsys, "verify", str(tmp_path), "--json")[1])["files"] == 2
    (tmp_path / "day=1" / "a.parquet").write_text("")
    code, text = run(capsys, "verify", str(tmp_path))
    assert code == 2 and "1 of 2 files that `embed` wrote are empty, like day=1/a.parquet: remove" in text
    (tmp_path / "day=1" / "a.parquet").unlink()
    code, text = run(capsys, "verify", str(tmp_path))
    assert code == 2 and "1 of 2 files that `embed` wrote are gone, like day=1/a.parquet: repeat" in text


def test_a_job_that_died_while_moving(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "append", {"a": "1"})
    done = next((tmp_path / "_ivis_spark").glob("*.done"))
    record = {**json.loads(done.read_text()), "moves": [], "removals": []}
    (done.parent / "000002-x.json").write_text(json.dumps(record))
    assert "unfinished: job 000002-x; the next `embed`" in run(capsys, "status", str(tmp_path))[1]
    code, text = run(capsys, "verify", str(tmp_path))
    assert code == 2 and "job 000002-x has not finished moving its files" in text


def test_a_table_that_is_being_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "append", {"a": "1"})
    with RunLock(Target(str(tmp_path), "append", ()).lock_folder, "embed"):
        (tmp_path / "day=1" / "a.parquet").unlink()  # a live job may have moved it
        code, text = run(capsys, "verify", str(tmp_path))
        assert code == 75 and f"being written by process {os.getpid()} of" in text and "gone" not in text
        assert "running: process" in run(capsys, "status", str(tmp_path))[1]


@pytest.mark.parametrize("at", ["data_files", "read_json"])
@pytest.mark.parametrize("mode", ["replace", "overwrite"])
def test_a_job_that_ends_while_the_table_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: str, mode: str
) -> None:
    """Its files and records take the place of those that were listed before."""
    for command in ("status", "verify"):
        put(tmp_path, "append", {"a": "1"})
        owner, looked = (Table, Table.data_files) if at == "data_files" else (storage, storage.read_json)

        def job_ends(*given: Any, looked: Any = looked, **options: Any) -> Any:
            monkeypatch.undo()
            put(tmp_path, mode, {"b": "1"})
            return looked(*given, **options)

        monkeypatch.setattr(owner, at, job_ends)
        code, text = run(capsys, command, str(tmp_path))
        assert code == 0 and "1 files" in text
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def test_a_table_is_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "append", {"a": "1"})
    code, text = run(capsys, "clean", str(tmp_path))
    assert code == 2 and "is not a run folder; there is nothing to clean" in text
    code, text = run(capsys, "train", "--output", str(tmp_path))
    assert code == 2 and "is not a run folder and not empty: it holds _ivis_spark, day=1" in text
