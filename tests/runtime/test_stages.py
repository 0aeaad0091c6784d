"""What keeps a finished build from being published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from ivis_spark import storage
from ivis_spark.errors import ArtifactError
from ivis_spark.runtime.stages import StageRunner
from ivis_spark.storage import StageBuild


def test_a_lock_lost_while_files_are_digested(tmp_path: Path) -> None:
    """As after a pause of minutes, in which another run took the lock over."""
    root = tmp_path / "out"
    runner = StageRunner(str(root), {"rows": "run"})

    def build(stage: StageBuild) -> None:
        storage.write_json(stage.path("a.json"), {"a": 1})

    def pause(call: Callable[[str], Any], names: list[str]) -> Iterable[Any]:
        uri = str(root / ".lock-run.json")
        storage.write_json(uri, {**storage.read_json(uri), "token": "another run"})
        return map(call, names)

    with pytest.raises(ArtifactError, match="is being written by"):
        runner.publish("rows", {"config": {}, "inputs": {}}, build, lock="run", map_files=pause)
    assert not (root / "rows").exists() and not (root / ".building").exists()
    (root / ".lock-run.json").unlink()
    assert runner.publish("rows", {"config": {}, "inputs": {}}, build, lock="run", map_files=map).stage == "rows"
