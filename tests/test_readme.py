"""The README's Python runs as it stands, block after block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.spark
@pytest.mark.tf
@pytest.mark.slow
def test_python_blocks_run(spark: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ivis_spark.config import Config
    from ivis_spark.demo import write_digits

    uri, _ = write_digits(str(tmp_path), Config())
    (tmp_path / "digits.parquet").write_bytes(Path(uri.removeprefix("file://")).read_bytes())
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})


def test_commands_are_real() -> None:
    text = README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z0-9-]+)", text)):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
