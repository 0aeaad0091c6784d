"""The lock that keeps two runs from writing one run folder.

A small file `<run folder>/.lock-<name>.json` names its owner: host, process, and the time of its last heartbeat. It is
made so that only one can make it; on filesystems that cannot do that the last writer wins and the loser sees it.
A lock is taken over if its process is gone, which only the table of processes that it runs in can tell (two containers
may have one hostname), or if its heartbeat has stopped. Clocks of two machines may differ, so a heartbeat that looks
old is watched before it counts as stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ivis_spark import storage
from ivis_spark.errors import ArtifactError, BusyError
from ivis_spark.manifest import check_fields

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
STALE_S = 120.0  # twelve heartbeats: storage that is slow for a minute must not cost a run its lock
WATCH_S = 2.5 * HEARTBEAT_S  # how long a heartbeat is watched that looks old by this machine's clock
_SETTLE_S = 1.0  # what a write of another run that wants the lock too may take to be seen
_YEAR_10000 = 253402300800.0  # beyond which no time has a name
PREFIX = ".lock-"


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Times are seconds since 1970 by the owner's clock; `born` tells a process from a later one of the same number;
    `processes` names the table of processes that the number belongs to.
    """

    token: str
    host: str
    pid: int
    user: str
    born: str | None
    started: float
    heartbeat: float
    processes: str | None = None

    @classmethod
    def me(cls) -> Owner:
        """Describe this process."""
        now, pid = time.time(), os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), pid, _user(), _born(pid), now, now, _processes())

    @classmethod
    def from_mapping(cls, mapping: Any) -> Owner:
        """Make an owner of what JSON gave. Raises ValueError if that is none."""
        text = (str, type(None))
        owner = check_fields(mapping, token=str, host=str, pid=int, user=str, born=text)
        check_fields({"processes": None, **mapping}, processes=text)
        times = check_fields(mapping, started=(int, float), heartbeat=(int, float))
        if not all(0 <= times[name] < _YEAR_10000 for name in ("started", "heartbeat")) or owner["pid"] < 1:
            raise ValueError("its times or process number are impossible")
        return cls(**owner)

    def is_gone(self) -> bool:
        """Tell whether the owner's process is known to have ended. A corrupt lock has no owner."""
        return not self.token or (self.is_here() and not _is_running(self.pid, self.born))

    def is_here(self) -> bool:
        """Tell whether the owner's process is in the table of processes that this one is in."""
        return self.host == socket.gethostname() and self.processes is not None and self.processes == _processes()

    def is_silent(self) -> bool:
        """Tell whether the last heartbeat is more than `STALE_S` from now, by this machine's clock."""
        return abs(time.time() - self.heartbeat) > STALE_S

    def seems_dead(self) -> bool:
        """Tell whether the owner is gone, or silent; only `RunLock` watches whether a silent one is alive."""
        return self.is_gone() or self.is_silent()

    def __str__(self) -> str:
        ago = time.time() - self.heartbeat
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.started))
        last = f"last heartbeat {ago:.0f} s ago" if ago > -HEARTBEAT_S else f"its clock is {-ago:.0f} s ahead"
        return f"process {self.pid} of {self.user} on {self.host}, since {since} UTC, {last}"


