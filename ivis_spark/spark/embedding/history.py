"""What the jobs of a target say of themselves, and what that means for the next one."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
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
        model: The fingerprint of the model; None leaves models unchecked.
    """

    model: str | None = None


def check_model(uri: str, done: list[dict[str, Any]], there: Iterable[str], model: str | None) -> None:
    """Refuse to put embeddings beside those of another model.

    Args:
        uri: The table.
        done: The records of its jobs.
        there: Its files.
        model: The fingerprint of the model.

    Raises:
        InputError: names the models and says what to do.
    """
    made_by = {name: record.get("model") for record in done for name in record["files"]}
    found = [made_by[name] for name in there if name in made_by]
    others = sorted({other for other in found if other is not None} - {model})
    if model is not None and others:
        raise InputError(
            f"{uri} holds {sum(other in others for other in found):,} files embedded by another model "
            f"({', '.join(others)}; the model of this run is {model}), and embeddings of different models cannot be "
            "compared: choose another --target, or --mode overwrite, which keeps only the new rows"
        )
    if model is not None and None in found:
        log.warning(
            "%s: %d files were embedded by an earlier version, which did not record the model: if it was another one, "
            "use --mode overwrite",
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
    return record


def _read_job(value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and "done" in value:
        raise ArtifactError("it was written by an earlier version of ivis_spark: embed into a new table")
    job = check_fields(value, number=int, key=str, mode=str, info=dict)
    check_fields({"model": job.get("model")}, model=(str, type(None)))
    if job["mode"] not in MODES:
        raise ValueError(f"mode {job['mode']!r} is not one of: {', '.join(MODES)}")
    check_inside(job["key"], "the table")
    check_fields(job["info"], rows=int)
    return job


def _check_data(path: Any) -> None:
    if check_inside(path, "the table").startswith(OWN):
        raise ValueError(f"it lists {path!r}, which is not a data file")
