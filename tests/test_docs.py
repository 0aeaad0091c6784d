"""The documentation is built without a warning, and the Python of every page runs from top to bottom."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
# Pages whose blocks need a Spark session and the table of the tutorial.
ON_SPARK = {"tutorials/spark_table.md", "howto/spark_ml.md", "explanation/neighbours.md"}


def blocks(page: str, language: str = "python") -> list[str]:
    text = (DOCS / page).read_text()
    return [block for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)]


@pytest.mark.slow
def test_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="make docs installs Sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "index.html").exists()
    settings = (tmp_path / "reference" / "configuration.html").read_text()
    assert "neighbours.k" in settings and "train.embedding_dims" in settings


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page not in ON_SPARK])
def test_pages_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)


@pytest.mark.tf
@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.usefixtures("spark", "digits_here")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page in ON_SPARK])
def test_spark_pages_run(page: str) -> None:
    names: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)


def test_links_between_pages_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\{doc\}`([^`<]+)`", (DOCS / page).read_text()):
            assert ((DOCS / page).parent / f"{target}.md").resolve().exists(), f"{page}: {target}"
