"""A process that does one kind of command on a run folder again and again, and may die at any operation of it.

    python two_commands.py ROOT COMMAND SEED ROUNDS

Prints a line for each command that ended well. Commands are whole ones, but for what Spark and TensorFlow would do.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

import fsspec
import pyarrow.fs
from faulty_storage import dies_after
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem

from ivis_spark import storage
from ivis_spark.errors import ArtifactError
from ivis_spark.manifest import Defaults
from ivis_spark.operations.clean import clean
from ivis_spark.runtime import lock
from ivis_spark.runtime.publishing import StageRunner
from ivis_spark.spark.embedding import units
from ivis_spark.spark.embedding.history import Origin
from ivis_spark.spark.embedding.target import Target
from ivis_spark.stages import lock_of

ROWS, FILES = 20, 3


class CopyingFileSystem(LocalFileSystem):
    """This disk as an object store: files appear whole, a move is a copy, nothing can be made exclusively."""

    protocol = "copying"
    async_impl = True  # what the clients of object stores say of themselves

    def pipe_file(self, path: str, value: bytes, *_: Any, **__: Any) -> None:
        path = self._strip_protocol(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.NamedTemporaryFile(delete=False) as file:
            file.write(value)
        os.replace(file.name, path)

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        self.pipe_file(path2, self.cat_file(path1))
        self.rm_file(path1)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "x" in mode:
            raise NotImplementedError
        return super().open(path, mode, **options)


class RenamingFileSystem(ArrowFSWrapper):
    """This disk by way of pyarrow, which calls itself HDFS: a folder is removed with all that is in it."""

    protocol = "renaming"

    def __init__(self, **options: Any) -> None:
        super().__init__(pyarrow.fs.LocalFileSystem(), **options)

    def rmdir(self, path: str) -> None:
        shutil.rmtree(path)


for kind in (CopyingFileSystem, RenamingFileSystem):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


def write_parts(files: list[str], folder: str) -> dict[str, Any]:
    for name in files:
        storage.write_json(storage.join(folder, name), [name.rpartition("-")[0]] * ROWS)
    return {"rows": ROWS * len(files)}


def names_of(text: str) -> list[list[str]]:
    return [[f"{text}-{number}"] for number in range(FILES)]


def publish(root: str, stage: str, text: str) -> None:
    """Publish a stage in units, with checkpoints, both removed when it is published."""
    runner = StageRunner(root, {}, overwrite=True)
    work, checkpoints = runner.folder.work(stage, text), runner.folder.path(".checkpoints", text)

    def build(build: storage.StageBuild) -> None:
        if stage == "model":
            storage.write_json(storage.join(checkpoints, "checkpoint.json"), {})
        units.move(units.run_units(work, names_of(text), write_parts), build.path("data"))

    def after() -> None:
        storage.remove_folder(work)
        if stage == "model":
            storage.remove_folder(runner.folder.path(".checkpoints"))

    spec = {"config": {"text": text}, "inputs": {}}
    runner.publish(stage, spec, build, lock=lock_of(stage), defaults=Defaults(), map_files=map, after=after)


def put(table: str, text: str) -> None:
    """Append to a table."""
    target = Target(table, "append", ())
    with lock.RunLock(target.lock_folder, "embed") as held:
        target.put(
            text,
            lambda work, todo: (units.run_units(work, [[name] for name in todo.new], write_parts), {"rows": 0}),
            Origin(None, {name: "" for [name] in names_of(text)}),
            check=held.check,
        )


def commands(root: str, text: str) -> dict[str, Callable[[], Any]]:
    """Return the commands by name; `text` is what they write."""
    stages = {"neighbours": "rows", "train": "model", "embed": "embeddings-a", "embed other": "embeddings-b"}
    stages |= {"query": "queries-a", "evaluate": "report"}
    found: dict[str, Callable[[], Any]] = {
        name: lambda stage=stage: publish(root, stage, text) for name, stage in stages.items()
    }
    return {**found, "clean": lambda: clean(root), "embed --target": lambda: put(f"{root}-table", text)}


def main(root: str, command: str, seed: str, rounds: str) -> None:
    lock._SETTLE_S = 0.3
    draw = random.Random(int(seed))
    for _ in range(int(rounds)):
        text = f"{command.replace(' ', '')}x{uuid.uuid4().hex[:8]}"
        work = commands(root, text)[command]
        with contextlib.suppress(ArtifactError):  # somebody else holds the lock
            died, _ = dies_after(draw.randrange(60) if draw.random() < 0.3 else None, work)
            if died:
                os._exit(9)
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
