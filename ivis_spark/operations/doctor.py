"""`doctor`: can this machine, and this cluster, run the stages? Every fault comes with its remedy.

Each check does the real thing on a small scale: a Spark session that moves Arrow batches through Python workers, a
Parquet file that the reader of training reads, a folder that is written, moved and listed where the run will be.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ivis_spark import storage
from ivis_spark.core.blas import SLOW_PRODUCTS, VARIABLE, wrong_core
from ivis_spark.errors import IvisError
from ivis_spark.spark.causes import deepest_cause
from ivis_spark.spark.hadoop import how_to_reach, scheme_of

_LEAST_FREE_BYTES = 10 << 30
_LEAST_MEMORY_BYTES = 4 << 30
_PACKAGES = ("numpy", "pyarrow", "pandas", "annoy", "fsspec", "pyyaml", "pyspark")
_SAME_EVERYWHERE = ("python", "ivis_spark", "numpy", "pyarrow", "annoy")


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, what was found, and how to fix it."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def check_all(get_spark: Callable[[], Any], root: str | None) -> list[Check]:
    """Check this machine, the storage and Spark; a run folder that was not there is not there after. Runs on: driver.

    Args:
        get_spark: Returns the session.
        root: Run folder to test; None leaves that out.
    """
    checks = check_machine()
    local = None if root is None or not storage.normalise_uri(root).startswith("file:") else storage.local_path(root)
    above = [] if local is None else [Path(local), *Path(local).parents]
    new = [folder for folder in above if not folder.exists()]
    try:
        if root is not None:
            checks.append(check_storage(root))
        return checks + check_spark(get_spark, root)
    finally:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_machine() -> list[Check]:
    """Look at Python, packages, memory, disk and what training needs. Runs on: driver or executor."""
    checks = (_python, _packages, _blas, _memory, _disk, _tensorflow, _reader, _ring, _gpus)
    # What packages print and warn of on the way is not the answer.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return [_guarded(check, check.__name__.strip("_")) for check in checks]


def check_storage(root: str) -> Check:
    """Write, list, move, read and remove below the run folder, by the functions that stages use.

    Runs on: driver or executor.
    """
    check = _guarded(lambda: _storage(root), "storage")
    return check if root in check.found else replace(check, found=f"{root}: {check.found}")


def check_spark(get_spark: Callable[[], Any], root: str | None) -> list[Check]:
    """Start Spark, move Arrow batches through Python workers, and look at the machines of the executors.

    Runs on: driver.

    Args:
        get_spark: Returns the session.
        root: Run folder that executors must reach too; None leaves that out.
    """
    started = time.monotonic()
    try:
        spark = get_spark()
    except Exception as err:  # noqa: BLE001 - whatever keeps Spark from starting is the finding
        return [_broken("spark", err)]
    found = f"{spark.version} on {spark.sparkContext.master}, {time.monotonic() - started:.1f} s to start"
    checks = [Check("spark", "ok", found), _python_workers(spark)]
    if root is not None and not storage.normalise_uri(root).startswith(("file:", "dbfs:")):
        checks.append(_spark_storage(spark, root))
    from ivis_spark.spark.session import is_local

    return checks + ([] if is_local(spark) or checks[1].state == "fail" else _executors(spark, root))


def show(checks: list[Check]) -> str:
    """Return the checks as text, a line each and its remedy below."""
    lines = []
    for check in checks:
        lines.append(f"{check.state:<5} {check.name}: {check.found}")
        if check.remedy and check.state != "ok":
            lines.append(f"      to fix: {check.remedy}")
    return "\n".join(lines)


_NO_CLIENT = (
    "pass a path, or install the filesystem package of the URI: pip install s3fs for s3, gcsfs for gs, adlfs for abfs"
)
# What to do where a check itself breaks.
_INSTALL = "pip install 'ivis_spark[fit,report]', or 'ivis_spark[classic,report]' for Petastorm on CPython 3.10 to 3.12"
_REMEDIES = {
    "packages": _INSTALL,
    "blas": "install numpy and threadpoolctl again",
    "memory": "run on Linux or macOS, which report their memory",
    "disk": "set spark.local.dir (or SPARK_LOCAL_DIRS) to a folder that exists",
    "tensorflow": _INSTALL,
    "reader": _INSTALL,
    "ring": _INSTALL,
    "gpus": "install a TensorFlow that can be imported: " + _INSTALL,
    "storage": "pass a folder that this user can create and write; of a URI, check the bucket, its credentials and its "
    "endpoint",
    "spark": "correct what it names (Java 17 and JAVA_HOME, SPARK_HOME, PYSPARK_PYTHON, --master, --spark-conf), then "
    "run doctor again",
}


def _guarded(check: Callable[[], Check], name: str) -> Check:
    """Run a check; one that breaks is a finding, not an end: this is where broken machines are looked at."""
    try:
        return check()
    except Exception as err:  # noqa: BLE001
        return _broken(name, err)


def _broken(name: str, err: Exception) -> Check:
    no_client = name == "storage" and isinstance(err.__cause__, (ImportError, ValueError))
    remedy = _NO_CLIENT if no_client else _REMEDIES[name]
    return Check(name, "fail", str(err if isinstance(err, IvisError) else deepest_cause(err)), remedy)


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info >= (3, 14):
        return Check("python", "warn", version, "untested: use CPython 3.10 to 3.13")
    return Check("python", "ok", f"{version} ({sys.executable})")


def _packages() -> Check:
    from packaging.requirements import Requirement

    ranges: dict[str, Any] = {}
    extras = ["", "spark", "cpu", "classic" if importlib.util.find_spec("petastorm") else "fit"]
    for need in map(Requirement, importlib.metadata.requires("ivis_spark") or []):
        if need.marker is not None and not any(need.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        ranges[need.name.lower()] = ranges.get(need.name.lower(), need.specifier) & need.specifier
    versions, wrong = [], []
    for name in _PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        versions.append(f"{name} {version}")
        if name in ranges and not ranges[name].contains(version, prereleases=True):
            wrong.append(f"{name} {version} is not {ranges[name]}")
    if wrong:
        return Check("packages", "fail", "; ".join(wrong), _INSTALL)
    return Check("packages", "ok", ", ".join(versions))


def _blas() -> Check:
    found = wrong_core()
    if found is None:
        return Check("blas", "ok", "matrix products use this processor's instructions, as far as can be told")
    return Check(
        "blas",
        "warn",
        SLOW_PRODUCTS % found,
        "Spark's workers have it where ivis-spark itself starts Spark on one machine; for other executors pass "
        f"--spark-conf spark.executorEnv.{VARIABLE}={found[1]}",
    )


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = f"{total / 2**30:.1f} GiB, {os.cpu_count()} cores"
    if total < _LEAST_MEMORY_BYTES:
        return Check("memory", "warn", size, "use 4 GiB or more: a JVM and TensorFlow run side by side")
    return Check("memory", "ok", size)


def _disk() -> Check:
    folder = os.environ.get("SPARK_LOCAL_DIRS", tempfile.gettempdir()).split(",")[0]
    free = shutil.disk_usage(folder).free
    space = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < _LEAST_FREE_BYTES:
        return Check(
            "disk",
            "warn",
            space,
            "shuffles are written there: free some space, or set spark.local.dir to a larger disk",
        )
    return Check("disk", "ok", space)


def _tensorflow() -> Check:
    tf = importlib.import_module("tensorflow")
    return Check("tensorflow", "ok", f"{tf.__version__}, keras {importlib.metadata.version('keras')}")


def _reader() -> Check:
    """Read triplets as training does, and name the readers that are there and broken."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ivis_spark.train.dataset.blocks import TripletBlocks
    from ivis_spark.train.dataset.sharding import Part
    from ivis_spark.train.readers import installed_readers, make_reader

    reader = make_reader("auto")
    with tempfile.TemporaryDirectory(prefix="ivis-spark-doctor-") as folder:
        pq.write_table(pa.table({"block": [b"1234", b"5678"]}), os.path.join(folder, "part-0.parquet"))
        blocks = TripletBlocks(f"file://{folder}", {"part-0.parquet": 2}, 1, 1, 1, 0, group_blocks=2)
        groups = list(reader.read(blocks, [Part("part-0.parquet", 0, 2)], ["block"], seed=1))
    read = sorted(bytes(value) for group in groups for value in group["block"])
    name = type(reader).__module__.rpartition(".")[2]
    if read != [b"1234", b"5678"]:
        return Check("reader", "fail", f"{name} read {read} of two blocks", _INSTALL)
    broken = installed_readers()[1]
    broken = {other: err for other, err in broken.items() if importlib.util.find_spec(other)}
    if broken:
        return Check("reader", "warn", f"{name} reads Parquet; {'; '.join(map(str, broken.values()))}", _INSTALL)
    return Check("reader", "ok", f"{name} reads Parquet")


