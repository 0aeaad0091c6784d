"""Writes the tables of docs/reference from the code: `python docs/write_reference.py`, which `make docs` runs.

Each stands in its page between `<!-- generated: NAME -->` and `<!-- end -->`, so that a page is readable as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import typing
from collections.abc import Iterator
from pathlib import Path

from ivis_spark import errors
from ivis_spark.config import Config
from ivis_spark.config.checks import hints_of

REFERENCE = Path(__file__).parent / "reference"
_HEAD = ["| setting | `preset=fast` | `preset=ivis` | values | what it does |", "|---|---|---|---|---|"]


def _settings() -> Iterator[str]:
    """Yield every setting with its defaults, its values and its documentation, one table per section."""
    fast, ivis = Config(), Config(preset="ivis")
    outside = []
    for item in dataclasses.fields(Config):
        name, section = item.name, hints_of(Config)[item.name]
        if not dataclasses.is_dataclass(section):
            outside.append(_row(name, item, hints_of(Config), fast, ivis))
            continue
        yield from (f"## `{name}`", "", (section.__doc__ or "").strip().splitlines()[0], "", *_HEAD)
        for inner in dataclasses.fields(section):
            yield _row(f"{name}.{inner.name}", inner, hints_of(section), getattr(fast, name), getattr(ivis, name))
        yield ""
    yield from ("## Settings outside sections", "", *_HEAD, *outside)


def _row(
    name: str, item: dataclasses.Field[typing.Any], hints: dict[str, typing.Any], fast: typing.Any, ivis: typing.Any
) -> str:
    defaults = " | ".join(f"`{_shown(getattr(config, item.name))}`" for config in (fast, ivis))
    return f"| `{name}` | {defaults} | {_values(hints[item.name], item.metadata)} | {_cell(item.metadata['doc'])} |"


def _commands() -> Iterator[str]:
    """Yield the `--help` of every command, without the list of settings, which has a page of its own."""
    from ivis_spark.cli.options import make_parser

    (commands,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        command.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, width=100)
        command.epilog = (command.epilog or "").partition("\n\n")[0]
        yield from (f"## `{name}`", "", "```console", *command.format_help().rstrip().splitlines(), "```", "")


def _exit_codes() -> Iterator[str]:
    """Yield every error class with its exit code."""
    yield from ("| error | exit code | meaning |", "|---|---|---|")
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.IvisError) and name == kind.__name__:
            yield f"| `{name}` | {kind.exit_code} | {_cell((kind.__doc__ or '').strip().splitlines()[0])} |"


def _params() -> Iterator[str]:
    """Yield the Params of the estimator, with the settings that they are."""
    from ivis_spark.ml import IvisModel
    from ivis_spark.ml.params import settings

    known = {name: f"`{setting.full_name}`" for name, setting in settings().items()}
    yield from ("| Param | setting | model |", "|---|---|---|")
    for name, text in (known | dict.fromkeys(("runFolder", "outputType"), "none: see `explainParams()`")).items():
        yield f"| `{name}` | {text} | {'yes' if hasattr(IvisModel, name) else ''} |"


PAGES = {
    "configuration.md": ("settings", _settings),
    "cli.md": ("commands", _commands),
    "exit_codes.md": ("exit codes", _exit_codes),
    "api.md": ("params", _params),
}


def written(page: str) -> str:
    """Return the text of a page with what the code says now between its marks."""
    name, lines = PAGES[page]
    start, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
    before, _, rest = (REFERENCE / page).read_text().partition(start)
    content = re.sub(r"\n+\Z", "\n", "".join(f"{line}\n" for line in lines()))
    return f"{before}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def _values(hint: typing.Any, metadata: typing.Mapping[str, typing.Any]) -> str:
    options = [hint, *typing.get_args(hint)]
    literal = next((o for o in options if typing.get_origin(o) is typing.Literal), None)
    if literal is not None:
        text = ", ".join(f"`{value}`" for value in typing.get_args(literal))
    else:
        text = _cell(getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint))
    low, high = metadata.get("low"), metadata.get("high")
    if low is not None or high is not None:
        text += f", {'' if low is None else f'from {_number(low)}'}{'' if high is None else f' to {_number(high)}'}"
    return text


def _shown(value: typing.Any) -> str:
    return "none" if value is None else "empty" if value in ((), {}, "") else str(value)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _cell(text: str) -> str:
    return re.sub(r"[|*<]", r"\\\g<0>", text.replace("\n", " ").replace("typing.", ""))


if __name__ == "__main__":
    for each in PAGES:
        (REFERENCE / each).write_text(written(each))
