"""What keeps a finished build from being published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ivis_spark import storage
from ivis_spark.errors import ArtifactError
from ivis_spark.manifest import Defaults
from ivis_spark.runtime.publishing import StageRunner
from ivis_spark.storage import StageBuild


def test_a_lock_lost_while_files_are_digested(tmp_path: Path) -> None:
    """As after a pause of minutes, in which another run took the lock over."""
    root = tmp_path / "out"
    runner = StageRunner(str(root), {"rows": "run"})

    def build(stage: StageBuild) -> None:
        storage.write_json(stage.path("a.json"), {"a": 1})

    def pause(call: Callable[[str], Any], names: Mapping[str, int]) -> Iterable[Any]:
        uri = str(root / ".lock-run.json")
        storage.write_json(uri, {**storage.read_json(uri), "token": "another run"})
        return map(call, names)

    with pytest.raises(ArtifactError, match="is being written by"):
        runner.publish("rows", {"config": {}, "inputs": {}}, build, lock="run", defaults=Defaults(), map_files=pause)
    assert not (root / "rows").exists()
    (root / ".lock-run.json").unlink()
    assert (
        runner.publish(
            "rows", {"config": {}, "inputs": {}}, build, lock="run", defaults=Defaults(), map_files=map
        ).stage
        == "rows"
    )


def test_stages_that_do_not_belong_together(tmp_path: Path) -> None:
    """Which commands to run again is said, in their order, whichever stage is asked for."""
    commands = {"rows": "neighbours", "neighbours": "neighbours", "triplets": "triplets", "model": "train"}
    runner = StageRunner(str(tmp_path / "out"), commands, overwrite=True)

    def publish(name: str, number: int, *inputs: str) -> None:
        found = {stage: runner.require(stage).fingerprint for stage in inputs}
        spec = {"config": {"n": number}, "inputs": found}
        runner.publish(name, spec, lambda stage: None, lock="run", defaults=Defaults(), map_files=map)

    publish("rows", 1)
    publish("neighbours", 1, "rows")
    publish("triplets", 1, "rows", "neighbours")
    publish("model", 1, "triplets")
    runner.require("model")
    publish("neighbours", 2, "rows")
    again = "'triplets' was made from 'neighbours' that has been replaced since. Run again, with --overwrite: "
    with pytest.raises(ArtifactError, match=again + r"ivis-spark triplets --output \S+$"):
        publish("model", 2, "triplets")
    both = r"ivis-spark triplets --output \S+, then ivis-spark train --output \S+$"
    with pytest.raises(ArtifactError, match=again + both):
        runner.require("model")
    runner.folder.remove("triplets")  # what lies between is gone, and still the model is known to be an old one
    with pytest.raises(ArtifactError, match=r"'model' was made from 'neighbours'.*: ivis-spark train --output \S+$"):
        runner.require("model")
    publish("triplets", 2, "rows", "neighbours")
    publish("model", 2, "triplets")
    runner.require("model")
    publish("rows", 2)
    with pytest.raises(ArtifactError, match=r"'neighbours' was made from 'rows'.*: ivis-spark neighbours --output"):
        runner.require("neighbours")


def test_what_a_stage_leaves_is_removed_under_its_lock(tmp_path: Path) -> None:
    root = tmp_path / "out"
    runner = StageRunner(str(root), {"model": "train"})
    seen: list[bool] = []

    def after() -> None:
        seen.append((root / ".lock-run.json").exists() and (root / "model" / "manifest.json").exists())

    runner.publish("model", {}, lambda stage: None, lock="run", defaults=Defaults(), map_files=map, after=after)
    assert seen == [True]
