"""The README's Python and its commands run, block after block, with fewer steps of training."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.S)


@pytest.fixture
def digits_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a folder that holds digits.parquet, the table that the README speaks of."""
    from ivis_spark.config import Config
    from ivis_spark.demo import write_digits

    uri, _ = write_digits(str(tmp_path), Config())
    (tmp_path / "digits.parquet").write_bytes(Path(uri.removeprefix("file://")).read_bytes())
    monkeypatch.chdir(tmp_path)


@pytest.mark.spark
@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.usefixtures("spark", "digits_here")
@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for the steps that the fit on Spark takes."""
    import short_fits

    from ivis_spark.train import job

    monkeypatch.setattr(job, "fit", short_fits.fit_briefly)
    exec(compile(block, str(README), "exec"), {})


@pytest.mark.spark
@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.usefixtures("digits_here")
@pytest.mark.parametrize("block", blocks("bash"))
def test_command_blocks_run(block: str, tmp_path: Path) -> None:
    """As they stand, but for the epochs that `demo` trains: three are enough to see whether the options are real."""
    command = tmp_path / "bin" / "ivis-spark"
    command.parent.mkdir()
    python = f'exec "{sys.executable}" -m ivis_spark'
    command.write_text(f'#!/bin/sh\n[ "$1" = demo ] && set -- "$@" --set train.epochs=3\n{python} "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": os.pathsep.join([str(command.parent), os.environ["PATH"]])}
    subprocess.run(["bash", "-euc", block], check=True, env=environment)


def test_there_are_blocks() -> None:
    assert blocks("python") and blocks("bash")


def test_commands_are_real() -> None:
    text = README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z0-9-]+)", text)):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
