"""The operational commands: their options and output."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

from ivis_spark.config import load_config
from ivis_spark.errors import ConfigError
from ivis_spark.operations import table
from ivis_spark.operations.clean import clean
from ivis_spark.operations.inspect import show, status, verify

COMMANDS = {
    "plan": (
        "Estimate the resources of a run (tasks, bytes, memory per task, core-hours) and what to change.",
        "plan --rows 1e9 --dims 128 --executors 50x16 --executor-memory 64g --set neighbours.k=20",
    ),
    "doctor": (
        "Check whether this machine or cluster can run the stages, and show how to fix each problem.",
        "doctor --output hdfs:///runs/digits --master spark://host:7077",
    ),
    "status": (
        "Show a run folder: stages, rows, times, quality, who is writing it; or the jobs of a table of embed --target.",
        "status runs/digits",
    ),
    "verify": (
        "Compare every published file with its digest; of a table of embed --target, check that its files exist.",
        "verify runs/digits",
    ),
    "clean": ("Remove what killed runs left behind, and the stages you name.", "clean runs/digits --stages triplets"),
}
_OF_TABLES: dict[str, Callable[[str], table.TableStatus | table.TableFiles]] = {
    "status": table.status,
    "verify": table.verify,
}


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add a parser per command; `add` has the signature of argparse's `add_parser`."""
    options = {"plan": _plan_options, "doctor": _doctor_options, "clean": _clean_options}
    for name, (text, example) in COMMANDS.items():
        command = add(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  ivis-spark {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # --stage A --stage B would be --stages twice, and the last would win
        )
        if name in ("status", "verify", "clean"):
            command.add_argument(
                "output", metavar="DIR", help=f"the run folder{' or the table' * (name != 'clean')}, a path or URI"
            )
        if name in options:
            options[name](command)
        if name != "clean":
            command.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace, get_spark: Callable[[], Any]) -> tuple[str, int]:
    """Run a command; return what it prints and the exit code.

    Raises:
        IvisError: any error of the command.
    """
    if arguments.command == "plan":
        return _plan(arguments), 0
    if arguments.command == "doctor":
        return _doctor(arguments, get_spark)
    look = _OF_TABLES.get(arguments.command)
    if look is not None and table.is_table(arguments.output):
        found = look(arguments.output)
        return (_json(dataclasses.asdict(found)) if arguments.json else found.show()), 0
    if arguments.command == "status":
        state = status(arguments.output)
        return (_json(dataclasses.asdict(state)) if arguments.json else show(state)), 0
    if arguments.command == "verify":
        files = verify(arguments.output)
        lines = [f"{name:<24} {count:>6} files as published" for name, count in files.items()]
        return (_json(files) if arguments.json else "\n".join(lines)), 0
    stages = [name for name in arguments.stages.split(",") if name]
    done = clean(arguments.output, stages=stages, dry_run=arguments.dry_run)
    return "\n".join(done or ["nothing to remove"]), 0


def _plan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rows", type=float, required=True, metavar="N", help="rows of the table, like 1e9")
    command.add_argument("--dims", type=int, required=True, metavar="D", help="features per row")
    command.add_argument(
        "--executors", default="1x4", metavar="ExC", help="executors x cores per executor (default: 1x4)"
    )
    command.add_argument("--executor-memory", default="8g", metavar="M", help="memory per executor (default: 8g)")
    command.add_argument(
        "--executor-disk", metavar="M", help="disk per executor for shuffles, to compare with the estimate"
    )
    command.add_argument("--config", metavar="FILE", help="settings of the run, as for `run`")
    command.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting; repeatable")
    command.add_argument(
        "--measured", metavar="DIR", help="a finished run on part of the table, whose measured rates are used"
    )
    command.add_argument("--measured-cores", type=int, metavar="N", help="the number of cores of that run")


def _doctor_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--output", metavar="DIR", help="run folder to test: write, move and read, also from executors"
    )
    command.add_argument("--master", metavar="URL", help="Spark master; its executors are checked too")
    command.add_argument(
        "--spark-conf", metavar="KEY=VALUE", action="append", default=[], help="a Spark setting; repeatable"
    )


def _clean_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--stages", default="", metavar="A,B", help="published stages to remove")
    command.add_argument("--dry-run", action="store_true", help="show what would be removed, without removing it")


def _plan(arguments: argparse.Namespace) -> str:
    from ivis_spark.operations.measured import measure, notes_of
    from ivis_spark.operations.plan import make_plan, show_plan
    from ivis_spark.stages.estimate import Cluster

    if (arguments.measured is None) != (arguments.measured_cores is None):
        raise ConfigError("--measured and --measured-cores must be passed together: the run, and its number of cores")
    config = load_config(arguments.config, arguments.set)
    cluster = Cluster.parse(arguments.executors, arguments.executor_memory, arguments.executor_disk)
    factors, seen = None, None
    if arguments.measured is not None:
        factors, seen = measure(arguments.measured, arguments.measured_cores)
    stages = make_plan(arguments.rows, arguments.dims, config, cluster, seen=seen, factors=factors)
    if arguments.json:
        return _json([{**dataclasses.asdict(stage), "seconds": stage.seconds} for stage in stages])
    return show_plan(stages, cluster, notes=notes_of(factors, stages) if factors else ())


def _doctor(arguments: argparse.Namespace, get_spark: Callable[[], Any]) -> tuple[str, int]:
    from ivis_spark.operations import doctor

    checks = doctor.check_all(get_spark, arguments.output)
    text = _json([dataclasses.asdict(check) for check in checks]) if arguments.json else doctor.show(checks)
    return text, int(any(check.state == "fail" for check in checks))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)
