"""The command line `ivis-spark`: parse, set up logging and Spark, call the pipeline, return an exit code.

0: success. 2: invalid input or configuration; one line says what was given, what is allowed and what to do. 75: another
process is writing the same folder; try again later. 1: any other error. 130 and 143: ended by Ctrl-C or SIGTERM;
nothing is published partially.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ivis_spark import __version__, storage
from ivis_spark.cli.options import make_config, parse, spark_settings
from ivis_spark.config import Config, command_without_secrets, load_config
from ivis_spark.core.threads import own_process
from ivis_spark.errors import ConfigError, DependencyError, IvisError, speak_python
from ivis_spark.operations import commands as operations
from ivis_spark.pipeline import Pipeline
from ivis_spark.report.wording import NAMES
from ivis_spark.runtime import logs
from ivis_spark.runtime.signals import Guard, Terminated, raise_on_signals
from ivis_spark.spark.causes import account_of, deepest_cause, task_errors
from ivis_spark.stages.outputs import check_places
from ivis_spark.storage import RunFolder

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from ivis_spark.storage import Manifest

log = logging.getLogger(__name__)

_BEGIN = ("run", "neighbours", "demo")  # commands that make the run folder
INTERRUPTED = 128 + signal.SIGINT
_RESUMES = "are kept, and the same command resumes from there"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Runs on: driver."""
    speak_python(False)
    own_process(True)
    arguments = parse(argv)
    arguments.words = sys.argv[1:] if argv is None else list(argv)
    code, guard, keep, started = 1, Guard(), False, time.monotonic()

    def says_more(_: logging.LogRecord) -> bool:
        return guard.signal is None  # py4j tells the root logger of every call that a signal interrupts

    logging.getLogger().addFilter(says_more)
    try:
        with raise_on_signals() as guard:
            code = _run(arguments, guard)
        if guard.signal:  # it came while the last things were cleaned up
            raise KeyboardInterrupt
    except Exception as err:  # noqa: BLE001 - whatever ends a command is answered by one line and an exit code
        code = guard.exit_code if guard.signal else _exit_code(err)
        keep = not guard.signal and _is_for_experts(err)
        _fail(arguments, guard, err, code, keep=keep)
    except (KeyboardInterrupt, Terminated) as err:
        code = guard.exit_code if guard.signal else INTERRUPTED
        _fail(arguments, guard, err, code, keep=keep)
    finally:
        if arguments.command not in operations.COMMANDS:
            ending = f"ivis-spark {arguments.command}: exit code {code} after {time.monotonic() - started:.1f} s"
            logs.to_file(logging.INFO, ending)
        logging.getLogger().removeFilter(says_more)
        logs.close(keep=keep)
        own_process(False)
    return code


def task() -> None:
    """Run a command as a Databricks wheel task, which checks for an exception and not for exit codes.

    Raises:
        IvisError: if the exit code is not 0.
    """
    code = main()
    if code:
        raise IvisError(f"exit code {code}; see the reason above")


def _run(arguments: argparse.Namespace, guard: Guard) -> int:
    sessions: list[Any] = []
    get_spark = _session_factory(arguments, guard, sessions)
    try:
        with task_errors():
            if arguments.command in operations.COMMANDS:
                logs.start_run()
                logs.set_up(level=logging.WARNING, temporary=True)
                text, code = operations.run(arguments, get_spark)
                _say(text)
                return code
            logs.start_run(arguments.run_id)
            _set_up_logging(arguments)  # what reading the configuration has to say is shown
            config = make_config(arguments)
            check_places(
                config,
                arguments.output,
                input_uri=getattr(arguments, "input", None),
                target=getattr(arguments, "target", None),
                log_file=arguments.log_file,
                config_file=arguments.config,
                spark_conf=spark_settings(arguments),
            )
            _check_log_file(arguments)
            _run_stages(arguments, config, get_spark)
            return 0
    finally:
        for progress in sessions:
            progress.__exit__()
        if sessions:
            from ivis_spark.spark.session import stop_quietly

            stop_quietly()


