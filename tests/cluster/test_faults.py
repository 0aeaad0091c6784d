"""Faults and attacks, each done for real; a table at the end says what was tried and what survived.

A run survives a fault when it ends as if nothing had happened, or says in one line what is wrong and goes on when it is
started again; and when, in between, everything that is published is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from clusters import command_of
from fault_table import FaultTable
from runs import STAGES, Run, embeddings, ids, published

from ivis_spark import storage
from ivis_spark.cli import main
from ivis_spark.errors import ArtifactError

pytestmark = [pytest.mark.spark, pytest.mark.tf, pytest.mark.slow, pytest.mark.cluster, pytest.mark.faults]

# The command that reads each artefact, for those that another stage reads.
READERS = {
    "rows": "neighbours",
    "neighbours": "triplets",
    "triplets": "train",
    "model": "embed",
    "embeddings": "evaluate",
}


def test_driver_killed_in_each_stage(source: str, finished: Path, tmp_path: Path, table: FaultTable) -> None:
    output = tmp_path / "out"
    with table.fault("driver killed (SIGKILL) in each stage, then run again") as fault:
        for number, stage in enumerate(STAGES):
            with fault.attempt():
                run = Run(source, output)
                run.until(stage)
                time.sleep(0.3 + 0.4 * (number % 3))
                run.kill()
                fault.look(output)
                assert not (output / stage / "manifest.json").exists(), "it ended before it could be killed"
        Run(source, output).finish()
        fault.compare(ids(published(output, "embeddings") / "data"), ids(source))
        np.testing.assert_array_equal(embeddings(output), embeddings(finished))


def executors(run: Run) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(run.process.pid).children(recursive=True)
        return [child for child in children if "CoarseGrainedExecutorBackend" in " ".join(command_of(child))]
    return []


def test_executor_killed_in_each_stage(source: str, finished: Path, tmp_path: Path, table: FaultTable) -> None:
    """In those that run on executors; training on them is killed in test_training.py."""
    output, killed = tmp_path / "out", []
    stages = [stage for stage in STAGES if stage != "model"]  # this one trains in the driver

    def kill_one(stage: str) -> None:
        time.sleep(0.5)
        for victim in executors(run)[:1]:
            victim.kill()
            killed.append(stage)

    with table.fault("executor killed in each Spark stage (local-cluster)") as fault, fault.attempt(len(stages)):
        run = Run(source, output, "--master", "local-cluster[2,1,1024]")
        threads = []
        for message in run.lines():
            name = message.removesuffix(": started")
            if name != message and name in stages:
                threads.append(threading.Thread(target=kill_one, args=(name,)))
                threads[-1].start()
        for thread in threads:
            thread.join()
        assert run.process.wait(timeout=60) == 0, "".join(run.text)[-4000:]
        assert killed == stages
        fault.look(output)
        fault.compare(ids(published(output, "embeddings") / "data"), ids(source))
        np.testing.assert_allclose(embeddings(output), embeddings(finished), atol=1e-5)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, for real."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_full(source: str, finished: Path, small_disk: Path, table: FaultTable) -> None:
    output = small_disk / "out"
    with table.fault("disk full in the middle of a run, then enlarged") as fault, fault.attempt():
        run = Run(source, output, "--log-file", "/dev/null")
        code, said = run.end(), "".join(run.text).splitlines()[-1]
        assert code == 1 and said.startswith("ivis-spark run: ") and "No space left" in said, said
        fault.look(output)
        assert any((output / stage).exists() for stage in STAGES)
        subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
        Run(source, output, "--log-file", "/dev/null").finish()
        fault.compare(ids(published(output, "embeddings") / "data"), ids(source))
        np.testing.assert_array_equal(embeddings(output), embeddings(finished))


def biggest_file(stage: Path) -> Path:
    files = [path for path in published(stage.parent, stage.name).rglob("*") if path.is_file()]
    return max((path for path in files if not path.name.startswith((".", "_"))), key=lambda path: path.stat().st_size)


def refuses(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("stage", STAGES)
def test_torn_and_altered_files(
    finished: Path, tmp_path: Path, table: FaultTable, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    victim, manifest = biggest_file(output / stage), output / stage / "manifest.json"
    content = victim.read_bytes()
    with table.fault(f"{stage}: torn file, torn manifest, one bit altered: each is named") as fault:
        with fault.attempt():
            victim.write_bytes(content[: len(content) // 2])
            assert victim.name in refuses(capsys, "verify", str(output))
            if stage in READERS:
                line = (READERS[stage], "--output", str(output), "--set", "train.epochs=4", "--overwrite")
                said = refuses(capsys, *line)
                assert victim.name in said and "were written" in said
        with fault.attempt():
            middle = len(content) // 2
            victim.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
            assert f"{victim.name} was modified" in refuses(capsys, "verify", str(output))
            victim.write_bytes(content)
        with fault.attempt():
            whole = manifest.read_bytes()
            manifest.write_bytes(whole[:-20])
            assert f"{stage}/manifest.json is not a manifest" in refuses(capsys, "verify", str(output))
            manifest.write_bytes(whole)
        fault.look(output)


def test_two_runs_on_one_output(source: str, finished: Path, tmp_path: Path, table: FaultTable) -> None:
    output = tmp_path / "out"
    with table.fault("two runs on one output: the second is refused") as fault, fault.attempt():
        first = Run(source, output)
        first.until("rows")
        second = Run(source, output)
        assert second.end() == 75
        assert f"is being written by process {first.process.pid}" in "".join(second.text)
        fault.look(output)
        first.finish()
        fault.look(output)
        fault.compare(ids(published(output, "embeddings") / "data"), ids(source))
        np.testing.assert_array_equal(embeddings(output), embeddings(finished))


class Bomb:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def lambda_model(path: Path, mark: Path) -> None:
    """Write a model whose Lambda layer would make a file, in a process of its own, where that is allowed."""
    program = f"""
