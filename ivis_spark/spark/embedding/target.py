"""A user's own table as the target of embedding: append, overwrite, or replace the partitions that come anew.

`_ivis_spark/` in the table, which Spark's readers pass over, holds the work folder of a job and a journal a job. A
journal names every file to remove and to move before the first is touched, so a job that died between is finished by
the next; a job that is finished already is not done again.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Any, Literal

from ivis_spark import storage
from ivis_spark.errors import InputError
from ivis_spark.manifest import check_fields, check_inside, check_list
from ivis_spark.spark.embedding.units import Unit, move_file, remove, write_record

Mode = Literal["append", "overwrite", "replace"]
MODES: tuple[Mode, ...] = ("append", "overwrite", "replace")
_OWN = "_ivis_spark"
_REMEDY = (
    "put back what stood there; or remove it, and embed anew with --mode overwrite, since what its job had still to "
    "move or to remove is not known"
)


class Target:
    """A Parquet table that embeddings are put into. Runs on: driver.

    Args:
        uri: The table's folder; made if missing.
        mode: `append` adds; `overwrite` leaves only what comes anew; `replace` does so within each partition that
            something comes for.
        partition_by: The table's partition columns.

    Raises:
        InputError: if the mode is unknown, or `replace` has no partition columns.
    """

    def __init__(self, uri: str, mode: str, partition_by: tuple[str, ...]) -> None:
        if mode not in MODES:
            raise InputError(f"--mode {mode} is not one of: {', '.join(MODES)}")
        if mode == "replace" and not partition_by:
            raise InputError(
                "--mode replace replaces partitions and none are named: pass --set embed.partition_by=COLUMN"
            )
        self.uri, self._mode = storage.normalise_uri(uri), mode
        storage.check_writable(self.uri)

    def put(self, key: str, embed: Callable[[str], tuple[list[Unit], dict[str, Any]]]) -> tuple[dict[str, Any], bool]:
        """Embed and put the result into the table, unless this very job did so before.

        Args:
            key: Of the job: its model, input and settings.
            embed: Embeds, working in the folder given; returns the units and facts about them.

        Returns:
            The facts, and whether it was done before.
        """
        for other, journal in self._journals().items():
            if not journal["done"]:
                self._finish(other)
        journals = self._journals()
        last = max((journal["number"] for journal in journals.values()), default=0)
        if key in journals and (self._mode == "append" or journals[key]["number"] == last):
            return journals[key]["info"], True
        work = self._own(f"work-{key}")
        units, info = embed(work)
        moves = [
            [posixpath.relpath(storage.join(unit.folder, name), self.uri), name]
            for unit in units
            for name, _ in unit.files
        ]
        record = {"number": last + 1, "mode": self._mode, "info": info, "done": False}
        write_record(self._journal(key), {**record, "moves": moves, "removals": self._removals(moves)})
        self._finish(key)
        return info, False

    def _finish(self, key: str) -> None:
        """Do what a journal says; what is done of it already does no harm."""
        journal = self._read(key)
        for old in journal["removals"]:
            self._remove_file(storage.join(self.uri, old))
        for source, target in journal["moves"]:
            move_file(storage.join(self.uri, source), storage.join(self.uri, target))
        if journal["mode"] == "overwrite":  # what was appended before is gone and may come again
            for other, earlier in self._journals().items():
                if earlier["number"] < journal["number"]:
                    self._remove_file(self._journal(other))
        write_record(self._journal(key), {**journal, "moves": [], "removals": [], "done": True})
        remove(self._own(f"work-{key}"))

    def _remove_file(self, uri: str) -> None:
        fs, path = storage.filesystem(uri)
        if storage.exists(fs, path):
            fs.rm_file(path)

    def _removals(self, moves: list[list[str]]) -> list[str]:
        if self._mode == "append":
            return []
        replaced = {posixpath.dirname(target) for _, target in moves}
        old = [name for name, _ in storage.list_files(self.uri) if not name.startswith(_OWN)]
        return [name for name in old if self._mode == "overwrite" or posixpath.dirname(name) in replaced]

    def _journals(self) -> dict[str, Any]:
        """Return the journals by the keys of their jobs."""
        names = storage.children(*storage.filesystem(self._own()))
        return {key: self._read(key) for key in (name[:-5] for name in names if name.endswith(".json"))}

    def _read(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = storage.read_json(self._journal(key), read_journal, remedy=_REMEDY)
        return found

    def _journal(self, key: str) -> str:
        return self._own(f"{key}.json")

    def _own(self, *parts: str) -> str:
        return storage.join(self.uri, _OWN, *parts)


def read_journal(value: Any) -> dict[str, Any]:
    """Return what JSON gave if it is a journal.

    Raises:
        ValueError: if it is none, or would touch a file that is not in the table.
    """
    journal = check_fields(value, number=int, mode=str, info=dict, done=bool, moves=list, removals=list)
    if journal["mode"] not in MODES:
        raise ValueError(f"mode {journal['mode']!r} is none of {', '.join(MODES)}")
    check_fields(journal["info"], rows=int)
    for old in journal["removals"]:
        _check_data(old)
    for move in check_list(journal["moves"], list, "moves"):
        source, target = move
        if not check_inside(source, "the table").startswith(_OWN + "/"):
            raise ValueError(f"it moves {source!r}, which no job wrote")
        _check_data(target)
    return journal


def _check_data(path: Any) -> None:
    if check_inside(path, "the table").startswith(_OWN):
        raise ValueError(f"it lists {path!r}, which is not data")
