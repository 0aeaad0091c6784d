"""The documentation is built without a warning, and the Python of every page runs from top to bottom."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import ivis_spark
from ivis_spark import load_config
from ivis_spark.cli.options import make_parser

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
# Pages whose blocks need a Spark session and the table of the tutorial.
ON_SPARK = {"tutorials/spark_table.md", "howto/spark_ml.md", "explanation/neighbours.md"}


def blocks(page: str, language: str = "python") -> list[str]:
    text = (DOCS / page).read_text()
    return [block for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)]


@pytest.mark.tf
@pytest.mark.slow
def test_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="make docs installs Sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "index.html").exists()
    settings = (tmp_path / "reference" / "configuration.html").read_text()
    assert "neighbours.k" in settings and "train.embedding_dims" in settings
    missing = sorted(public_names() - documented_names(tmp_path / "objects.inv"))
    assert not missing, f"docs/reference/api.md lacks {missing}"


# Modules whose public names are all documented; of others the reference names what it documents.
DOCUMENTED = ("nn.networks", "nn.losses", "nn.callbacks", "data.sequence", "data.neighbour_retrieval", "core.metrics")
DOCUMENTED += ("serving.pyfunc", "serving.export", "ml")


def documented_names(inventory: Path) -> set[str]:
    """Return what the documentation has an entry for, by its name and by that of its module."""
    from sphinx.util.inventory import InventoryFile

    entries = InventoryFile.loads(inventory.read_bytes(), uri="")
    return {name for kind, names in entries.data.items() if kind.startswith("py:") for name in names}


def public_names() -> set[str]:
    """Return the names of the package, its classes' own methods, and those of the documented modules."""
    names = {f"ivis_spark.{name}" for name in ivis_spark.__all__}
    for name in ivis_spark.__all__:
        kind = getattr(ivis_spark, name)
        for member in dir(kind) if isinstance(kind, type) else ():
            method = inspect.getattr_static(kind, member)
            method = getattr(method, "fget", None) or getattr(method, "__func__", method)
            own = str(getattr(method, "__module__", "")).startswith("ivis_spark") and hasattr(method, "__doc__")
            # Getters and setters are those of the Params, which have a table.
            if own and not member.startswith(("_", "get", "set")) and inspect.isroutine(method):
                names.add(f"ivis_spark.{name}.{member}")
    for module in DOCUMENTED:
        found = importlib.import_module(f"ivis_spark.{module}")
        path = "ivis_spark" if module == "ml" else f"ivis_spark.{module}"
        listed = getattr(found, "__all__", None) or [
            name for name, value in vars(found).items() if getattr(value, "__module__", "") == found.__name__
        ]
        names |= {f"{path}.{name}" for name in listed if not name.startswith("_") and not name.isupper()}
    return names - {"ivis_spark.Summary"} | {"ivis_spark.ml.Summary"}


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


def test_pictures_are_small_and_made_by_what_the_page_shows() -> None:
    for page in PAGES:
        text = (DOCS / page).read_text()
        for name in re.findall(r"_static/([\w.]+)\)", text):
            assert name in "".join(re.findall(r"```\w+\n(.*?)```", text, flags=re.S)), f"{page}: {name}"
            assert (DOCS / "_static" / name).stat().st_size <= 60_000, name


def commands_of(text: str) -> list[list[str]]:
    """Return the command lines of the package in a page, `jobs/train.py` as `train`."""
    found = []
    for block in re.findall(r"```(?:bash|text)\n(.*?)```", text, flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.search(r"(?:^\s*(?:\$ )?ivis-spark |jobs/(?=\w+\.py))(.*)", line)
            if match and "..." not in line:
                command, *options = shlex.split(match.group(1), comments=True)
                found.append([command.removesuffix(".py"), *options])
    return found


@pytest.mark.parametrize("page", [*PAGES, "../README.md"])
def test_commands_are_those_of_the_parser(page: str) -> None:
    for command in commands_of((DOCS / page).read_text()):
        arguments = make_parser().parse_args(command)
        load_config(None, getattr(arguments, "set", None) or [])
