"""A user's own table as the target of embedding: append, overwrite, or replace the partitions that have new data.

`_ivis_spark/` in the table, which Spark's readers pass over, holds the work folder of a job and two files per job:
`<number>-<key>.json` is its journal, which names every file to remove and to move before the first is touched, so a
job that died between is finished by the next; `<number>-<key>.done` says what it put into the table and what from, so
the same files are not embedded again, and only such files are ever removed. Each is written once, under a name of its
own.
"""

from __future__ import annotations

import logging
import posixpath
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

from ivis_spark import storage
from ivis_spark.config import listed
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.spark.embedding.history import (
    MODES,
    OWN,
    Origin,
    Todo,
    check_model,
    describe_input,
    plan_append,
    read_done,
    read_journal,
)
from ivis_spark.spark.embedding.units import Unit, write_record

log = logging.getLogger(__name__)

_FOREIGN_TABLES = {"_delta_log": "Delta", ".hoodie": "Hudi"}
_REMEDY = (
    "restore it; or remove it and embed again into a new table, because it is unknown which files its job had yet to "
    "move or remove"
)


def check_mode(mode: str, partition_by: tuple[str, ...]) -> None:
    """Refuse an unknown mode, and `replace` without partition columns. Nothing is read.

    Raises:
        InputError: names the modes, or the setting.
    """
    if mode not in MODES:
        raise InputError(f"--mode {mode} is not one of: {', '.join(MODES)}")
    if mode == "replace" and not partition_by:
        raise InputError("--mode replace replaces partitions, and none are named: pass --set embed.partition_by=COLUMN")


class Table:
    """A Parquet table that embeddings were put into, and the records of its jobs. Nothing here writes.

    Args:
        uri: The table's folder.
    """

    def __init__(self, uri: str) -> None:
        self.uri = storage.normalise_uri(uri)

    @property
    def is_one(self) -> bool:
        """Whether the folder holds such records."""
        return OWN in storage.children(*storage.filesystem(self.uri))

    @property
    def lock_folder(self) -> str:
        """Where the lock of the table stands: in the folder that readers pass over."""
        return self._own()

    def data_files(self) -> dict[str, int]:
        """Return the files of the table that readers see, relative to it, and their bytes."""
        files = storage.list_files(self.uri)
        return {name: size for name, size in files if not any(map(_is_hidden, name.split("/")))}

    def unfinished(self) -> list[str]:
        """Return the names of the journals whose job is not done, oldest first."""
        names = self.records()
        done = {name[:-5] for name in names if name.endswith(".done")}
        return [name[:-5] for name in names if name.endswith(".json") and name[:-5] not in done]

    def done(self) -> list[dict[str, Any]]:
        """Return what finished jobs say of themselves, oldest first."""
        names = self.records()
        uris = [self._own(name) for name in names if name.endswith(".done")]
        try:
            return [storage.read_json(uri, read_done, remedy=_REMEDY) for uri in uris]
        except ArtifactError:
            if names == self.records():
                raise
        return self.done()  # an overwrite removed records meanwhile

    def records(self) -> list[str]:
        """Return the names of all records and work folders of jobs, which every job changes."""
        names = storage.children(*storage.filesystem(self._own()))
        return [name for name in names if not name.startswith(".")]  # there is a lock, too

    def _own(self, *parts: str) -> str:
        return storage.join(self.uri, OWN, *parts)


