"""Directives that write the reference from the code: `settings` from the dataclasses, `commands` from the parser."""

from __future__ import annotations

import abc
import argparse
import dataclasses
import typing

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ivis_spark import errors
from ivis_spark.config import Config
from ivis_spark.config.checks import hints_of

_HEAD = ["| setting | default | values | what it does |", "|---|---|---|---|"]


class Generated(SphinxDirective, abc.ABC):
    """A directive whose content is Markdown that the code gives."""

    def run(self) -> list[nodes.Node]:
        """Parse the Markdown where the directive stands."""
        text = StringList()
        for line in self.markdown():
            text.append(line, "generated")
        parent = nodes.section()
        parent.document = self.state.document
        self.state.nested_parse(text, self.content_offset, parent, match_titles=True)
        return parent.children

    @abc.abstractmethod
    def markdown(self) -> list[str]:
        """Return the lines of the content."""


class Settings(Generated):
    """Every setting with its default, its values and its documentation, one table per section."""

    def markdown(self) -> list[str]:
        """Return the lines of the content."""
        fast, ivis = Config(), Config(preset="ivis")
        lines: list[str] = []
        for name, section in hints_of(Config).items():
            if not dataclasses.is_dataclass(section):
                continue
            lines += [f"## `{name}`", "", (section.__doc__ or "").strip().splitlines()[0], ""]
            lines += _HEAD
            for item in dataclasses.fields(section):
                default, other = (getattr(getattr(config, name), item.name) for config in (fast, ivis))
                shown = f"`{_shown(default)}`" + (f" (`ivis`: `{_shown(other)}`)" if other != default else "")
                kind = _values(hints_of(section)[item.name], item.metadata)
                lines.append(f"| `{name}.{item.name}` | {shown} | {kind} | {_cell(item.metadata['doc'])} |")
            lines.append("")
        top = [item for item in dataclasses.fields(Config) if not dataclasses.is_dataclass(hints_of(Config)[item.name])]
        lines += [
            "## Settings outside sections",
            "",
            "| setting | default | values | what it does |",
            "|---|---|---|---|",
        ]
        for item in top:
            kind = _values(hints_of(Config)[item.name], item.metadata)
            lines.append(f"| `{item.name}` | `{_shown(item.default)}` | {kind} | {_cell(item.metadata['doc'])} |")
        return [*lines, ""]


class Commands(Generated):
    """The `--help` of every command, without the list of settings, which has a page of its own."""

    def markdown(self) -> list[str]:
        """Return the lines of the content."""
        from ivis_spark.cli.options import make_parser

        parser = make_parser()
        (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        lines: list[str] = []
        for name, command in commands.choices.items():
            example = (command.epilog or "").partition("\n\n")[0]
            command.epilog = example
            lines += [f"## `{name}`", "", "```text", *command.format_help().splitlines(), "```", ""]
        return lines


class ExitCodes(Generated):
    """Every error class with its exit code."""

    def markdown(self) -> list[str]:
        """Return the lines of the content."""
        lines = ["| error | exit code | meaning |", "|---|---|---|"]
        for name, kind in vars(errors).items():
            if isinstance(kind, type) and issubclass(kind, errors.IvisError) and name == kind.__name__:
                text = (kind.__doc__ or "").strip().splitlines()[0]
                lines.append(f"| `{name}` | {kind.exit_code} | {_cell(text)} |")
        return [*lines, ""]


class Params(Generated):
    """The Params of the estimator, with the settings that they are."""

    def markdown(self) -> list[str]:
        """Return the lines of the content."""
        from ivis_spark.ml import IvisModel
        from ivis_spark.ml.params import settings

        lines = ["| Param | setting | model |", "|---|---|---|"]
        for name, setting in settings().items():
            lines.append(f"| `{name}` | `{setting.full_name}` | {'yes' if hasattr(IvisModel, name) else ''} |")
        for name in ("runFolder", "outputType"):
            lines.append(f"| `{name}` | none: see `explainParams()` | {'yes' if hasattr(IvisModel, name) else ''} |")
        return [*lines, ""]


def _values(hint: typing.Any, metadata: typing.Mapping[str, typing.Any]) -> str:
    options = [hint, *typing.get_args(hint)]
    literal = next((o for o in options if typing.get_origin(o) is typing.Literal), None)
    if literal is not None:
        text = ", ".join(f"`{value}`" for value in typing.get_args(literal))
    else:
        text = _cell(getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint))
    low, high = metadata.get("low"), metadata.get("high")
    if low is not None or high is not None:
        text += f", {'' if low is None else f'from {low:g}'}{'' if high is None else f' to {high:g}'}"
    return text


def _shown(value: typing.Any) -> str:
    return "none" if value is None else "empty" if value in ((), {}, "") else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("typing.", "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("settings", Settings)
    app.add_directive("commands", Commands)
    app.add_directive("exit-codes", ExitCodes)
    app.add_directive("params", Params)
    return {"parallel_read_safe": True}
