"""Progress in terminals, notebooks, logs, and where nobody set up a log."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from ivis_spark import progress
from ivis_spark.progress import Meter, time_left

WORK = """
from ivis_spark.progress import Meter
meter = Meter("epoch", 4, at_most=True)
for done in range(1, 5):
    meter.update(done, f"loss {1 / done:.3f}")
meter.close()
"""


class Clock:
    """Time that goes on by a second whenever it is asked for, unless told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.setenv("IVIS_SPARK_PROGRESS", "lines")
    return made


def test_times_as_people_say_them() -> None:
    seconds = (0.2, 40, 89, 100, 3_000, 7_500)
    assert [time_left(each) for each in seconds] == ["1 s", "40 s", "89 s", "2 min", "50 min", "2 h 5 min"]


def test_lines_hold_the_time_that_is_left_and_are_few(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ivis_spark")
    meter = Meter("search:", 100, unit="tasks", begun=20)
    for done in range(21, 99):
        clock.now += 1
        meter.update(done)
        meter.update(done)
    meter.close()
    assert caplog.messages[:2] == ["search: 21/100 tasks, 79 s left", "search: 26/100 tasks, 74 s left"]
    assert len(caplog.messages) == 17 and caplog.messages[-1] == "search: 98/100 tasks"
    caplog.clear()
    meter = Meter("embed:", 1, unit="tasks")
    for done in (0, 0, 1, 1):
        clock.now += 9
        meter.update(done)
    meter.close()
    Meter("embed:", 1).close()
    assert caplog.messages == ["embed: 1/1 tasks"]


def test_a_slow_start_is_left_out_of_the_time_left(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ivis_spark")
    meter = Meter("epoch", 10, begun=2, at_most=True, slow_start=True)
    for seconds in (20, 10, 10):
        clock.now += seconds
        meter.update(meter._done + 1 if meter._done > 0 else 3)
    assert caplog.messages == [
        "epoch 3/10, ? left",
        "epoch 4/10, at most 60 s left",
        "epoch 5/10, at most 50 s left",
    ]
    caplog.clear()
    meter = Meter("epoch", 5, at_most=True, slow_start=True)
    for done in (0, 1, 2):
        meter.update(done)
        clock.now += 60 - 10 * done
    assert caplog.messages == ["epoch 1/5, at most 4 min left", "epoch 2/5, at most 2 min left"]


def test_work_that_ends_early_says_why_and_is_complete(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, "ivis_spark")
    for bar in (False, True):
        caplog.clear()
        monkeypatch.setenv("IVIS_SPARK_PROGRESS", "bar" if bar else "lines")
        meter = Meter("epoch", 60, at_most=True)
        clock.now += 10
        meter.update(18, "loss 0.5")
        meter.close("the loss has not fallen for 5 epochs")
        assert "left" not in caplog.messages[-1] and caplog.messages[-1].endswith("not fallen for 5 epochs")


def test_without_a_log_lines_go_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("epoch 1/4: loss 1.000, at most ") and lines[-1] == "epoch 4/4: loss 0.250"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_terminal_gets_a_bar_but_not_in_json(as_json: bool) -> None:
    setup = f"from ivis_spark.runtime import logs; logs.set_up(form={'json' if as_json else 'text'!r})"
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-c", f"{setup}\n{WORK}" if as_json else WORK]
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(command, stderr=secondary, stdout=subprocess.DEVNULL, env=environment)
    os.close(secondary)
    shown = b""
    try:
        while chunk := os.read(primary, 4096):
            shown += chunk
    except OSError:  # the other end was closed
        pass
    assert process.wait() == 0
    text = shown.decode()
    if as_json:
        assert '"message": "epoch 4/4: loss 0.250"' in text and "\r" not in text.replace("\r\n", "")
    else:
        assert "epoch 3/4" in text and "loss 0.333" in text and "left" in text and "\r" in text
        assert "?" not in text.split("epoch 3/4")[1].split("left")[0]


def test_a_saved_notebook_keeps_the_last_state_of_the_bar() -> None:
    """In a real kernel, without widgets: one output, of type text, which is replaced."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cell = nbformat.v4.new_code_cell(f"import os\nos.environ.pop('IVIS_SPARK_PROGRESS', None)\n{WORK}")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    notebook.metadata.update(kernel)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": "."}}).execute()
    outputs = notebook.cells[0].outputs
    assert [set(each.get("data", {})) for each in outputs] == [{"text/plain"}]
    text = outputs[0]["data"]["text/plain"]
    assert "epoch 4/4" in text and "loss 0.250" in text and "left" not in text


def test_bars_of_two_threads_leave_the_handlers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVIS_SPARK_PROGRESS", "bar")
    package = logging.getLogger("ivis_spark")
    console = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(package, "handlers", [console])
    one, two = Meter("one", 3), Meter("two", 3)
    assert package.handlers != [console]
    one.close()
    assert package.handlers != [console]
    two.close()
    assert package.handlers == [console]