def _run_stages(arguments: argparse.Namespace, config: Config, get_spark: Callable[[], SparkSession]) -> None:
    folder, source = RunFolder(arguments.output), getattr(arguments, "input", None)
    folder.check()
    if arguments.command not in _BEGIN and not folder.is_run():
        raise folder.no_run()
    if arguments.command == "demo":
        from ivis_spark.demo import write_digits

        source, config = write_digits(arguments.output, config)
    pipeline = Pipeline(  # looks at the input, and makes nothing
        arguments.output,
        config,
        get_spark=get_spark,
        input_uri=source,
        overwrite=arguments.overwrite,
        experiment=arguments.mlflow,
    )
    folder.claim()
    _set_up_logging(arguments, _log_file(arguments))
    status = "FAILED"
    try:
        _say(_published(arguments, pipeline))
        status = "FINISHED"
    except Exception:
        raise
    except BaseException:
        status = "KILLED"
        raise
    finally:
        if pipeline.tracker is not None:
            pipeline.tracker.ended(status)


def _published(arguments: argparse.Namespace, pipeline: Pipeline) -> str:
    """Run the stages of a command; return where the result is."""
    command = arguments.command
    if command in ("run", "demo"):
        return _summary(pipeline, pipeline.run()["report"])
    if command == "embed" and arguments.target:
        info = pipeline.embed_into(arguments.target, arguments.mode or "append")
        target = storage.normalise_uri(arguments.target)
        if info["done_before"]:
            return f"nothing new: all rows of the input are already in {target}"
        return f"{info['rows']:,} embeddings: {target}"
    if command in ("embed", "query"):
        manifest = getattr(pipeline, command)(arguments.name)
        what = "embeddings" if command == "embed" else "rows with their neighbours"
        return f"{manifest.info['rows']:,} {what}: {pipeline.run_folder.uri(manifest, 'data')}"
    manifest = getattr(pipeline, command)()
    where = f"{manifest.stage}: {pipeline.run_folder.uri(manifest)}"
    return f"{where}\n{_summary(pipeline, manifest)}" if command == "evaluate" else where


def _session_factory(arguments: argparse.Namespace, guard: Guard, opened: list[Any]) -> Callable[[], SparkSession]:
    """Return a function that starts the session, and with it the progress lines, when it is first called."""

    def get_spark() -> SparkSession:
        from ivis_spark.spark.session import end_quietly, get_session
        from ivis_spark.spark.watching import SparkProgress

        spark = get_session(
            f"ivis-spark {arguments.command}",
            master=arguments.master,
            settings=spark_settings(arguments),
            log_file=logs.path(),
            log_as_json=getattr(arguments, "log_format", "text") == "json",
        )
        if not opened:
            guard.at_once(lambda: end_quietly(spark))
            log.info("Spark %s on %s", spark.version, spark.sparkContext.master)
            opened.append(SparkProgress().__enter__())
        return spark

    return get_spark


def _summary(pipeline: Pipeline, report: Manifest) -> str:
    """Return where everything is and how good it is."""
    folder, metrics = pipeline.run_folder, report.info
    lines = [
        "",
        f"embeddings  {folder.data('embeddings')}",
        f"model       {folder.uri(folder.require('model', 'train'))}",
        f"report      {folder.uri(report, 'report.html')}",
        f"picture     {folder.uri(report, 'embedding.png')}",
        "",
    ]
    lines += [f"{name:<32} {metrics[key]:.3f}" for key, name in NAMES.items() if metrics.get(key) is not None]
    pairs = (metrics.get("confusion") or {}).get("pairs", [])[:3]
    confused = [
        f"{pair['label']} predicted as {pair['predicted']} ({pair['rows']} rows, {pair['share']:.0%})" for pair in pairs
    ]
    lines += [f"{'Confused most':<32} {', '.join(confused)}"] if confused else []
    return "\n".join(lines)