def _ring() -> Check:
    """Tell how several ranks would train."""
    from ivis_spark.config import TrainConfig
    from ivis_spark.train.backends import resolve_backend

    name = resolve_backend(TrainConfig(num_ranks=2)).__module__.rpartition(".")[2]
    if name != "horovod":
        return Check("ring", "ok", f"several ranks train by {name}")
    from ivis_spark.train.backends.horovod import BUILD

    remedy = f"needed only for training on several ranks. {BUILD}"
    try:
        hvd = importlib.import_module("horovod.tensorflow")
    except Exception as err:  # noqa: BLE001 - built for another TensorFlow, it raises errors of its own
        return Check("ring", "warn", f"horovod: {str(err).splitlines()[0]}", remedy)
    transports = [name for name in ("gloo", "mpi", "nccl") if getattr(hvd, f"{name}_built")()]
    version = importlib.metadata.version("horovod")
    if not transports:
        return Check("ring", "fail", f"horovod {version} without any transport", remedy)
    return Check("ring", "ok", f"several ranks train by horovod {version} with {', '.join(transports)}")


def _gpus() -> Check:
    devices = importlib.import_module("tensorflow").config.list_physical_devices("GPU")
    if devices:
        return Check("gpus", "ok", ", ".join(device.name for device in devices))
    if shutil.which("nvidia-smi"):
        return Check(
            "gpus", "warn", "nvidia-smi is present, but TensorFlow sees no GPU", "pip install 'ivis_spark[gpu]'"
        )
    return Check("gpus", "ok", "none; everything runs on CPUs")


