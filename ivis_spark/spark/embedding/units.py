"""A long job in units of input files, each done once: units finished by a driver that died are not repeated.

Below the work folder, `plan.json` assigns the input's files to units, `parts/` holds what units wrote, and
`units/<n>.json`, written last, says that unit n is done, of which input, and which files are its own. A unit that was
cut off has no such record and is done again in another folder of parts, so that every row counts once, however often
the job died, and also if it was started twice.
"""

from __future__ import annotations

import itertools
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from ivis_spark import storage
from ivis_spark.errors import ArtifactError
from ivis_spark.manifest import check_fields, check_inside, check_list

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """What a finished unit wrote from files of the input: files below `folder` with their sizes, and facts."""

    input: list[str]
    folder: str
    files: list[tuple[str, int]]
    info: dict[str, Any]


def plan_units(files: list[str], unit_bytes: int) -> list[list[str]]:
    """Assign files, in the order of their names, to units of about `unit_bytes`."""
    units: list[list[str]] = []
    filled = unit_bytes
    sizes = {uri: size for uri, size, _ in storage.describe_files(files)}
    for uri in sorted(files):
        if filled >= unit_bytes:
            units.append([])
            filled = 0
        units[-1].append(uri)
        filled += sizes[storage.normalise_uri(uri)]
    return units


def run_units(
    work: str,
    plan: list[list[str]],
    do: Callable[[list[str], str], dict[str, Any]],
    *,
    fixed: Sequence[list[str]] = (),
) -> list[Unit]:
    """Do every unit that is not done yet. Runs on: driver.

    Args:
        work: URI of the work folder; it outlives the process.
        plan: The input's files by unit. A plan of the same files that stands in the work folder is kept, so that units
            stay the same on another cluster.
        do: Reads these files, writes below this URI and returns facts about what it wrote.
        fixed: Units that any plan must have.

    Returns:
        What all units wrote.
    """
    plan_uri = storage.join(work, "plan.json")
    kept = read_record(plan_uri, _read_plan)
    if (
        kept is None
        or sorted(itertools.chain(*kept)) != sorted(itertools.chain(*plan))
        or any(unit not in kept for unit in fixed)
    ):
        write_record(plan_uri, plan)
    else:
        plan = kept
    done = []
    for number, files in enumerate(plan):
        record = storage.join(work, "units", f"{number:06d}.json")
        unit = _finished(work, record, files)
        if unit is None:
            folder = storage.join("parts", f"{number:06d}-{uuid.uuid4().hex[:8]}")
            info = do(files, storage.join(work, folder))
            written = storage.list_files(storage.join(work, folder))
            write_record(record, {"input": files, "folder": folder, "files": written, "info": info})
            unit = Unit(files, storage.join(work, folder), written, info)
            if len(plan) > 1:
                log.info("unit %d of %d is done", number + 1, len(plan))
        else:
            log.info("unit %d of %d was already done", number + 1, len(plan))
        done.append(unit)
    return done


def move(units: list[Unit], target: str) -> None:
    """Move the files of all units to the same places below a folder."""
    storage.move_files(
        (storage.join(unit.folder, name), storage.join(target, name)) for unit in units for name, _ in unit.files
    )


def _finished(work: str, uri: str, files: list[str]) -> Unit | None:
    """Return a unit if it is done, of these very files of the input, and all that it wrote is there."""
    record = read_record(uri, _read_unit)
    if record is None or record["input"] != files:
        return None
    unit = Unit(files, storage.join(work, record["folder"]), record["files"], record["info"])
    return unit if storage.list_files(unit.folder) == unit.files else None


def read_record(uri: str, read: Callable[[Any], T]) -> T | None:
    """Return what a record says, or None if it is not there or is not whole.

    Raises:
        OSError: if the storage does not say: what is done already would be done twice then.
    """
    fs, path = storage.filesystem(uri)
    if not storage.exists(fs, path):
        return None
    content = fs.cat_file(path)
    try:
        return cast(T, storage.parse_json(content, uri, read))
    except ArtifactError as err:
        log.warning("%s", err)
        return None


def _read_plan(value: Any) -> list[list[str]]:
    return [check_list(files, str, "unit") for files in check_list(value, list, "plan")]


def _read_unit(value: Any) -> dict[str, Any]:
    unit = check_fields(value, input=list, folder=str, files=list, info=dict)
    check_inside(unit["folder"], "the work folder")
    check_fields(unit["info"], rows=int)
    files = [(check_inside(name, "the unit"), size) for name, size in unit["files"]]
    return {**unit, "files": files}


def write_record(uri: str, value: Any) -> None:
    """Write a record so that it is there whole or not at all."""
    storage.replace_file(uri, storage.encode_json(value))
