"""However a command ends: the exit code, one line on the console, and the traceback in a log that the line names."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ivis_spark import __main__ as program
from ivis_spark.cli import main
from ivis_spark.errors import ArtifactError, InputError
from ivis_spark.pipeline import Pipeline
from ivis_spark.storage import RunFolder

JAVA = "Job aborted\n\tat o.a.X.y(X.scala:1)\nCaused by: java.io.IOException: bad block\n\tat a.B.c(B.java:1)\n"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    package = logging.getLogger("ivis_spark")
    before = package.level, package.propagate, list(package.handlers)
    yield
    package.handlers[:] = before[2]
    package.setLevel(before[0])
    package.propagate = before[1]


def ends_with(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any], output: str, *options: str) -> int:
    monkeypatch.setattr(Pipeline, "triplets", lambda _: work())
    RunFolder(output).claim()
    return main(["triplets", "--output", output, "--quiet", *options])


def raising(err: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise err

    return work


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ivis-spark triplets: ")
    return line


@pytest.mark.parametrize("output", ["out", "memory://endings/out"])
@pytest.mark.parametrize(
    ("err", "text"), [(KeyError("x"), "KeyError: 'x'"), (Exception(JAVA), "IOException: bad block")]
)
def test_an_unexpected_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    output: str, err: Exception, text: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert ends_with(monkeypatch, raising(err), output) == 1
    match = re.fullmatch(r"ivis-spark triplets: (.*) \(log: (.*)\)", only_line(capsys))
    assert match is not None and match.group(1) == text
    assert Path(match.group(2)).parent == (tmp_path / "out" if output == "out" else tmp_path / "tmp")
    log = Path(match.group(2)).read_text()
    assert len(re.findall(r" ERROR .*failed with exit code 1: ", log)) == 1
    assert "Traceback (most recent call last)" in log and str(err).splitlines()[-1] in log


def test_an_unexpected_error_of_an_operators_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ivis_spark.operations.commands.status", lambda _: {}["no stage"])
    assert main(["status", str(tmp_path / "out")]) == 1
    match = re.fullmatch(r"ivis-spark status: KeyError: 'no stage' \(log: (.*)\)", capsys.readouterr().err.strip())
    assert match is not None and "Traceback" in Path(match.group(1)).read_text()


def test_a_mistake_leaves_no_log_behind_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(monkeypatch, raising(ArtifactError("no neighbours")), "memory://endings/out") == 2
    assert only_line(capsys) == "ivis-spark triplets: no neighbours"
    assert main(["status", str(tmp_path / "nothing")]) == 2
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("output", ["out", "memory://endings/out"])
def test_a_folder_that_cannot_be_looked_at_leaves_the_error_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    """Without credentials, say; nothing remote is looked at once a command has failed."""
    monkeypatch.chdir(tmp_path)
    looked = []

    def is_run(_: RunFolder) -> bool:
        looked.append(output)
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr(RunFolder, "is_run", is_run)
    assert main(["triplets", "--output", output, "--config", "no.yaml"]) == 2
    assert "no.yaml' cannot be read" in only_line(capsys)
    assert looked == ([output] if output == "out" else [])


@pytest.mark.parametrize("output", ["out", "memory://endings/out"])
def test_a_log_that_is_named_has_wrong_settings_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    """Unless it is one of the files that are read."""
    monkeypatch.chdir(tmp_path)
    assert main(["triplets", "--output", output, "--set", "train.k=1", "--log-file", "own.log"]) == 2
    assert only_line(capsys).endswith("(log: " + str(tmp_path / "own.log") + ")")
    assert len(re.findall(r" ERROR .*failed with exit code 2: ", Path("own.log").read_text())) == 1
    assert main(["triplets", "--output", output, "--log-file", "no/such.log"]) == 2
    assert "--log-file no/such.log cannot be written: No such file or directory" in only_line(capsys)
    Path("wrong.yaml").write_text("trayn: {}")
    assert main(["triplets", "--output", output, "--config", "wrong.yaml", "--log-file", "wrong.yaml"]) == 2
    words = ["--input", "table/day=*", "--neighbours-table", "near", "--set", "train.k=1"]
    for log in ("table/day=1/log", "near/log"):
        Path(log).parent.mkdir(parents=True)
        assert main(["neighbours", "--output", output, *words, "--log-file", log]) == 2
        assert not Path(log).exists()
    assert Path("wrong.yaml").read_text() == "trayn: {}"


def test_a_console_of_json_says_the_command_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for output in (str(tmp_path / "out"), "memory://endings/out"):
        ends_with(monkeypatch, raising(KeyError("x")), output)
        capsys.readouterr()
        assert main(["triplets", "--output", output, "--log-format", "json"]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len([line for line in lines if "(version " in line]) == 1


def test_what_java_explains_is_in_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise InputError("the table cannot be read") from Exception(JAVA)

    assert ends_with(monkeypatch, work, "memory://endings/out", "--log-format", "json") == 2
    (log,) = (tmp_path / "tmp").iterdir()
    assert only_line(capsys).endswith(f"(log: {log})")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert ["a.B.c(B.java:1)" in line.get("traceback", "") for line in lines if line["level"] == "DEBUG"] == [True]
    assert {line["pid"] for line in lines} == {os.getpid()} and len({line["run_id"] for line in lines}) == 1
    assert lines[0]["message"].startswith("ivis-spark triplets --output memory://endings/out --quiet --log-format json")
    failed, ended = lines[-2:]
    assert (failed["level"], failed["message"]) == (
        "ERROR",
        "ivis-spark triplets failed with exit code 2: the table cannot be read",
    )
    assert ended["message"].startswith("ivis-spark triplets: exit code 2 after ")


def test_a_log_says_what_ran_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without passwords; a mistake in the settings of a run that is there already is in its log, too."""
    options = ["--run-id", "night", "--spark-conf", "spark.hadoop.fs.s3a.secret.key=abc", "--config", "no.yaml"]
    assert ends_with(monkeypatch, raising(KeyError), str(tmp_path / "out"), *options) == 2
    only_line(capsys)
    first, *_, failed, last = log = (tmp_path / "out" / "ivis-spark.log").read_text().splitlines()
    assert [line for line in log if " ERROR " in line] == [failed]
    assert "failed with exit code 2: configuration file 'no.yaml' cannot be read: No such file or directory" in failed
    assert "--run-id night --spark-conf spark.hadoop.fs.s3a.secret.key=... --config no.yaml (version " in first
    assert first.endswith(f", process {os.getpid()}, run id night)") and "abc" not in "".join(log)
    assert re.search(r"exit code 2 after \d+\.\d s$", last)
    assert all(re.match(rf"[\d-]+ [\d:,]+Z {os.getpid()} [A-Z]+ ivis_spark", line) for line in (first, failed, last))
    monkeypatch.setattr("ivis_spark.cli._published", lambda *_: "done")
    assert ends_with(monkeypatch, raising(KeyError), str(tmp_path / "out")) == 0
    log = (tmp_path / "out" / "ivis-spark.log").read_text().splitlines()[len(log) :]
    assert len(log) == 2 and " exit code 0 after " in log[1] and not capsys.readouterr().err