def _storage(root: str) -> Check:
    uri = _trial(root, f"{socket.gethostname()}-{os.getpid()}")
    started = time.monotonic()
    storage.check_bucket(root)
    try:
        storage.write_json(storage.join(uri, "old", "a.json"), {"a": 0})
        storage.replace_file(storage.join(uri, "old", "a.json"), storage.encode_json({"a": 1}))
        storage.move_folder(storage.join(uri, "old"), storage.join(uri, "new"))
        listed = storage.list_files(storage.join(uri, "new"))
        read = storage.read_json(storage.join(uri, "new", "a.json"))
    finally:
        with contextlib.suppress(Exception):  # what failed before says more
            storage.remove_folder(uri)
    taken = time.monotonic() - started
    if [name for name, _ in listed] != ["a.json"] or read != {"a": 1}:
        return Check("storage", "fail", f"{root} lists {listed} after a move", "use consistent storage")
    if taken > 5:
        return Check(
            "storage", "warn", f"{root}: {taken:.1f} s for six operations", "use storage closer to the cluster"
        )
    return Check("storage", "ok", f"{root} is written, moved, listed and read in {taken:.2f} s")


def _spark_storage(spark: Any, root: str) -> Check:
    """Let Hadoop look at the run folder: Spark reads through it, with a class and credentials of its own."""
    try:
        path = spark._jvm.org.apache.hadoop.fs.Path(storage.normalise_uri(root))
        path.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration()).exists(path)
    except Exception as err:  # noqa: BLE001 - whatever keeps Hadoop from looking is the finding
        return Check("spark storage", "fail", f"{root}: {deepest_cause(err)}", how_to_reach(spark, scheme_of(root)))
    return Check("spark storage", "ok", f"Spark reaches {root}")


