"""The options of the command line, their help, and the configuration that they make."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ivis_spark import __version__
from ivis_spark.config import Config, describe, did_you_mean, load_config, setting_names
from ivis_spark.errors import ConfigError
from ivis_spark.operations import commands as operations
from ivis_spark.runtime import logs
from ivis_spark.spark.embedding.history import MODES

_DESCRIPTION = """\
ivis for tables too large for one machine: neighbours, triplets and embeddings on Spark, a Siamese network on Keras.

A run is a folder. Each stage publishes its own folder in it, completely or not at all, and a rerun skips published
stages: rows/ neighbours/ triplets/ model/ embeddings/ report/.

Exit codes: 0 success; 2 invalid input or configuration; 75 another process is writing the same folder, try again later;
130 ended by Ctrl-C, 143 by SIGTERM; 1 any other error.
"""
_COMMANDS = {
    "run": (
        "Run all stages: from a table to embeddings and a report.",
        "run --input digits.parquet --output runs/digits --label-col label",
    ),
    "neighbours": (
        "Check and scale the rows, then find the nearest neighbours of each row.",
        "neighbours --input digits.parquet --output runs/digits --set neighbours.k=20",
    ),
    "query": (
        "Find the nearest rows of the run for each row of another table.",
        "query --input new_rows.parquet --output runs/digits --set query.k=10",
    ),
    "triplets": (
        "Sample positives for each anchor and pack them into blocks, with the pairs that must not be negatives.",
        "triplets --output runs/digits --set triplets.positives_per_anchor=8",
    ),
    "train": ("Train the network on the blocks.", "train --output runs/digits --set train.epochs=60"),
    "embed": (
        "Embed the rows of the run, or those of another table, with the trained network.",
        "embed --input new_rows.parquet --output runs/digits",
    ),
    "evaluate": ("Measure the embeddings and write report.html.", "evaluate --output runs/digits"),
    "demo": ("Run all stages on the handwritten digits that ship with scikit-learn.", "demo --output runs/demo"),
}
# Options that stand for one setting.
_SHORT = {
    "format": ("data.format", "FORMAT"),
    "features_col": ("data.features_col", "NAME"),
    "feature_cols": ("data.feature_cols", "A,B,C"),
    "id_col": ("data.id_col", "NAME"),
    "label_col": ("data.label_col", "NAME"),
    "neighbours_table": ("neighbours.table", "URI"),
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in a line, without the usage of all options before it."""

    def error(self, message: str) -> NoReturn:
        """End the process."""
        self.exit(2, f"{self.prog}: {message}{'' if '--help' in message else f'; see {self.prog} --help'}\n")


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    """Return what reads an option that has one of these values."""

    def read(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not one of: {', '.join(allowed)}{did_you_mean(text, allowed)}"
            )
        return text

    return read


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser("ivis-spark", description=_DESCRIPTION, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"ivis_spark {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, example) in _COMMANDS.items():
        epilog = (
            f"example:\n  ivis-spark {example}\n\nsettings for --config and --set, with their defaults:\n\n{describe()}"
        )
        command = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=formatter, allow_abbrev=False
        )
        _add_options(command, name)
    operations.add_commands(commands.add_parser)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command; a wrong one ends the process with exit code 2 and says what was meant."""
    parser = make_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        parser.exit(2)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(parser, arguments, _not_an_option(unknown[0], arguments))
    if getattr(arguments, "mode", None) and not arguments.target:
        _refuse(parser, arguments, "--mode says what happens to the table of --target: pass --target too")
    return arguments


def _refuse(parser: argparse.ArgumentParser, arguments: argparse.Namespace, message: str) -> NoReturn:
    parser.exit(2, f"{parser.prog} {arguments.command}: {message}\n")


def _not_an_option(text: str, arguments: argparse.Namespace) -> str:
    option = text.partition("=")[0]
    key = option.lstrip("-").replace("-", "_")
    same = [name for name in setting_names() if key in (name, name.rpartition(".")[2])]
    if same:
        hint = f"; did you mean {' or '.join(f'--set {name}=...' for name in same)}?"
    else:
        hint = did_you_mean(option, [f"--{name.replace('_', '-')}" for name in vars(arguments) if name != "command"])
    return f"{arguments.command} has no option {option}{hint or f'; see ivis-spark {arguments.command} --help'}"


def make_config(arguments: argparse.Namespace) -> Config:
    """Return the configuration: defaults, then the file, then --set, then the options that stand for one setting."""
    passed = {setting: getattr(arguments, option, None) for option, (setting, _) in _SHORT.items()}
    return load_config(arguments.config, arguments.set, {k: v for k, v in passed.items() if v is not None})


def spark_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the settings given with --spark-conf.

    Raises:
        ConfigError: if one is not of the form key=value.
    """
    settings = {}
    for text in arguments.spark_conf:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--spark-conf {text!r} is not of the form key=value, like spark.driver.memory=4g")
        settings[key] = value
    return settings


def _add_options(parser: argparse.ArgumentParser, command: str) -> None:
    add = parser.add_argument
    if command != "demo":
        needed = command in ("run", "query")
        table = "the table: a file, a folder or a URI (HDFS, S3, DBFS, ...)"
        add("--input", metavar="URI", required=needed, help=table)
    add("--output", metavar="DIR", required=True, help="the run folder, a path or URI; created if missing")
    add("--config", metavar="FILE", help="YAML file with settings that differ from the defaults below")
    one = "one setting, like neighbours.k=20; wins over --config; repeatable"
    add("--set", metavar="KEY=VALUE", action="append", default=[], help=one)
    for option, (setting, value) in _SHORT.items():
        if option != "neighbours_table" or command in ("run", "neighbours"):
            add(f"--{option.replace('_', '-')}", metavar=value, help=f"same as --set {setting}=...")
    add("--overwrite", action="store_true", help="rebuild stages that were made with other settings or input")
    if command in ("embed", "query"):
        default = "queries-TABLE" if command == "query" else "embeddings, or embeddings-TABLE for another input"
        add("--name", help=f"folder to publish in the run folder (default: {default})")
    if command == "embed":
        add("--target", metavar="URI", help="write the embeddings into this Parquet table instead")
        modes = "with --target: append (default), overwrite, or replace (only partitions present in the new data)"
        add("--mode", type=_one_of(MODES), metavar="MODE", help=modes)
    add("--master", metavar="URL", help="Spark master (default: set by spark-submit, else local[*])")
    _repeatable_spark_conf(add)
    add("--quiet", action="store_true", help="no progress, only warnings and the result")
    add("--verbose", action="store_true", help="also debug messages")
    where = f"where the log goes (default: {logs.LOG_FILE} in a local run folder)"
    add("--log-file", metavar="FILE", help=where)
    json = "json: one object per line (default: text)"
    add("--log-format", type=_one_of(logs.FORMATS), metavar="{text,json}", default="text", help=json)
    add("--mlflow", metavar="EXPERIMENT", help="log settings, metrics, losses and the report to this MLflow experiment")
    add("--run-id", metavar="ID", help="id in JSON logs and manifests (default: a new one)")


def _repeatable_spark_conf(add: Callable[..., Any]) -> None:
    add("--spark-conf", metavar="KEY=VALUE", action="append", default=[], help="a Spark setting; repeatable")