def test_a_message_of_several_lines_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(monkeypatch, raising(InputError("column 'a\nb' is\ntext")), str(tmp_path / "out")) == 2
    assert "column 'a b' is text" in only_line(capsys)


@pytest.mark.parametrize(
    ("number", "code", "text"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
@pytest.mark.parametrize("clean_up", [None, RuntimeError("a connection that was cut")])
def test_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: int, code: int, text: str, clean_up: Exception | None,
) -> None:  # fmt: skip
    """Also where the clean-up that it causes fails."""

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            logging.error("py4j's cry on the root logger")
            if clean_up is not None:
                raise clean_up

    assert ends_with(monkeypatch, work, str(tmp_path / "out")) == code
    assert f"{text}; published stages are kept, and the same command resumes from there" in only_line(capsys)


def test_a_signal_that_is_swallowed_at_the_very_end_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise InputError("what a library made of it") from None

    assert ends_with(monkeypatch, work, str(tmp_path / "out")) == 130
    assert "interrupted" in only_line(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "3"], "train has no option --epochs; did you mean --set train.epochs=...?"),
        (["--k=3"], "did you mean --set neighbours.k=... or --set query.k=... or --set evaluate.k=...?"),
        (["--embedding-dims=3"], "did you mean --set train.embedding_dims=...?"),
        (["--overwite"], "train has no option --overwite; did you mean --overwrite?"),
        (["--zzz"], "train has no option --zzz; see ivis-spark train --help"),
        (["stray"], "train has no option stray"),
    ],
)
def test_an_option_that_is_none(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--output", "out", *options])
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "upsert"], "argument --mode: 'upsert' is not one of: append, overwrite, replace"),
        (["--mode", "Append"], "append, overwrite, replace; did you mean append?"),
        (["--mode", "append"], "--mode says what happens to the table of --target: pass --target too"),
        (["--log-format", "xml"], "argument --log-format: 'xml' is not one of: text, json"),
    ],
)
def test_a_wrong_value_of_an_option_is_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["embed", "--output", "out", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and line.startswith("ivis-spark embed: ") and message in line


def test_an_embedding_that_is_ended_keeps_its_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for work, code, text in (
        (raising(KeyboardInterrupt()), 130, "interrupted; finished units of files are kept, and the same command"),
        (lambda: {"rows": 3, "done_before": True}, 0, "nothing new: all rows of the input are already in file:///t\n"),
    ):
        monkeypatch.setattr(Pipeline, "embed_into", lambda *_, work=work: work())
        RunFolder(str(tmp_path / "out")).claim()
        assert main(["embed", "--output", str(tmp_path / "out"), "--target", "/t", "--quiet"]) == code
        assert text in "".join(capsys.readouterr())


def test_ctrl_c_while_modules_are_imported(tmp_path: Path) -> None:
    """A module on the way interrupts, as the user does."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'ivis_spark.cli':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    done = subprocess.run(
        [sys.executable, "-m", "ivis_spark", "status", "x"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "ivis-spark: interrupted before anything was started\n")


def test_the_process_ends_without_a_search_for_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes a second where TensorFlow was imported."""
    monkeypatch.setattr("ivis_spark.cli.main", lambda: 75)
    try:
        assert program.start() == 75 and gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
