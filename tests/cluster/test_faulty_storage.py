"""Storage that fails once, fills up, dawdles or lists what was: what is published stays whole, the next try works."""

from __future__ import annotations

import errno
import itertools
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest
from fault_table import Fault, FaultTable
from faulty_storage import FullFileSystem, bury, each_failure, write_as_executor
from small_stages import TABLES, Table, publish, text_of

from ivis_spark.operations.inspect import verify
from ivis_spark.runtime import lock

pytestmark = [pytest.mark.cluster, pytest.mark.faults]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_SETTLE_S", 0.0)


def test_storage_that_lists_stale(table: FaultTable) -> None:
    root = f"stale://{uuid.uuid4().hex}/out"
    with table.fault("storage that lists what was there before") as fault:
        for text in ("old", "new", "newest"):
            with fault.attempt():
                publish(root, text, write=write_as_executor)
                assert text_of(root, fault) == text and verify(root) == {"rows": 2}
                fault.look(root)


def test_slow_storage(table: FaultTable) -> None:
    root = f"slow://{uuid.uuid4().hex}/out"
    with table.fault("storage that takes its time") as fault:
        for text in ("old", "new", "newest"):
            with fault.attempt():
                publish(root, text)
                assert text_of(root, fault) == text
                fault.look(root)


def test_full_storage(table: FaultTable) -> None:
    """Each write of a rebuild finds no room, in turn; then there is room again."""
    with table.fault("storage full at each write of a rebuild, then enlarged") as fault:
        for room in itertools.count(0, 120):
            root = f"full://{uuid.uuid4().hex}/out"
            FullFileSystem.room = float("inf")
            publish(root, "old")
            FullFileSystem.room = room
            refused = None
            try:
                publish(root, "new")
                break
            except OSError as err:
                refused = err.errno
            finally:
                FullFileSystem.room = float("inf")
            assert refused == errno.ENOSPC
            with fault.attempt():
                fault.look(root)
                bury(root)
                assert text_of(root, fault) in ("old", "new")
                publish(root, "newest")
                assert text_of(root, fault) == "newest"
        assert fault.tried > 3


class Requests:
    """Which kinds of requests failed."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.kinds = fault, Counter[str]()

    def attempts(self, failures: Iterator[tuple[str, bool]]) -> Iterator[bool]:
        for request, failed in failures:
            self.kinds[request] += 1
            with self.fault.attempt():
                yield failed


@pytest.mark.parametrize("before", [None, "old"], ids=["first", "rebuild"])
def test_each_request_of_a_publication_fails_once(table: FaultTable, before: str | None) -> None:
    root = ""

    def prepare() -> None:
        nonlocal root
        root = f"flaky://{uuid.uuid4().hex}/out"
        if before:
            publish(root, before)

    what = "rebuild" if before else "first publication"
    with table.fault(f"each read, list, write, remove of a {what} fails once") as fault:
        requests = Requests(fault)
        for failed in requests.attempts(each_failure(lambda: publish(root, "new"), prepare)):
            fault.look(root)
            bury(root)
            assert text_of(root, fault) in ({before, "new"} if failed else {"new"})
            publish(root, "newest")
            assert text_of(root, fault) == "newest"
            fault.look(root)
        assert {"write", "read", "open", "list", "look", "remove"} <= requests.kinds.keys()


@pytest.mark.parametrize("mode", TABLES)
def test_each_request_of_a_job_into_a_table_fails_once(table: FaultTable, mode: str) -> None:
    with table.fault(f"each read, list, write, remove of embedding fails once: {mode}") as fault:
        target = Table("flaky", mode)
        requests = Requests(fault)
        for failed in requests.attempts(each_failure(target.work, target.prepare)):
            if failed:
                target.work()
            fault.compare(target.rows(), target.wanted)
        assert {"write", "copy", "read", "list", "look", "remove"} <= requests.kinds.keys()
