"""What the jobs of a target say of themselves, and what that means for the next one."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.manifest import check_fields, check_inside, check_list

log = logging.getLogger(__name__)

Mode = Literal["append", "overwrite", "replace"]
MODES: tuple[Mode, ...] = ("append", "overwrite", "replace")
OWN = "_ivis_spark"


@dataclass(frozen=True)
class Origin:
    """What a job is made from.

    Attributes:
        model: The digest of the model; None leaves models unchecked.
        states: The size and time of change of each file of the input, by URI. An input that can only be read whole is
            one entry.
        settings: A digest of what else decides about the rows: settings, features and columns.
        run: The run folder of the model.
        trained: When the model was trained.
    """

    model: str | None
    states: Mapping[str, str]
    settings: str | None = None
    run: str | None = None
    trained: str | None = None


@dataclass(frozen=True)
class Todo:
    """What a job has to embed.

    Attributes:
        new: Files of the input.
        again: Groups of files whose rows are no longer all in the table, as they were embedded before, and for each the
            partitions that its rows go to: others were replaced since.
        left: Files of the table that hold the remaining rows of these groups.
    """

    new: list[str]
    again: dict[tuple[str, ...], set[str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Part:
    """Files of an input, with their states, that were embedded at once into these files, unless replaced since."""

    input: list[tuple[str, str]]
    files: set[str]
    key: str
    settings: str | None


def plan_append(uri: str, done: Sequence[dict[str, Any]], there: set[str], key: str, origin: Origin) -> Todo:
    """Return what is not in a table yet: new and changed files of the input, and those whose rows were removed.

    Args:
        uri: The table.
        done: The records of its jobs, oldest first.
        there: Its files.
        key: Of the job.
        origin: What it is made from.

    Raises:
        InputError: if rows were removed and it is unknown which can be written again without repeating others, or
            files of the input were embedded with other settings.
    """
    latest: dict[tuple[str, str], _Part] = {}
    replaced: set[str] = set()
    for record in reversed(done):
        if record.get("model") in (None, origin.model):
            for part in _parts(record, replaced, origin if record["key"] == key else None):
                for each in part.input:
                    latest.setdefault(each, part)
        if record["mode"] == "replace":
            replaced |= {posixpath.dirname(name) for name in record["files"]}
    if _moved(uri, {part for part in latest.values() if part.key == key}, there, origin):
        return Todo([])
    known = [latest[each] for each in origin.states.items() if each in latest]
    if other := sum(part.settings not in (None, origin.settings) for part in known):
        raise InputError(
            f"{uri} already holds {other} of the {len(origin.states)} files of the input, embedded with other "
            "settings, features or columns: pass only new files as --input, or use --mode replace or overwrite"
        )
    todo, broken, before = Todo([]), dict[_Part, list[str]](), {name for name, _ in latest}
    for name, state in sorted(origin.states.items()):
        found = latest.get((name, state))
        if found is None:
            todo.new.append(name)
        elif not found.files <= there:
            broken.setdefault(found, []).append(name)
    ours = {name for record in done for name in record["files"]}
    _check_broken(uri, broken, there, ours)
    for part, names in broken.items():
        todo.again[tuple(names)] = {posixpath.dirname(name) for name in part.files}
        todo.left.extend(sorted(part.files & there))
    _tell(uri, todo, len(origin.states), [name for name in todo.new if name in before])
    return todo


def _parts(record: dict[str, Any], replaced: set[str], same: Origin | None) -> list[_Part]:
    """Return the parts of a job; `same` is its origin if that is known, for records that lack the input."""
    files = [name if posixpath.dirname(name) not in replaced else None for name in record["files"]]
    job = record["key"], record.get("settings")
    if "input" not in record:
        return [_Part(list(same.states.items()) if same else [], {name for name in files if name}, *job)]
    folder, parts = record["input"]["folder"], []
    inputs, outputs = iter(record["input"]["files"]), iter(files)
    for n_inputs, n_files in record["input"]["units"]:
        read = [(folder + name, state) for name, state in itertools.islice(inputs, n_inputs)]
        parts.append(_Part(read, {name for name in itertools.islice(outputs, n_files) if name}, *job))
    return parts


def current_files(done: Sequence[dict[str, Any]]) -> set[str]:
    """Return the files that the jobs of a table, oldest first, wrote and that no later one replaced."""
    again, replaced, files, keys = set[tuple[str, str]](), set[str](), set[str](), set[str]()
    for record in reversed(done):
        for part in _parts(record, replaced, None):  # of an earlier version without input: only the whole job is known
            if not (again.issuperset(part.input) if part.input else part.key in keys):
                files |= part.files
            again |= set(part.input)
        keys.add(record["key"])
        if record["mode"] == "replace":
            replaced |= {posixpath.dirname(name) for name in record["files"]}
    return files


def name_model(record: Mapping[str, Any]) -> str:
    """Return how a message names the model of a job: by its digest, and its run folder and training if known."""
    digest, named = str(record.get("model") or "unknown"), record.get("run") and record.get("trained")
    return f"{digest}, that of {record['run']}, trained {record['trained']}" if named else digest


def _moved(uri: str, parts: set[_Part], there: set[str], origin: Origin) -> bool:
    """Tell whether this very job was done from the same rows in other files: those of a run, moved or built again."""
    if not parts or any(name in origin.states for part in parts for name, _ in part.input):
        return False
    if gone := set[str]().union(*(part.files for part in parts)) - there:
        raise InputError(
            f"files that `embed` wrote to {uri} are gone, like {min(gone)}, and cannot be written again alone: the "
            "rows of the run are in other files now. Restore them, or use --mode overwrite"
        )
    return True


def describe_input(units: Iterable[tuple[Sequence[str], int]], origin: Origin) -> dict[str, Any]:
    """Return what a record says of the input: its files with their states, and how they were embedded together.

    Args:
        units: The files of the input of each unit, and how many files it wrote.
        origin: What the job is made from.
    """
    units = list(units)
    names = [name for group, _ in units for name in group]
    common = os.path.commonprefix(names)  # noqa: RUF071 (a URI is not a path)
    folder = common[: common.rfind("/") + 1]
    return {
        "folder": folder,
        "files": [[name.removeprefix(folder), origin.states[name]] for name in names],
        "units": [[len(group), n_files] for group, n_files in units],
    }


def _check_broken(uri: str, broken: Mapping[_Part, list[str]], there: set[str], ours: set[str]) -> None:
    """Refuse to write rows again where others could be twice then."""
    foreign = {posixpath.dirname(name): name for name in there - ours}
    for part, names in broken.items():
        gone = part.files - there
        if theirs := sorted(foreign.keys() & {posixpath.dirname(name) for name in gone}):
            raise InputError(
                f"files that `embed` wrote to {uri} are gone, like {min(gone)}, and where they were are files that it "
                f"did not write, like {foreign[theirs[0]]}: if these hold the same rows, pass only new files as "
                "--input; if not, move them away"
            )
        if len(names) < len(part.input) and part.files & there:
            other = min({name for name, _ in part.input}.difference(names))
            raise InputError(
                f"files that `embed` wrote to {uri} are gone, like {min(gone)}, and cannot be written again: they were "
                f"made from files of which some, like {other}, were changed or are not in the input. Restore them, "
                "pass only new files as --input, or use --mode overwrite"
            )


def _tell(uri: str, todo: Todo, n_files: int, changed: list[str]) -> None:
    """Log what is done with files that were embedded before."""
    n_again = sum(map(len, todo.again))
    if n_again:
        log.warning("%s: files of it are gone; input files embedded again to restore their rows: %d", uri, n_again)
    if changed:
        log.warning(
            "%s: input files embedded before in another state, all rows of which are added now: %d, for example %s. "
            "Rows that are in both states are there twice; --mode replace replaces partitions instead",
            uri,
            len(changed),
            changed[0],
        )
    known = n_files - n_again - len(todo.new)
    if known and known < n_files:
        log.info("%s: input files left out, because they were embedded before: %d of %d", uri, known, n_files)


def check_model(uri: str, done: list[dict[str, Any]], there: Iterable[str], origin: Origin) -> None:
    """Refuse to put embeddings beside those of another model.

    Args:
        uri: The table.
        done: The records of its jobs.
        there: Its files.
        origin: What is embedded with.

    Raises:
        InputError: names the models and says what to do.
    """
    model, names = origin.model, {record.get("model"): name_model(record) for record in done}
    made_by = {name: record.get("model") for record in done for name in record["files"]}
    found = [made_by[name] for name in there if name in made_by]
    others = sorted({other for other in found if other is not None} - {model})
    if model is not None and others:
        raise InputError(
            f"{uri} holds {sum(other in others for other in found):,} files embedded by another model "
            f"({', '.join(names[other] for other in others)}; the model of this run is "
            f"{name_model(dataclasses.asdict(origin))}), and embeddings of different models cannot be "
            "compared: choose another --target, or --mode overwrite, which keeps only the new rows"
        )
    if model is not None and None in found:
        log.warning(
            "%s: %d files are of an earlier version, which recorded neither model nor input: if the model was another "
            "one, use --mode overwrite; to append, pass only new files as --input",
            uri,
            found.count(None),
        )


def read_journal(value: Any) -> dict[str, Any]:
    """Return what JSON gave if it is a journal.

    Raises:
        ArtifactError: if it is that of an earlier version.
        ValueError: if it is none, or would touch a file that is not in the table.
    """
    journal = _read_job(value)
    check_fields(value, moves=list, removals=list)
    for old in journal["removals"]:
        _check_data(old)
    _check_units(value, len(journal["moves"]))
    for move in check_list(journal["moves"], list, "moves"):
        source, target = move
        if not check_inside(source, "the table").startswith(OWN + "/"):
            raise ValueError(f"it moves {source!r}, which was not written by a job")
        _check_data(target)
    return journal


def read_done(value: Any) -> dict[str, Any]:
    """Return what JSON gave if it says what a finished job put into the table. Raises ValueError if it does not."""
    record = _read_job(value)
    for name in check_list(check_fields(value, files=list)["files"], str, "files"):
        _check_data(name)
    _check_units(value, len(value["files"]))
    return record


def _read_job(value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and "done" in value:
        raise ArtifactError("it was written by an earlier version of ivis_spark: embed into a new table")
    job = check_fields(value, number=int, key=str, mode=str, info=dict)
    for name in ("model", "settings", "run", "trained", "time"):
        check_fields({name: job.get(name)}, **{name: (str, type(None))})
    if "input" in job:
        read = check_fields(check_fields(job, input=dict)["input"], folder=str, files=list, units=list)
        for name, each in (("files", str), ("units", int)):
            if any(len(check_list(pair, each, name)) != 2 for pair in read[name]):
                raise ValueError(f"{name} of its input are not pairs")
        if sum(n_inputs for n_inputs, _ in read["units"]) != len(read["files"]):
            raise ValueError("its units have other files than its input")
    if job["mode"] not in MODES:
        raise ValueError(f"mode {job['mode']!r} is not one of: {', '.join(MODES)}")
    check_inside(job["key"], "the table")
    check_fields(job["info"], rows=int)
    return job


def _check_units(job: dict[str, Any], n_files: int) -> None:
    if "input" in job and sum(n for _, n in job["input"]["units"]) != n_files:
        raise ValueError("its units have other files than it")


def _check_data(path: Any) -> None:
    if check_inside(path, "the table").startswith(OWN):
        raise ValueError(f"it lists {path!r}, which is not a data file")
