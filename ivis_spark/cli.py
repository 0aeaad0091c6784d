"""The command line `ivis-spark`: parse, set up logging and Spark, call the pipeline, return an exit code.

0: done. 2: the input or the configuration is wrong; one line says what was given, what is allowed and what to do.
1: anything else. 143: ended by SIGTERM, with nothing half published.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ivis_spark import storage
from ivis_spark.config import Config, describe, load_config
from ivis_spark.errors import ConfigError, DependencyError, IvisError
from ivis_spark.operations import commands as operations
from ivis_spark.pipeline import Pipeline
from ivis_spark.runtime import logs
from ivis_spark.runtime.signals import TERMINATED, Terminated, raise_on_sigterm
from ivis_spark.stages.places import check_places
from ivis_spark.storage import RunFolder

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from ivis_spark.storage import Manifest

log = logging.getLogger(__name__)

_DESCRIPTION = """\
ivis for tables that no machine holds: neighbours, triplets and embeddings on Spark, a Siamese network on Keras.

A run is a folder. Each stage publishes a folder of its own in it, whole or not at all, and a rerun skips what is
there: rows/ neighbours/ triplets/ model/ embeddings/ report/.
"""
_COMMANDS = {
    "run": (
        "All stages: from a table to embeddings and a report.",
        "run --input digits.parquet --output runs/digits --label-col label",
    ),
    "neighbours": (
        "Check and scale the rows, then find the nearest neighbours of each.",
        "neighbours --input digits.parquet --output runs/digits --set neighbours.k=20",
    ),
    "query": (
        "Find the neighbours of the rows of another table, in the index of the run.",
        "query --input new_rows.parquet --output runs/digits --set query.k=10",
    ),
    "triplets": (
        "Draw positives of every anchor, and pack both into blocks with what may be no negative.",
        "triplets --output runs/digits --set triplets.positives_per_anchor=8",
    ),
    "train": ("Train the network on the blocks.", "train --output runs/digits --set train.epochs=60"),
    "embed": (
        "Embed the rows of the run, or those of another table, with the trained network.",
        "embed --input new_rows.parquet --output runs/digits",
    ),
    "evaluate": ("Measure the embeddings and write report.html.", "evaluate --output runs/digits"),
    "demo": ("All stages on the handwritten digits that ship with scikit-learn.", "demo --output runs/demo"),
}
_LOG_FILE = "ivis-spark.log"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Runs on: driver."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command in operations.COMMANDS:
            text, code = operations.run(arguments, _session_factory(arguments, []))
            _say(text)
            return code
        config = _config(arguments)
        check_places(
            config,
            arguments.output,
            input_uri=getattr(arguments, "input", None),
            target=getattr(arguments, "target", None),
            log_file=arguments.log_file,
            config_file=arguments.config,
            spark_conf=_spark_conf(arguments),
        )
        RunFolder(arguments.output).claim()
        _set_up_logging(arguments)
        with raise_on_sigterm():
            _run(arguments, config)
    except IvisError as err:
        _fail(str(err), arguments)
        return err.exit_code
    except ImportError as err:
        _fail(f"a package is missing: {err}. Install the extras: pip install 'ivis_spark[cpu,fit,report]'", arguments)
        return DependencyError.exit_code
    except KeyboardInterrupt:
        _fail("interrupted; what was published stays, and the same command goes on from there", arguments)
        return 130
    except Terminated:
        _fail("ended by SIGTERM; what was published stays, and the same command goes on from there", arguments)
        return TERMINATED
    except Exception as err:  # the traceback goes to the log; the user gets one line
        log.debug("failed", exc_info=True)
        _fail(f"{type(err).__name__}: {_first_line(err)}", arguments)
        return 1
    return 0


def task() -> None:
    """Run a command as a Databricks wheel task, which looks for an exception and not at exit codes.

    Raises:
        IvisError: if the exit code is not 0.
    """
    code = main()
    if code:
        raise IvisError(f"exit code {code}; the reason stands above")


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("ivis-spark", description=_DESCRIPTION, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, example) in _COMMANDS.items():
        epilog = (
            f"example:\n  ivis-spark {example}\n\nsettings for --config and --set, with their defaults:\n\n{describe()}"
        )
        command = commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=formatter)
        _add_options(command, name)
    operations.add_commands(commands.add_parser)
    return parser


def _add_options(parser: argparse.ArgumentParser, command: str) -> None:
    if command != "demo":
        needed = command in ("run", "query")
        parser.add_argument(
            "--input",
            metavar="URI",
            required=needed,
            help="the table: a file, a folder or a URI of HDFS, S3, DBFS, ...",
        )
    parser.add_argument("--output", metavar="DIR", required=True, help="the run folder, a path or URI; made if missing")
    parser.add_argument("--config", metavar="FILE", help="YAML with settings that differ from the defaults below")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="one setting, like neighbours.k=20; wins over --config; repeatable",
    )
    parser.add_argument("--format", help="same as --set data.format=...")
    parser.add_argument("--features-col", metavar="NAME", help="same as --set data.features_col=...")
    parser.add_argument("--feature-cols", metavar="A,B,C", help="same as --set data.feature_cols=...")
    parser.add_argument("--id-col", metavar="NAME", help="same as --set data.id_col=...")
    parser.add_argument("--label-col", metavar="NAME", help="same as --set data.label_col=...")
    parser.add_argument(
        "--overwrite", action="store_true", help="build stages anew that were made with other settings or input"
    )
    if command in ("run", "neighbours"):
        parser.add_argument("--neighbours-table", metavar="URI", help="same as --set neighbours.table=...")
    if command in ("embed", "query"):
        default = "queries-TABLE" if command == "query" else "embeddings, or embeddings-TABLE for another input"
        parser.add_argument("--name", help=f"folder to publish in the run folder (default: {default})")
    if command == "embed":
        parser.add_argument("--target", metavar="URI", help="put the embeddings into this Parquet table instead")
        parser.add_argument(
            "--mode",
            default="append",
            help="with --target: append (default), overwrite, or replace (the partitions that something comes for)",
        )
    parser.add_argument("--master", metavar="URL", help="Spark master (default: what spark-submit says, else local[*])")
    parser.add_argument(
        "--spark-conf", metavar="KEY=VALUE", action="append", default=[], help="a Spark setting; repeatable"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, only warnings and the result")
    parser.add_argument("--verbose", action="store_true", help="also what is only of use to find a fault")
    parser.add_argument(
        "--log-file", metavar="FILE", help=f"where the log goes (default: {_LOG_FILE} in a local run folder)"
    )
    parser.add_argument(
        "--log-format", choices=logs.FORMATS, default="text", help="json: an object a line (default: text)"
    )
    parser.add_argument(
        "--mlflow", metavar="EXPERIMENT", help="report settings, figures, losses and the report to MLflow"
    )
    parser.add_argument("--run-id", metavar="ID", help="id in JSON logs and manifests (default: a new one)")


def _config(arguments: argparse.Namespace) -> Config:
    """Defaults, then the file, then --set, then the short options."""
    config = load_config(arguments.config, arguments.set)
    short = ("format", "features_col", "feature_cols", "id_col", "label_col")
    given = {name: getattr(arguments, name) for name in short if getattr(arguments, name) is not None}
    mapping = config.to_mapping()
    mapping["data"].update(given)
    if getattr(arguments, "neighbours_table", None) is not None:
        mapping["neighbours"]["table"] = arguments.neighbours_table
    return Config.from_mapping(mapping)


def _set_up_logging(arguments: argparse.Namespace) -> None:
    logs.start_run(arguments.run_id)
    logs.set_up(
        level=logging.WARNING if arguments.quiet else logging.DEBUG if arguments.verbose else logging.INFO,
        form=arguments.log_format,
        path=arguments.log_file or _default_log_file(arguments.output),
        all_warnings=arguments.verbose,
    )


def _default_log_file(output: str) -> str | None:
    storage.check_writable(output)
    local = storage.local_path(output)
    return None if local is None else os.path.join(local, _LOG_FILE)


def _run(arguments: argparse.Namespace, config: Config) -> None:
    source = getattr(arguments, "input", None)
    if arguments.command == "demo":
        from ivis_spark.demo import write_digits

        source, config = write_digits(arguments.output, config)
    sessions: list[Any] = []
    pipeline = Pipeline(
        arguments.output,
        config,
        get_spark=_session_factory(arguments, sessions),
        input_uri=source,
        overwrite=arguments.overwrite,
        experiment=arguments.mlflow,
    )
    status = "FAILED"
    try:
        if arguments.command in ("run", "demo"):
            manifests = pipeline.run()
            _tell(pipeline, manifests["report"])
        elif arguments.command == "embed" and arguments.target:
            info = pipeline.embed_into(arguments.target, arguments.mode)
            _say(f"{info['rows']:,} embeddings{' (done before)' * info['done_before']}: {arguments.target}")
        elif arguments.command in ("embed", "query"):
            manifest = getattr(pipeline, arguments.command)(arguments.name)
            what = "embeddings" if arguments.command == "embed" else "rows with their neighbours"
            _say(f"{manifest.info['rows']:,} {what}: {pipeline.run_folder.path(manifest.stage, 'data')}")
        else:
            manifest = getattr(pipeline, arguments.command)()
            _say(f"{manifest.stage}: {pipeline.run_folder.path(manifest.stage)}")
            if arguments.command == "evaluate":
                _tell(pipeline, manifest)
        status = "FINISHED"
    except (KeyboardInterrupt, Terminated):
        status = "KILLED"
        raise
    finally:
        if pipeline.tracker is not None:
            pipeline.tracker.ended(status)
        for progress in sessions:
            progress.__exit__()


def _session_factory(arguments: argparse.Namespace, opened: list[Any]) -> Callable[[], SparkSession]:
    """Return a function that starts the session, and with it the progress lines, when it is first called."""

    def get_spark() -> SparkSession:
        from ivis_spark.spark.session import Progress, get_session

        spark = get_session(f"ivis-spark {arguments.command}", master=arguments.master, settings=_spark_conf(arguments))
        if not opened:
            log.info("Spark %s on %s", spark.version, spark.sparkContext.master)
            progress = Progress(spark, lambda text: log.info("  %s", text))
            opened.append(progress.__enter__())
        return spark

    return get_spark


def _spark_conf(arguments: argparse.Namespace) -> dict[str, str]:
    settings = {}
    for text in arguments.spark_conf:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--spark-conf {text!r} is not of the form key=value, like spark.driver.memory=4g")
        settings[key] = value
    return settings


def _tell(pipeline: Pipeline, report: Manifest) -> None:
    """Say where everything is and how good it is."""
    folder, figures = pipeline.run_folder, report.info
    lines = [
        "",
        f"embeddings  {folder.path('embeddings', 'data')}",
        f"model       {folder.path('model')}",
        f"report      {folder.path('report', 'report.html')}",
        f"picture     {folder.path('report', 'embedding.png')}",
        "",
    ]
    names = {
        "recall_at_k": "recall of the neighbours",
        "trustworthiness": "trustworthiness",
        "random_triplet_accuracy": "random triplet accuracy",
        "distance_correlation_spearman": "distance correlation (Spearman)",
        "knn_accuracy": "kNN accuracy",
        "centroid_correlation": "centroid correlation",
    }
    lines += [f"{text:<32} {figures[name]:.3f}" for name, text in names.items() if figures.get(name) is not None]
    _say("\n".join(lines))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _fail(text: str, arguments: argparse.Namespace) -> None:
    logged = [
        handler for handler in logging.getLogger("ivis_spark").handlers if isinstance(handler, logging.FileHandler)
    ]
    log.log(logging.DEBUG, "%s", text)
    where = f" (log: {logged[0].baseFilename})" if logged else ""
    sys.stderr.write(f"ivis-spark {arguments.command}: {text}{where}\n")


def _first_line(err: BaseException) -> str:
    lines = [line for line in str(err).splitlines() if line.strip()]
    return lines[0] if lines else "no message"


if __name__ == "__main__":
    sys.exit(main())
