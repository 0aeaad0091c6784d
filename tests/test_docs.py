"""The documentation is built without a warning, and the Python of every page runs from top to bottom."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ivis_spark
from ivis_spark import load_config
from ivis_spark.cli import main
from ivis_spark.cli.options import make_parser

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
# Pages whose blocks need a Spark session and the table of the tutorial.
ON_SPARK = {"tutorials/spark_table.md", "howto/spark_ml.md", "howto/mlflow.md", "explanation/neighbours.md"}
# What needs more than this machine's Spark, and where it is tested.
ELSEWHERE = {
    r"spark-submit|^pip wheel|^venv-pack|^PYSPARK|hdfs:": "tests/cluster/test_submit.py",
    r"s3a:|^export": "tests/cluster/test_two_commands.py, on S3 over HTTP",
    r"^airflow ": "tests/cluster/test_airflow.py, by environment variables",
    r"^R |^Rscript": "make test-r",
    r"^chromium|^python -c": "tests/test_explorer.py",
}


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


def steps(page: str) -> list[tuple[str, str]]:
    """Return what a page has its reader do, in order: Python, a file to write, or one line for the shell."""
    wanted = []
    for language, block in re.findall(r"```(python|yaml|bash|text|r)\n(.*?)```", (DOCS / page).read_text(), flags=re.S):
        if language in ("bash", "text"):
            lines = block.replace("\\\n", " ").splitlines()
            wanted += [("shell", line) for line in lines if shlex.split(line, comments=True)]
        else:
            wanted.append((language, block))
    return wanted


def is_here(page: str, kind: str, step: str) -> bool:
    return kind in ("python", "yaml") or (kind == "shell" and not any(re.search(each, step) for each in ELSEWHERE))


def needs_spark(page: str) -> bool:
    return page in ON_SPARK or any(is_here(page, *step) and step[0] == "shell" for step in steps(page))


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.usefixtures("early_ends")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and not needs_spark(page)])
def test_pages_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    run_steps(page)


@pytest.mark.tf
@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.usefixtures("early_ends", "tables_here")
@pytest.mark.parametrize("page", [page for page in PAGES if needs_spark(page)])
def test_pages_run_on_spark(page: str) -> None:
    run_steps(page)


@pytest.fixture
def early_ends(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """End fits early: those of `Ivis` on pages that assert something after enough steps, all others after a few."""
    import short_fits

    from ivis_spark.estimator import ivis
    from ivis_spark.train import job

    monkeypatch.setattr(job, "fit", short_fits.fit_briefly)
    asserts = re.search("^ *assert ", "".join(blocks(page)), flags=re.M)
    monkeypatch.setattr(ivis, "fit_model", short_fits.fit_enough if asserts else short_fits.fit_briefly)


def run_steps(page: str) -> None:
    """Do what a page says, from top to bottom, with one set of names."""
    names: dict[str, object] = {}
    for kind, step in steps(page):
        if not is_here(page, kind, step):
            continue
        if kind == "python":
            exec(compile(step, page, "exec"), names)
        elif kind == "yaml":
            Path(step.removeprefix("# ").partition("\n")[0]).write_text(step)
        else:
            program, *arguments = shlex.split(step.replace("DIR", "runs/digits"), comments=True)
            assert program == "ivis-spark", f"{page}: {step} runs nowhere; name in ELSEWHERE what tests it"
            assert main(arguments) == 0, f"{page}: {step}"


@pytest.mark.tf
@pytest.mark.slow
def test_the_page_of_r_runs(tmp_path: Path) -> None:
    """Twice, with the R package from here, and this Python instead of the one that install_ivis() makes."""
    here = {**os.environ, "R_LIBS": str(tmp_path), "RETICULATE_PYTHON": sys.executable}
    here["PYTHONPATH"] = str(DOCS.parent)
    look = ["Rscript", "-e", "reticulate::py_config()"]
    if not shutil.which("Rscript") or subprocess.run(look, env=here, capture_output=True).returncode:
        pytest.skip(
            "needs R with a reticulate that knows this Python (Debian: apt-get install r-base-core r-cran-reticulate)"
        )
    install = ["R", "CMD", "INSTALL", f"--library={tmp_path}", str(DOCS.parent / "R-package")]
    for command in (install, ["Rscript", "-e", "\n".join(2 * blocks("howto/r.md", "r"))]):
        done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, _session: SparkSession) -> Path:
    """The tables and the run that the pages speak of, small."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("docs")
    X, y = load_digits(return_X_y=True)
    X, y = X[:400], y[:400]
    held = [np.flatnonzero(row) for row in X]
    columns = {"id": range(len(X)), "label": y, "features": X.tolist()}
    digits = pa.table(columns)
    sparse = {"gene": [each.tolist() for each in held], "count": [row[each] for row, each in zip(X, held, strict=True)]}
    pq.write_table(pa.table({**columns, **sparse}), folder / "cells.parquet")
    pq.write_table(
        digits.append_column("day", [[f"2026-11-{20 + i % 3}" for i in range(len(X))]]), folder / "day.parquet"
    )
    for name in ("digits", "new_rows", "events"):
        pq.write_table(digits, folder / f"{name}.parquet")
    (folder / "new" / "day=2026-11-28").mkdir(parents=True)
    pq.write_table(digits, folder / "new" / "day=2026-11-28" / "part-0.parquet")
    numbers = pa.table({"id": range(len(X))} | {f"x{i}": column for i, column in enumerate(X.T[20:28])})
    lines = [";".join(numbers.column_names), *(";".join(map(str, row.values())) for row in numbers.to_pylist())]
    (folder / "cells.csv").write_text("\n".join(lines) + "\n")
    for day in (1, 2):
        (folder / "data" / f"day={day}").mkdir(parents=True)
        pq.write_table(numbers.slice(200 * day - 200, 200), folder / "data" / f"day={day}" / "part-0.parquet")
    ends = ["--id-col", "id", "--label-col", "label", "--set", "train.epochs=3"]
    assert main(["run", "--input", f"{folder}/digits.parquet", "--output", f"{folder}/runs/digits", *ends]) == 0
    return folder


