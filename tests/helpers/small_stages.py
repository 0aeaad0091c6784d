"""A stage of two files and a table of a few, on any filesystem: enough to see what a fault does to them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

from fault_table import Fault

from ivis_spark import storage
from ivis_spark.runtime.lock import RunLock
from ivis_spark.spark.embedding.history import Origin, Todo
from ivis_spark.spark.embedding.target import Target
from ivis_spark.spark.embedding.units import Unit, run_units
from ivis_spark.storage import RunFolder

ROWS = 40


def publish(root: str, text: str, write: Callable[[str, Any], None] = storage.write_json) -> None:
    folder = RunFolder(root)
    folder.claim()
    with RunLock(root), folder.build("rows", {"text": text}) as build:
        for number in range(2):
            write(build.path("data", f"part-{number}"), [text] * ROWS)


def text_of(root: str, fault: Fault | None = None) -> str | None:
    """Return what the stage holds, None if it is not published; count its rows."""
    folder = RunFolder(root)
    manifest = folder.manifest("rows")
    if manifest is None:
        return None
    text: str = manifest.spec["text"]
    found = [storage.read_json(folder.uri(manifest, "data", f"part-{number}")) for number in (0, 1)]
    if fault is not None:
        fault.compare([word for words in found for word in words], [text] * 2 * ROWS)
    return text


TABLES = ("append", "overwrite", "replace")


class Table:
    """A user's table of rows by day, into which a job of three units goes on top of what stands there.

    Args:
        scheme: Of the filesystem, or the path of a local folder.
        mode: How the job goes into it.
    """

    BEFORE: ClassVar[dict[str, list[str]]] = {"1": ["1-old-a", "1-old-b"], "4": ["4-old"]}
    JOB: ClassVar[dict[str, list[str]]] = {"1": ["1-new"], "2": ["2-new-a", "2-new-b"], "3": ["3-new"]}

    def __init__(self, scheme: str, mode: str) -> None:
        self._scheme, self._mode, self.uri = scheme, mode, ""
        kept = [] if mode == "overwrite" else [day for day in self.BEFORE if mode == "append" or day not in self.JOB]
        self.wanted = [row for job in (self.JOB, {day: self.BEFORE[day] for day in kept}) for rows in job.values()
                       for row in rows]  # fmt: skip

    def prepare(self) -> None:
        name = uuid.uuid4().hex
        self.uri = f"{self._scheme}/{name}" if "/" in self._scheme else f"{self._scheme}://{name}/table"
        self._put("append", "before", self.BEFORE)

    def work(self) -> None:
        self._put(self._mode, "job", self.JOB)

    def _put(self, mode: str, key: str, job: dict[str, list[str]]) -> None:
        def write(files: list[str], folder: str) -> dict[str, Any]:
            for day in files:
                storage.write_json(storage.join(folder, f"day={day}", f"{key}.json"), job[day])
            return {"rows": sum(len(job[day]) for day in files)}

        def embed(work: str, _: Todo) -> tuple[list[Unit], dict[str, Any]]:
            done = run_units(work, [[day] for day in job], write)
            return done, {"rows": sum(unit.info["rows"] for unit in done)}

        Target(self.uri, mode, ("day",)).put(key, embed, Origin(None, dict.fromkeys(job, key)))

    def rows(self) -> list[str]:
        """Return the rows that a reader of the table sees."""
        fs, path = storage.filesystem(self.uri)
        names = [name for name, _ in storage.list_files(self.uri) if not name.startswith("_ivis_spark")]
        return [row for name in names for row in json.loads(fs.cat_file(f"{path}/{name}"))]