import keras
code = lambda x: (__import__("pathlib").Path({str(mark)!r}).touch(), x)[1]
inputs = keras.Input((64,))
keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Lambda(code)(inputs))).save({str(path)!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    mark.unlink()


def alter_manifest(stage: Path, name: str, **facts: Any) -> None:
    """Change what the manifest says of a file, or list one more: a careful attacker mends size and digest."""
    manifest = stage.parent / "manifest.json"
    told = json.loads(manifest.read_text())
    entries = {entry["path"]: entry for entry in told["files"]}
    entries[name] = {**entries.get(name, {"path": name}), **facts}
    manifest.write_text(json.dumps({**told, "files": list(entries.values())}))


@pytest.mark.usefixtures("spark")
def test_hostile_model_folder(
    finished: Path, tmp_path: Path, table: FaultTable, capsys: pytest.CaptureFixture[str]
) -> None:
    from ivis_spark.nn.persistence import load_model

    mark, output = tmp_path / "was-here", tmp_path / "out"
    shutil.copytree(finished, output)
    model, embed = (
        published(output, "model"),
        ("embed", "--output", str(output), "--overwrite", "--name", "again", "--quiet"),
    )
    with table.fault("hostile model: pickle, facts of no shape, path out of it, Lambda") as fault:
        with fault.attempt():
            np.savez(model / "dense.npz", activations=np.array([Bomb(mark)], dtype=object))
            alter_manifest(model, "dense.npz", **storage.digest_file(str(model / "dense.npz")))
            refuses(capsys, *embed)
            assert not mark.exists()
        with fault.attempt():
            (model / "serving.json").write_text("[]")
            alter_manifest(model, "serving.json", **storage.digest_file(str(model / "serving.json")))
            assert "serving.json is not what was written" in refuses(capsys, *embed)
        with fault.attempt():
            alter_manifest(model, "../../../../etc/passwd", bytes=1, sha256="0")
            assert "is not below the stage" in refuses(capsys, "verify", str(output))
        with fault.attempt():
            encoder, index = model / "encoder.keras", model / "model.json"
            lambda_model(encoder, mark)
            facts = json.loads(index.read_text())
            facts["files"]["encoder.keras"] = storage.digest_file(str(encoder))["sha256"]
            index.write_text(json.dumps(facts))
            with pytest.raises(ArtifactError):
                load_model(str(model))
            assert not mark.exists()


def test_hostile_yaml(tmp_path: Path, table: FaultTable, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "was-here"
    bombs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
    )
    with table.fault("hostile YAML: object, alias bomb, endless nesting") as fault:
        for text in (f"data: !!python/object/apply:pathlib.Path.touch [{mark}]", bombs, "data: " + "{a: " * 3000):
            with fault.attempt():
                (tmp_path / "c.yaml").write_text(text)
                line = ("--input", "x", "--output", str(tmp_path / "o"), "--config", str(tmp_path / "c.yaml"))
                assert "is not valid YAML" in refuses(capsys, "run", *line)
                assert not mark.exists()