@pytest.fixture
def tables_here(
    request: pytest.FixtureRequest, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spark: SparkSession
) -> Iterator[None]:
    """Go to a folder of the page's own, which has the run unless the page itself makes one."""
    makes = any(
        re.search(r"ivis-spark (run|neighbours) .*runs/digits", step)
        for _, step in steps(request.getfixturevalue("page"))
    )
    shutil.copytree(tables, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs") if makes else None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("BROWSER", "true")  # the program, which opens nothing
    spark.sql("CREATE DATABASE sales")
    spark.read.parquet(f"{tables}/digits.parquet").write.saveAsTable("sales.customers")
    yield
    spark.sql("DROP DATABASE sales CASCADE")


@pytest.mark.parametrize("page", ["configuration.md", "cli.md", "exit_codes.md", "api.md"])
def test_the_reference_is_what_the_code_says(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    reference = importlib.import_module("write_reference")
    assert (DOCS / "reference" / page).read_text() == reference.written(page), "run python docs/write_reference.py"


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


def test_the_page_of_results_is_made_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """And explains only what has some."""
    monkeypatch.syspath_prepend(str(DOCS.parent / "tests" / "bench"))
    bench = importlib.import_module("bench_quality")
    rows = [json.loads(line) for line in Path(bench.results_file("quality")).read_text().splitlines()]
    assert bench.page(rows) == (DOCS / "explanation" / "results.md").read_text()
    page = bench.page([row for row in rows if row["system"] == "fast"])
    assert "System fast" in page and "System ivis" not in page and "`Ivis" not in page and "eld-out 10-NN" not in page
    held = bench.page([rows[0] | {"held-out 10-NN": 0.9, "system": "Ivis"}])
    assert "System Ivis is `Ivis(" in held and "| held-out 10-NN |" in held