class Target(Table):
    """A Parquet table that embeddings are put into. Runs on: driver.

    Args:
        uri: The table's folder; made if missing.
        mode: `append` adds rows; `overwrite` keeps only the new rows; `replace` replaces partitions present in the new
            data.
        partition_by: The table's partition columns.

    Raises:
        InputError: if the mode is unknown, or `replace` has no partition columns.
    """

    def __init__(self, uri: str, mode: str, partition_by: tuple[str, ...]) -> None:
        check_mode(mode, partition_by)
        super().__init__(uri)
        self._mode, self._partition_by = mode, partition_by
        for name in storage.children(*storage.filesystem(self.uri)):
            if name in _FOREIGN_TABLES:
                raise InputError(
                    f"--target {uri} is a {_FOREIGN_TABLES[name]} table, and its log would not list the new files: "
                    f"write the result of IvisModel.transform with its own writer, or choose another target"
                )
        storage.check_writable(self.uri, "--target")

    def check_partitions(self) -> None:
        """Refuse other partition columns than those of the table, in any mode: readers rely on them.

        Raises:
            InputError: names both, and the setting.
        """
        folders = {
            tuple(unquote(part.partition("=")[0]) for part in name.split("/")[:-1]) for name in self.data_files()
        }
        if folders - {self._partition_by}:
            found = " and ".join(sorted(",".join(names) or "nothing" for names in folders))
            remedy = f"--set embed.partition_by={found}" if len(folders) == 1 and folders != {()} else "the same"
            raise InputError(
                f"{self.uri} is partitioned by {found}, and embed.partition_by is "
                f"{','.join(self._partition_by) or 'nothing'}: use {remedy}, or choose another --target"
            )

    def put(
        self,
        key: str,
        embed: Callable[[str, Todo], tuple[list[Unit], dict[str, Any]]],
        origin: Origin,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, Any], bool]:
        """Embed what is not in the table yet, and put it there.

        Args:
            key: Of the job: its model, input and settings.
            embed: Embeds these files, working in the folder given; returns the units and facts about them.
            origin: What the job is made from.
            check: Called before the table is touched; what it raises leaves the table as it is.

        Returns:
            The facts, and whether all was there before.

        Raises:
            InputError: if files would have to go that no such job wrote, files of another model are there, or rows
                that were removed cannot be written again.
        """
        for name in self.unfinished():
            self._finish(name)
        done, there = self.done(), set(self.data_files())
        if self._mode != "overwrite":
            check_model(self.uri, done, there, origin)
        todo = self._plan(done, there, key, origin)
        if not todo.new and not todo.again:
            info = next((record["info"] for record in reversed(done) if record["key"] == key), None)
            return info or {"rows": 0, "invalid": {}}, True
        if self._mode == "overwrite":
            self._removals(done, ())
        work = self._own(f"work-{key}")
        units, info = embed(work, todo)
        moves, sizes = [], []
        for unit in units:
            partitions = todo.again.get(tuple(unit.input))
            names = [name for name, _ in unit.files if partitions is None or posixpath.dirname(name) in partitions]
            moves += [[posixpath.relpath(storage.join(unit.folder, name), self.uri), name] for name in names]
            sizes.append((unit.input, len(names)))
        removals = self._removals(done, [target for _, target in moves]) + todo.left
        number = max((record["number"] for record in done), default=0) + 1
        journal = {"number": number, "key": key, "mode": self._mode, "info": info, "model": origin.model}
        journal |= {"settings": origin.settings, "run": origin.run, "trained": origin.trained}
        journal |= {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        journal |= {"input": describe_input(sizes, origin), "moves": moves, "removals": removals}
        name = f"{number:06d}-{key}"
        check()
        write_record(self._own(f"{name}.json"), journal)
        self._finish(name)
        return info, False

    def _plan(self, done: list[dict[str, Any]], there: set[str], key: str, origin: Origin) -> Todo:
        """Return what the job has to embed; other modes than append replace all that is left of a job by all of it."""
        if self._mode == "append":
            return plan_append(self.uri, done, there, key, origin)
        if not done or done[-1]["key"] != key:
            return Todo(sorted(origin.states))
        gone = set(done[-1]["files"]) - there
        if gone:
            log.warning("%s: %d files of this job are gone, like %s; it is done again", self.uri, len(gone), min(gone))
        return Todo(sorted(origin.states) if gone else [])

    def _finish(self, name: str) -> None:
        """Do what a journal says; what is done of it already does no harm."""
        uri = self._own(f"{name}.json")
        journal = storage.read_json(uri, read_journal, remedy=_REMEDY)
        storage.in_parallel(lambda old: storage.remove_file(storage.join(self.uri, old)), journal["removals"])
        storage.move_files((storage.join(self.uri, old), storage.join(self.uri, new)) for old, new in journal["moves"])
        facts = {field: value for field, value in journal.items() if field not in ("moves", "removals")}
        if journal["mode"] == "overwrite":  # what was appended before is gone and may come again
            for record in self.done():
                if record["number"] < journal["number"]:
                    for kind in ("json", "done"):  # a job that died at its very end left both
                        storage.remove_file(self._own(f"{record['number']:06d}-{record['key']}.{kind}"))
        write_record(self._own(f"{name}.done"), {**facts, "files": [target for _, target in journal["moves"]]})
        storage.remove_file(uri)
        storage.remove_folder(self._own(f"work-{journal['key']}"))

    def _removals(self, done: list[dict[str, Any]], targets: Iterable[str]) -> list[str]:
        """Return the files that the new ones, at `targets`, take the place of."""
        there = self.data_files()
        if clash := sorted(set(there) & set(targets)):
            raise ArtifactError(f"{self.uri} already holds {clash[0]}, where a new file is to be written: move it away")
        if self._mode == "append":
            return []
        replaced = {posixpath.dirname(target) for target in targets}
        old = [name for name in there if self._mode == "overwrite" or posixpath.dirname(name) in replaced]
        ours = {name for record in done for name in record["files"]}
        foreign = [name for name in old if name not in ours]
        if foreign:
            raise InputError(
                f"--mode {self._mode} would remove files from {self.uri} that `embed` did not write: "
                f"{listed(foreign, 5)}. Move them away, or choose another --target"
            )
        return old


def _is_hidden(part: str) -> bool:
    """Tell whether readers pass over a folder or file of this name; a partition's may begin with an underscore."""
    return part.startswith(".") or (part.startswith("_") and "=" not in part)