class RunLock:
    """Holds a lock while the `with` block runs. Runs on: driver; a thread writes the heartbeat.

    Args:
        root: URI of the run folder.
        name: Which lock: stages that do not meet may have one each.
        option: Where the user named the folder.
        place: How the user named it, if the lock is elsewhere.

    Raises:
        BusyError: on entering, if another run holds the lock; names it and says when it can be taken over.
    """

    def __init__(self, root: str, name: str = "run", *, option: str = "--output", place: str | None = None) -> None:
        self.uri = storage.join(storage.normalise_uri(root), f"{PREFIX}{name}.json")
        self._owner, self._option = Owner.me(), option
        self._place = self.uri.rpartition("/")[0] if place is None else f"{option} {place}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="ivis-spark-lock")

    def __enter__(self) -> RunLock:
        before = read_owner(self.uri)
        if before is not None and not before.is_gone():
            if not before.is_silent() or _beats(self.uri, before):
                raise self._refused(before)
        if before is not None:
            log.warning("taking over a stale lock: %s", before)
        alone = self._create(replace=before is not None)
        if not alone:
            time.sleep(_SETTLE_S)
            self.check()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_SETTLE_S)
        owner = read_owner(self.uri)
        if owner is not None and owner.token == self._owner.token:
            fs, path = storage.filesystem(self.uri)
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)

    def check(self) -> None:
        """Check whether the lock is still this run's; call it before something is published.

        Raises:
            BusyError: if another run took it over, as happens after a pause longer than `STALE_S`.
        """
        owner = read_owner(self.uri)
        if owner is None or owner.token != self._owner.token:
            raise self._refused(owner)

    def _refused(self, owner: Owner | None) -> BusyError:
        if owner is None:
            return BusyError(f"the lock {self.uri} of this run was removed; restart the run")
        wait = STALE_S - (time.time() - owner.heartbeat)
        rest = f"if it is dead, restart{f' in {wait:.0f} s, when its lock can be taken over' * (wait > 0)}"
        if owner.is_here():
            rest = f"restart after process {owner.pid} has ended; the new run takes over the lock at once"
        return BusyError(
            f"{self._place} is being written by {owner}. Wait for it, choose another {self._option}, or {rest}"
        )

    def _create(self, *, replace: bool) -> bool:
        """Write the lock; return whether it is certain that nobody else wrote it too."""
        fs, path = storage.filesystem(self.uri)
        fs.makedirs(fs._parent(path), exist_ok=True)
        body = _encode(self._owner)
        if not replace:
            try:
                with fs.open(path, "xb") as file:
                    file.write(body)
            except FileExistsError as err:
                time.sleep(_SETTLE_S)
                raise self._refused(read_owner(self.uri)) from err
            except (ValueError, NotImplementedError):
                pass  # a filesystem that cannot create exclusively
            else:
                return True
        fs.pipe_file(path, body)
        return False

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                self.check()
                self._owner = dataclasses.replace(self._owner, heartbeat=time.time())
                _rewrite(self.uri, _encode(self._owner))
            except BusyError as err:
                log.error("%s", err)  # the run itself hears of it when it is about to publish
                return
            except OSError as err:
                log.warning("the heartbeat of %s could not be written: %s", self.uri, err)


def read_owner(uri: str, *, pauses: tuple[float, ...] = (0.0, 0.2, 1.0)) -> Owner | None:
    """Return who holds a lock, None if nobody does.

    A corrupt file is read again after each pause, because its owner may be writing it; then its owner counts as dead.
    """
    fs, path = storage.filesystem(uri)
    for pause in pauses:
        time.sleep(pause)
        try:
            found: Owner = storage.parse_json(fs.cat_file(path), uri, Owner.from_mapping)
            return found
        except FileNotFoundError:
            return None
        except ArtifactError:
            continue
    return Owner("", "an unknown host", 0, "an unknown user", None, 0.0, 0.0)


def _beats(uri: str, owner: Owner) -> bool:
    """Watch whether the heartbeat of an owner continues, independent of clocks."""
    log.info("checking whether a run is alive: %s", owner)
    until = time.monotonic() + WATCH_S
    while time.monotonic() < until:
        time.sleep(min(1.0, WATCH_S / 5))
        now = read_owner(uri)
        if now is None or (now.token, now.heartbeat) != (owner.token, owner.heartbeat):
            return now is not None
    return False


def owners(root: str) -> dict[str, Owner]:
    """Return the locks of a run folder by URI, dead ones too."""
    names = storage.children(*storage.filesystem(root))
    uris = [storage.join(storage.normalise_uri(root), name) for name in names if name.startswith(PREFIX)]
    by_uri = {uri: read_owner(uri) for uri in uris if uri.endswith(".json")}
    return {uri: owner for uri, owner in by_uri.items() if owner is not None}


def lock_names(uris: Iterable[str]) -> list[str]:
    """Return the names of locks by the URIs that `owners` gives."""
    return [uri.rpartition("/")[2][len(PREFIX) : -len(".json")] for uri in uris]


def _encode(owner: Owner) -> bytes:
    return json.dumps(dataclasses.asdict(owner), indent=2).encode()


def _rewrite(uri: str, body: bytes) -> None:
    """Replace a file so that nobody reads half of it and a full disk leaves the old one."""
    local = storage.local_path(uri)
    if local is None:
        fs, path = storage.filesystem(uri)
        fs.pipe_file(path, body)
        return
    with open(local + ".new", "wb") as file:
        file.write(body)
    os.replace(local + ".new", local)


def _is_running(pid: int, born: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return born is None or _born(pid) in (None, born)


def _processes() -> str | None:
    """Return what names the table of processes that this one is in: this start of the machine, and the namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """Return when a process started, in the kernel's ticks; None where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"user {os.getuid()}"
