"""`status` and `verify` of a table that `embed --target` wrote: its jobs, and whether their files exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ivis_spark.errors import ArtifactError, BusyError
from ivis_spark.runtime.lock import owners
from ivis_spark.spark.embedding.history import current_files, name_model
from ivis_spark.spark.embedding.target import Table

NOT_CHECKED = "the content of files, because records of jobs hold no digests; and whether the input has new files"


@dataclass(frozen=True)
class TableStatus:
    """What `status` found of a table; `jobs` oldest first, since the last overwrite."""

    table: str
    jobs: list[dict[str, Any]]
    files: int
    running: list[str]
    unfinished: list[str]

    def show(self) -> str:
        """Return it as text: a line per job, and what is running."""
        lines = [f"{self.table}: table of `embed --target`, {self.files:,} files", ""]
        lines.append(f"{'job':>6}  {'time':<20}  {'mode':<9} {'rows':>14} {'input files':>12}  model")
        for job in self.jobs:
            read = "-" if job["input_files"] is None else f"{job['input_files']:,}"
            begin = (
                f"{job['number']:>6}  {job['time'] or 'unknown':<20}  {job['mode']:<9} {job['rows']:>14,} {read:>12}"
            )
            lines.append(f"{begin}  {name_model(job)}")
        lines += ["no job has finished"] * (not self.jobs)
        lines += [f"running: {text}" for text in self.running]
        lines += [f"unfinished: job {text}; the next `embed` into the table finishes it" for text in self.unfinished]
        return "\n".join(lines)


@dataclass(frozen=True)
class TableFiles:
    """What `verify` found of a table: how many files of how many jobs exist, and others."""

    files: int
    jobs: int
    other_files: int
    not_checked: str = NOT_CHECKED

    def show(self) -> str:
        """Return it as text."""
        others = f"; {self.other_files} other files, which `embed` did not write" if self.other_files else ""
        return f"{self.files} files of {self.jobs} jobs are there{others}. Not checked: {self.not_checked}"


def is_table(uri: str) -> bool:
    """Tell whether a folder is a table that `embed --target` wrote."""
    return Table(uri).is_one


def status(uri: str) -> TableStatus:
    """Describe a table: its jobs, files, and which process is writing it."""
    table = Table(uri)
    jobs = [
        {
            "number": record["number"],
            "time": record.get("time"),
            "mode": record["mode"],
            "rows": record["info"]["rows"],
            "input_files": len(record["input"]["files"]) if "input" in record else None,
            "files": len(record["files"]),
            "run": record.get("run"),
            "trained": record.get("trained"),
            "model": record.get("model"),
        }
        for record in table.done()
    ]
    alive = _running(table)
    return TableStatus(table.uri, jobs, len(table.data_files()), alive, [] if alive else table.unfinished())


def verify(uri: str) -> TableFiles:
    """Check whether all files exist that jobs wrote and no later job replaced.

    Raises:
        BusyError: if a job is writing the table.
        ArtifactError: naming missing files, and jobs that were interrupted while they moved files.
    """
    table, records = Table(uri), None
    while records != (now := table.records()):  # at first, and after a job that ended meanwhile
        records, done, there, unfinished = now, table.done(), table.data_files(), table.unfinished()
        if alive := _running(table):
            raise BusyError(f"{table.uri} is being written by {alive[0]}: verify it when that job has ended")
    files = current_files(done)
    if unfinished:
        raise ArtifactError(
            f"{table.uri}: job {unfinished[0]} has not finished moving its files; the next `embed` into the table "
            "finishes it"
        )
    if gone := sorted(files - there.keys()):
        raise ArtifactError(
            f"{table.uri}: {len(gone)} of {len(files)} files that `embed` wrote are gone, like {gone[0]}: repeat the "
            "command that made them, which writes them again"
        )
    if empty := sorted(name for name in files if there[name] == 0):
        raise ArtifactError(
            f"{table.uri}: {len(empty)} of {len(files)} files that `embed` wrote are empty, like {empty[0]}: remove "
            "them and repeat the command that made them, which writes them again"
        )
    ours = {name for record in done for name in record["files"]}
    return TableFiles(len(files), len(done), len(there.keys() - ours))


def _running(table: Table) -> list[str]:
    return [str(owner) for owner in owners(table.lock_folder).values() if not owner.seems_dead()]