def _set_up_logging(arguments: argparse.Namespace, path: str | None = None) -> None:
    again = logs.path() is not None
    logs.set_up(
        level=logging.WARNING if arguments.quiet else logging.DEBUG if arguments.verbose else logging.INFO,
        form=arguments.log_format,
        path=path,
        temporary=path is None,
        all_warnings=arguments.verbose,
    )
    command = command_without_secrets(["ivis-spark", *arguments.words])
    text = f"{command} (version {__version__}, process {os.getpid()}, run id {logs.run_id()})"
    logs.to_file(logging.INFO, text, again=again)


def _log_file(arguments: argparse.Namespace) -> str | None:
    """Return the file that the log of a command goes to; None for a remote run folder."""
    if arguments.log_file:
        return str(arguments.log_file)
    storage.check_writable(arguments.output)
    local = storage.local_path(arguments.output)
    return None if local is None else os.path.join(local, logs.LOG_FILE)


def _check_log_file(arguments: argparse.Namespace) -> None:
    if arguments.log_file:
        try:
            with open(arguments.log_file, "a", encoding="utf-8"):
                pass
        except OSError as err:
            raise ConfigError(f"--log-file {arguments.log_file} cannot be written: {err.strerror}") from err


def _log_to_run(arguments: argparse.Namespace) -> None:
    """Let what ends a command before its work stand in the named log, or that of a local run folder."""
    if not logs.is_temporary() or arguments.command in operations.COMMANDS:
        return
    with contextlib.suppress(Exception):  # whatever it is must not hide why the command ended
        if arguments.log_file:
            read, target = (getattr(arguments, name, None) for name in ("input", "target"))
            table = getattr(arguments, "neighbours_table", None)
            for glob in (False, True):  # the settings may be what is wrong
                config = load_config(settings={"data.glob": glob, "neighbours.table": table})
                check_places(config, arguments.log_file, input_uri=read, target=target, config_file=arguments.config)
        elif storage.local_path(arguments.output) is None or not RunFolder(arguments.output).is_run():
            return
        _set_up_logging(arguments, _log_file(arguments))


def _exit_code(err: Exception) -> int:
    if isinstance(err, IvisError):
        return err.exit_code
    return DependencyError.exit_code if isinstance(err, ImportError) else 1


def _is_for_experts(err: Exception) -> bool:
    """Tell whether the line on the console may not be enough: an error that is not ours, or one that Java explains."""
    return not isinstance(err, IvisError) or "\tat " in account_of(err.__cause__ or err)


def _fail(arguments: argparse.Namespace, guard: Guard, err: BaseException, code: int, *, keep: bool) -> None:
    """Say in a line why a command ended, on the console and in the log, which gets the traceback with Java's stack."""
    if guard.signal or isinstance(err, KeyboardInterrupt):
        how = "ended by SIGTERM" if guard.signal == signal.SIGTERM else "interrupted"
        text = f"{how}; {'finished units of files' if arguments.command == 'embed' else 'published stages'} {_RESUMES}"
    elif isinstance(err, IvisError):
        text = str(err)
    elif isinstance(err, ImportError):
        text = f"a package is missing: {err}. Install the extras: pip install 'ivis_spark[fit,report]'"
    else:
        text = str(deepest_cause(err))
    text = " ".join(text.splitlines())
    _log_to_run(arguments)
    if getattr(arguments, "verbose", False) or not isinstance(err, Exception) or _is_for_experts(err):
        log.debug("%s", text, exc_info=err)
    logs.to_file(logging.ERROR, f"ivis-spark {arguments.command} failed with exit code {code}: {text}")
    where = logs.path() if keep or not logs.is_temporary() else None
    sys.stderr.write(f"ivis-spark {arguments.command}: {text}{f' (log: {where})' if where else ''}\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