def _python_workers(spark: Any) -> Check:
    """Let a Python worker of Spark say which Python it is; importing this package there is part of the task."""
    configured = spark.conf.get("spark.pyspark.python", None) or os.environ.get("PYSPARK_PYTHON") or "python3"
    try:
        python, *versions = spark.sparkContext.parallelize([0], 1).map(_python_of_worker).collect()[0]
    except Exception as err:  # noqa: BLE001 - whatever keeps a worker from starting is the finding
        remedy = (
            f"workers are started as {configured!r}: set PYSPARK_PYTHON, or spark.pyspark.python, to a Python "
            f"{platform.python_version_tuple()[0]}.{platform.python_version_tuple()[1]} that has this package on every "
            "machine (here: " + sys.executable + ")"
        )
        return Check("python workers", "fail", str(deepest_cause(err)), remedy)
    return Check("python workers", "ok", f"{python}, Python {versions[0]}")


def _python_of_worker(_: int) -> tuple[str, str]:
    return sys.executable, platform.python_version()


def _report(_: int, batches: Iterator[Any], *, root: str | None, mark: str) -> Iterator[dict[str, Any]]:
    """Describe the machine of an executor; leave a mark in the run folder, which the driver looks for."""
    list(batches)
    checks = check_machine()
    if root is not None:
        checks.append(check_storage(root))
        if checks[-1].state == "ok":
            storage.write_json(storage.join(_trial(root, mark), f"{os.getpid()}.json"), {})
    time.sleep(1.0)  # so that one executor does not take the tasks of all
    yield {"host": socket.gethostname(), "versions": _versions(), "checks": [asdict(check) for check in checks]}


def _versions() -> dict[str, str]:
    return {name: text for name, text in storage.installed_versions().items() if name in _SAME_EVERYWHERE}


def _executors(spark: Any, root: str | None) -> list[Check]:
    context, mark = spark.sparkContext, uuid.uuid4().hex[:8]
    tasks = max(2, context.defaultParallelism)
    body = functools.partial(_report, root=root, mark=mark)
    records = context.parallelize(range(tasks), tasks).mapPartitionsWithIndex(body).collect()
    checks: dict[tuple[str, str], Check] = {}
    for report in records:
        for entry in report["checks"]:
            if entry["state"] != "ok":
                named = Check(f"{entry['name']} on {report['host']}", entry["state"], entry["found"], entry["remedy"])
                checks[named.name, named.found] = named
    other = [report for report in records if report["versions"] != _versions()]
    if other:
        text = "; ".join(storage.differences(_versions(), other[0]["versions"]))
        remedy = "ship the environment with --archives, or install the same wheel on every machine"
        checks["versions", text] = Check(
            f"versions on {other[0]['host']}", "fail", f"driver -> executor: {text}", remedy
        )
    if root is not None:
        shared = _marks_seen(root, mark)
        if not shared:
            remedy = "use a path or URI that driver and executors share (HDFS, S3, DBFS, NFS)"
            checks["shared", root] = Check(
                "shared storage", "fail", f"{root} is a different place on executors", remedy
            )
    hosts = sorted({report["host"] for report in records})
    return [Check("executors", "ok", f"{tasks} tasks on {', '.join(hosts)}"), *checks.values()]


def _marks_seen(root: str, mark: str) -> bool:
    uri = _trial(root, mark)
    seen = bool(storage.list_files(uri))
    storage.remove_folder(uri)
    return seen


def _trial(root: str, name: str) -> str:
    return storage.join(storage.normalise_uri(root), f"{storage.DOCTOR}{name}")
