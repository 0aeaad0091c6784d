"""A job of hours in units of input files, each done once: what a driver that died had finished is not done again.

Below the work folder, `plan.json` deals the input's files to units, `parts/` holds what units wrote, and
`units/<n>.json`, written last, says that unit n is done and which files are its own. A unit that was cut off has no
such record and is done again in another folder of parts, so that every row counts once, however often the job died, and
also if it was started twice.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ivis_spark import storage
from ivis_spark.errors import ArtifactError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unit:
    """What a finished unit wrote: files below `folder` with their sizes, and facts about them."""

    folder: str
    files: list[tuple[str, int]]
    info: dict[str, Any]


def plan_units(files: list[str], unit_bytes: int) -> list[list[str]]:
    """Deal files, in the order of their names, to units of about `unit_bytes`."""
    units: list[list[str]] = []
    filled = unit_bytes
    for uri in sorted(files):
        if filled >= unit_bytes:
            units.append([])
            filled = 0
        units[-1].append(uri)
        fs, path = storage.filesystem(uri)
        filled += fs.size(path)
    return units


def run_units(work: str, plan: list[list[str]], do: Callable[[list[str], str], dict[str, Any]]) -> list[Unit]:
    """Do every unit that is not done yet. Runs on: driver.

    Args:
        work: URI of the work folder; it outlives the process.
        plan: The input's files by unit. A plan that stands in the work folder is kept, so that units stay the same on
            another cluster.
        do: Reads these files, writes below this URI and returns facts about what it wrote.

    Returns:
        What all units wrote.
    """
    plan_uri = storage.join(work, "plan.json")
    if read_record(plan_uri) is None:
        write_record(plan_uri, plan)
    plan = storage.read_json(plan_uri)
    done = []
    for number, files in enumerate(plan):
        record = storage.join(work, "units", f"{number:06d}.json")
        unit = _finished(work, record)
        if unit is None:
            folder = storage.join("parts", f"{number:06d}-{uuid.uuid4().hex[:8]}")
            info = do(files, storage.join(work, folder))
            written = storage.list_files(storage.join(work, folder))
            write_record(record, {"folder": folder, "files": written, "info": info})
            unit = Unit(storage.join(work, folder), written, info)
            if len(plan) > 1:
                log.info("unit %d of %d is done", number + 1, len(plan))
        else:
            log.info("unit %d of %d was done already", number + 1, len(plan))
        done.append(unit)
    return done


def move(units: list[Unit], target: str) -> None:
    """Move the files of all units to the same places below a folder."""
    for unit in units:
        for name, _ in unit.files:
            move_file(storage.join(unit.folder, name), storage.join(target, name))


def move_file(source: str, target: str) -> None:
    """Move a file; one that was moved already is left."""
    fs, old = storage.filesystem(source)
    _, new = storage.filesystem(target)
    if not fs.exists(old) and fs.exists(new):
        return
    fs.makedirs(fs._parent(new), exist_ok=True)
    fs.mv(old, new)


def remove(work: str) -> None:
    """Remove a work folder that is no longer needed, and the folder that it stood in if that is empty then."""
    fs, path = storage.filesystem(work)
    if fs.exists(path):
        fs.rm(path, recursive=True)
        parent = fs._parent(path)
        if not fs.ls(parent, detail=False):
            fs.rmdir(parent)


def _finished(work: str, record: str) -> Unit | None:
    found = read_record(record)
    if found is None:
        return None
    folder = storage.join(work, found["folder"])
    files = [(name, size) for name, size in found["files"]]
    return Unit(folder, files, found["info"]) if storage.list_files(folder) == files else None


def read_record(uri: str) -> Any:
    """Return what a record says, or None if it is not there or was cut off while it was written."""
    try:
        return storage.read_json(uri)
    except ArtifactError:
        return None


def write_record(uri: str, value: Any) -> None:
    """Write a record so that it stands whole or not at all."""
    building = f"{uri}.{uuid.uuid4().hex[:8]}.tmp"
    storage.write_json(building, value)
    fs, old = storage.filesystem(building)
    fs.mv(old, storage.filesystem(uri)[1])
