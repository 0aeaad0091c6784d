"""Messages in options of the command line, and in Python's words for those who import the package."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ivis_spark
from ivis_spark import errors
from ivis_spark.cli.options import make_parser
from ivis_spark.errors import ArtifactError, ExistsError, InputError, IvisError, speak_python

PACKAGE = Path(errors.__file__).parent


@pytest.fixture(autouse=True)
def _language() -> Iterator[None]:
    speak_python(False)
    yield
    speak_python(False)


@pytest.mark.parametrize(
    ("options", "python"),
    [
        ("Pass --set neighbours.k=4 or less", "Pass neighbours.k=4 or less"),
        ("set the label column with --label-col", "set the label column with data.label_col"),
        ("choose another name with --set embed.output_col", "choose another name with embed.output_col"),
        ("pass --set 'data.options.basePath=\"/a b\"', or", 'pass data.options.basePath="/a b", or'),
        ("pass --set 'data.options.basePath=\"/a'\"'\"'b\"'", 'pass data.options.basePath="/a\'b"'),
        ("make it first: ivis-spark neighbours --output ...", "make it first: Pipeline(...).neighbours()"),
        ("make it first: ivis-spark train --output 's3://a b'; x", "make it first: Pipeline(...).train(); x"),
        ("ivis-spark train --output /a --overwrite, then", "Pipeline(...).train() with overwrite=True, then"),
        ("ivis-spark neighbours --input ... --output ...", "Pipeline(...).neighbours()"),
        ("rebuild: ivis-spark triplets --overwrite", "rebuild: Pipeline(...).triplets() with overwrite=True"),
        ("or pass --overwrite to rebuild", "or pass overwrite=True to rebuild"),
        ("the new rows: --input TABLE", "the new rows: input_uri"),
        ("choose another --target", "choose another target"),
        ("--mode replace replaces partitions", "mode='replace' replaces partitions"),
        ("with --spark-conf spark.task.cpus=2", "with the setting spark.task.cpus=2"),
        ("pip install --no-build-isolation x; ship it with --py-files", None),
    ],
)
def test_the_same_advice_in_both_languages(options: str, python: str | None) -> None:
    for kind in (IvisError, InputError, ExistsError, ArtifactError):
        err = kind(options)
        assert str(err) == options
        speak_python(True)
        assert str(err) == (python or options)
        speak_python(False)


def test_importing_from_the_package_is_speaking_python() -> None:
    assert str(InputError("--overwrite")) == "--overwrite"
    assert ivis_spark.Pipeline is not None
    assert str(InputError("--overwrite")) == "overwrite=True"


def test_every_option_that_a_message_names_is_known_in_python() -> None:
    """Options of ours in the code of the rooms that Python users reach."""
    ours = set(re.findall(r"--[a-z][a-z-]+", "\n".join(sub.format_help() for sub in _commands())))
    texts = [
        re.sub(r"\{.*?\}", "value", literal)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("cli", "operations", "errors.py")
        and path.name != "estimate.py"  # for `plan` alone
        for literal in re.findall(r'"([^"\n]*--[a-z][^"\n]*)"', path.read_text())
    ]
    speak_python(True)
    left = {option for text in texts for option in re.findall(r"--[a-z][a-z-]+", str(IvisError(text)))} & ours
    assert left <= {
        *("--config", "--log-file", "--set", "--help"),  # of files, and of how settings are read
        *("--executors", "--executor-memory", "--executor-disk"),  # of `plan`, which is a command alone
    }


def _commands() -> list:  # type: ignore[type-arg]
    (action,) = [each for each in make_parser()._actions if hasattr(each, "choices") and each.choices]
    return list(action.choices.values())


def test_messages_name_only_files_that_the_wheel_has() -> None:
    """The wheel has the package alone: no conf/, jobs/, docs/, tests/ or Makefile."""
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        docs = {
            node.body[0].value
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
                found = re.search(r"\b(conf|jobs|docs|tests)/\w|README|CONTRIBUTING|Makefile", node.value)
                assert found is None, f"{file}:{node.lineno} names {found}"


def test_version_is_that_of_the_installed_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = importlib.metadata.version("ivis_spark")
    assert ivis_spark.__version__ == installed and "__version__" in dir(ivis_spark)
    with pytest.raises(SystemExit, match="0"):
        make_parser().parse_args(["--version"])
    assert capsys.readouterr().out.strip() == f"ivis_spark {installed}"

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert ivis_spark.__version__ == "not installed"
