"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def pytest_configure() -> None:
    """Take Ctrl-C, which a shell lets the processes that it starts in the background ignore: tests send it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A JVM of a minute does not live to see the optimising compiler pay: a third of the Spark tests' time went there.
    os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    # Threads of scikit-learn's OpenMP that wait take the core from the other worker otherwise.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with most slow tests first: workers then end at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Import what tests of TensorFlow train by, so that the next hook acts from the first test on."""
    if importlib.util.find_spec("tensorflow") and any(item.get_closest_marker("tf") for item in session.items):
        importlib.import_module("ivis_spark.train.loop")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Do not compile fits of a few steps, which takes a second of each, unless the test is marked `compiled`."""
    if "ivis_spark.train.loop" in sys.modules:
        import processes

        processes.compile_above(0 if item.get_closest_marker("compiled") else processes.FEW)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ivis-python", help="python of an environment with ivis 2, whose models are then read")


@pytest.fixture(autouse=True)
def _messages_name_options() -> None:
    """Messages speak of options, whichever test imported the package before this one; tests of Python's words ask."""
    from ivis_spark.errors import speak_python

    speak_python(False)


@pytest.fixture(scope="session")
def _session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    from ivis_spark.spark.session import get_session

    scratch: Path = tmp_path_factory.mktemp("spark")
    settings = {
        "spark.ui.enabled": "false",  # no port to fight over
        "spark.local.dir": str(scratch / "local"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.shuffle.partitions": "3",  # odd on purpose: nothing may depend on a round number
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).parent / "helpers" / "lean"),
    }
    session = get_session("tests", master="local[2]", settings=settings)
    yield session
    session.stop()


@pytest.fixture
def spark(_session: SparkSession) -> Iterator[SparkSession]:
    """A session on two cores; what a test cached or registered is gone after it."""
    yield _session
    _session.catalog.clearCache()
    for table in _session.catalog.listTables():
        if table.isTemporary:
            _session.catalog.dropTempView(table.name)
