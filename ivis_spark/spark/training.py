"""The train stage on a Spark cluster: starts the ranks as one barrier stage, watches them, starts them again.

A Spark task starts a rank as a process of its own and waits for it. So threads, GPU and memory of a rank are what its
environment says, nothing of it is left behind in Spark's Python workers, and a rank that dies is a value that the task
returns. Barrier tasks start all together or not at all, are never speculated, and die together with an executor.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from py4j.protocol import Py4JError
from pyspark import BarrierTaskContext, inheritable_thread_target
from pyspark.sql import SparkSession

from ivis_spark import storage
from ivis_spark.config import TrainConfig, section_from_mapping
from ivis_spark.errors import ArtifactError, ConfigError, IvisError, TrainingError, remote_error
from ivis_spark.manifest import check_fields, check_list
from ivis_spark.spark.causes import account_of, deepest_cause
from ivis_spark.spark.session import describe_job, is_local
from ivis_spark.train.backends import Meeting, load_backend, name_of, resolve_backend
from ivis_spark.train.rank import rank_environment

if TYPE_CHECKING:
    from ivis_spark.train.job import TrainingJob

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
# What other ranks may still take to end after one ended: those that lost it must notice, rank 0 must save the model.
_END_TOGETHER_SECONDS = 60.0
_MODULE = "ivis_spark.train.rank"
# How ranks end without facts, the most telling first.
_KINDS = ("refused", "raised", "killed", "failed", "lost")

RankResult = dict[str, Any]


def train_on_ring(spark: SparkSession, job: TrainingJob) -> dict[str, Any]:
    """Train on `train.num_ranks` tasks of the cluster, started again from the last checkpoint when a rank is lost.

    Runs on: driver.

    Args:
        spark: The session whose tasks become ranks.
        job: What to train on; its folders must be reachable from every executor.

    Returns:
        The facts of rank 0, and `restarts`.

    Raises:
        ConfigError: if the session cannot hold the ranks, or starts them not in time.
        InputError: if there is too little to read for every rank.
        TrainingError: if a rank raised, naming it, or ranks were lost more than `train.max_restarts` times.
    """
    config = job.config
    job.blocks.check_ranks(config.num_ranks, config.batch_size, negatives=config.needs_negatives)
    check_session(spark, config)
    if is_local(spark):
        atexit.register(_end_barriers, spark)
    for restarts in range(config.max_restarts + 1):
        _wait_for_slots(spark, config)
        results = _Launch(spark, job).run()
        facts = results[0].get("facts") if results else None
        if facts is not None and all("facts" in result for result in results):
            return {**facts, "restarts": restarts}
        reason = _explain(results)
        if restarts < config.max_restarts:
            log.warning(
                "%s; restarting all ranks from the last checkpoint (restart %d of %d)",
                reason,
                restarts + 1,
                config.max_restarts,
            )
    raise TrainingError(
        f"{reason}; that was the last of train.max_restarts={config.max_restarts}. The same command resumes from the "
        f"last checkpoint"
    )


def check_session(spark: SparkSession, config: TrainConfig) -> None:
    """Refuse settings of the session that ranks cannot live with. Runs on: driver.

    Raises:
        ConfigError: naming the setting and what to do.
    """
    conf = spark.sparkContext.getConf()
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise ConfigError(
            "spark.dynamicAllocation.enabled=true removes executors from ranks that wait for each other; train with "
            "--spark-conf spark.dynamicAllocation.enabled=false and a fixed number of executors"
        )
    if conf.get("spark.speculation", "false") == "true":
        log.warning("spark.speculation=true does not affect the ranks: Spark never speculates barrier tasks")
    gpus, cores = conf.get("spark.task.resource.gpu.amount"), int(conf.get("spark.task.cpus", "1"))
    log.info("%d ranks of %d core(s)%s", config.num_ranks, cores, f" and {gpus} GPU" if gpus else "")


def count_slots(spark: SparkSession) -> int:
    """Return how many tasks the executors that are there now can run at once, by cores and other resources."""
    context = spark.sparkContext._jsc.sc()
    profile = context.resourceProfileManager().defaultResourceProfile()
    return int(context.maxNumConcurrentTasks(profile))


def _wait_for_slots(spark: SparkSession, config: TrainConfig) -> None:
    """Wait for executors: they may be starting, or being replaced."""
    deadline = time.monotonic() + config.start_timeout_seconds
    while (slots := count_slots(spark)) < config.num_ranks:
        if is_local(spark) or time.monotonic() > deadline:
            raise ConfigError(
                f"train.num_ranks={config.num_ranks} needs as many task slots at once; the session has {slots} "
                f"(waited up to {config.start_timeout_seconds:g} s). Lower it, or give Spark more executors or cores "
                "(spark.executor.instances, spark.executor.cores, spark.task.cpus)"
            )
        time.sleep(_POLL_SECONDS)


def _end_barriers(spark: SparkSession) -> None:
    """End the timer of Spark's barriers: in Spark 3 its thread keeps the JVM of a local spark-submit from ending."""
    with contextlib.suppress(Py4JError, OSError):  # Spark 4 has none; a JVM that is gone needs none
        barriers = getattr(getattr(spark.sparkContext._jvm, "org.apache.spark.BarrierTaskContext$"), "MODULE$")
        getattr(barriers, "org$apache$spark$BarrierTaskContext$$timer")().cancel()


class _Launch:
    """One start of all ranks. Runs on: driver."""

    def __init__(self, spark: SparkSession, job: TrainingJob) -> None:
        self._context, self._job = spark.sparkContext, job
        self._group = f"ivis-spark-train-{uuid.uuid4().hex[:12]}"
        self._progress_uri = storage.join(job.checkpoint_uri, f"progress-{self._group[-12:]}.json")
        self._told = 0
        self._results: list[RankResult] = []
        self._error: Exception | None = None
        self._cancelled = ""
        describe_job(spark, f"train on {job.config.num_ranks} ranks")

    def run(self) -> list[RankResult]:
        """Start the ranks, wait for them and return what each says, or one result for all if Spark lost a task."""
        thread = threading.Thread(target=inheritable_thread_target(self._run_tasks), daemon=True)
        thread.start()
        try:
            self._watch(thread)
        finally:
            if thread.is_alive():
                self._context.cancelJobGroup(self._group)
                thread.join(_END_TOGETHER_SECONDS)
            self._tell_progress()
            with contextlib.suppress(OSError):
                fs, path = storage.filesystem(self._progress_uri)
                fs.rm_file(path)
        if self._results:
            return self._results
        log.debug("Spark ended the job", exc_info=self._error)
        return [{"rank": None, "kind": "lost", "error": self._cancelled or _spark_reason(self._error)}]

    def _run_tasks(self) -> None:
        ranks = self._job.config.num_ranks
        backend = name_of(resolve_backend(self._job.config))
        order = {"job": self._job.to_mapping(), "backend": backend, "progress_uri": self._progress_uri}
        body = functools.partial(run_task, order=json.dumps(order))
        self._context.setJobGroup(self._group, f"train on {ranks} ranks", interruptOnCancel=True)
        try:
            results = self._context.parallelize(range(ranks), ranks).barrier().mapPartitions(body).collect()
            self._results = sorted((json.loads(text) for text in results), key=lambda result: int(result["rank"]))
        except Exception as err:  # noqa: BLE001 - the thread that watches tells it
            self._error = err

    def _watch(self, thread: threading.Thread) -> None:
        """Return when the ranks ended, or when they are to be given up: then `_cancelled` says why."""
        began = last_alive = time.monotonic()
        started = False
        while thread.is_alive() and not self._cancelled:
            thread.join(_POLL_SECONDS)
            self._tell_progress()
            stage = self._stage()
            now = time.monotonic()
            if stage is None:
                pass
            elif stage.numActiveTasks == self._job.config.num_ranks:
                started, last_alive = True, now
            elif stage.numCompletedTasks == 0:
                last_alive = now
            if not started and now - began > self._job.config.start_timeout_seconds:
                raise ConfigError(
                    f"the {self._job.config.num_ranks} ranks did not start within "
                    f"train.start_timeout_seconds={self._job.config.start_timeout_seconds:g}: other jobs hold the task "
                    "slots. Wait for them, lower train.num_ranks or raise the timeout"
                )
            if started and now - last_alive > _END_TOGETHER_SECONDS:
                self._cancelled = f"a rank did not end within {_END_TOGETHER_SECONDS:g} s of another"

    def _stage(self) -> Any:
        tracker = self._context.statusTracker()
        for number in tracker.getJobIdsForGroup(self._group):
            info = tracker.getJobInfo(number)
            for stage in info.stageIds if info is not None else ():
                return tracker.getStageInfo(stage)
        return None

    def _tell_progress(self) -> None:
        """Log what rank 0 logged since the last time."""
        try:
            fs, path = storage.filesystem(self._progress_uri)
            progress = storage.read_json(self._progress_uri, _read_progress) if storage.exists(fs, path) else None
        except (ArtifactError, OSError):  # being written, or storage that will answer the next time
            return
        if progress is not None and progress["count"] > self._told:
            for line in progress["last"][self._told - progress["count"] :]:
                log.info("%s", line)
            self._told = progress["count"]


def gpus_of(context: BarrierTaskContext) -> list[str]:
    """Return the addresses of the GPUs that Spark gave a task. Runs on: executor."""
    resources = context.resources()
    return list(resources["gpu"].addresses) if "gpu" in resources else []


def run_task(_: Iterator[int], *, order: str) -> Iterator[str]:
    """Start a rank as a process, wait for it and yield what it says, as JSON.

    Runs on: executor, as a barrier task.
    """
    context = BarrierTaskContext.get()
    rank = context.partitionId()
    hosts = [info.address.rpartition(":")[0] for info in context.getTaskInfos()]
    config = section_from_mapping(TrainConfig, json.loads(order)["job"]["config"])
    meeting = Meeting(rank, hosts, context.allGather, config.stall_timeout_seconds, config.start_timeout_seconds)
    environment = rank_environment(rank, gpus_of(context), context.cpus())
    result = run_rank(order, meeting, environment)
    yield json.dumps({"rank": rank, "host": hosts[rank], **result})


def run_rank(order: str, meeting: Meeting, environment: Mapping[str, str]) -> RankResult:
    """Meet the other ranks, run this one's process and return what it wrote, or how it died. Runs on: executor.

    Args:
        order: The job and its backend, as JSON.
        meeting: The other ranks.
        environment: Of the process, beside this one's own and what the backend adds.
    """
    try:
        with load_backend(json.loads(order)["backend"]).meet(meeting) as joining:
            # When all ranks have ended; a rank of which others still read must not go.
            return run_process(
                order,
                {**os.environ, **environment, **joining},
                start_timeout_seconds=meeting.start_timeout_seconds,
                wait_for_others=lambda: meeting.share(""),
            )
    except IvisError as err:
        return {"kind": "refused", "type": type(err).__name__, "error": str(err)}
    except ConnectionError as err:
        return {"kind": "lost", "error": str(err)}


def run_process(
    order: str,
    environment: Mapping[str, str],
    *,
    start_timeout_seconds: float,
    wait_for_others: Callable[[], Any] = lambda: None,
) -> RankResult:
    """Run a rank's process and return what it wrote, or how it died. Runs on: executor.

    Args:
        order: What the process is to do, as JSON.
        environment: Of the process.
        start_timeout_seconds: Within which it must have met the other ranks.
        wait_for_others: Called when it has finished, before it is let go.
    """
    answers, writing = os.pipe()
    # Its standard input stays open as long as this process lives, which is how it knows.
    with (
        open(answers, encoding="utf-8") as reading,
        subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(writing)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            text=True,
            env=dict(environment),
            pass_fds=[writing],
        ) as process,
    ):
        os.close(writing)
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(order + "\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
            if not select.select([reading], [], [], start_timeout_seconds)[0]:
                return {
                    "kind": "lost",
                    "error": "the other ranks did not start within train.start_timeout_seconds="
                    f"{start_timeout_seconds:g}",
                }
            lines = [line for line in (reading.readline(),) if line]
            if lines and json.loads(lines[0]) == {}:
                lines = [line for line in (reading.readline(),) if line]
            if lines:
                result = dict(storage.parse_json(lines[0].encode(), "what a rank wrote", read_result))
                if "facts" in result:
                    wait_for_others()
                    process.stdin.close()  # type: ignore[union-attr]
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=10)
                return result
            code = process.wait()
            return {
                "kind": "killed",
                "error": f"was killed by signal {-code}" if code < 0 else f"ended with code {code}",
            }
        finally:
            process.kill()


def read_result(value: Any) -> RankResult:
    """Return what JSON gave if it is what a rank writes at its end. Raises ValueError if it is not."""
    if isinstance(value, dict) and "facts" in value:
        return check_fields(value, facts=dict)
    result = check_fields(value, kind=str, error=str)
    if result["kind"] not in _KINDS:
        raise ValueError(f"kind {result['kind']!r} is not one of: {', '.join(_KINDS)}")
    if result["kind"] == "refused":
        check_fields(result, type=str)
    return result


def _read_progress(value: Any) -> dict[str, Any]:
    progress = check_fields(value, count=int, last=list)
    return {**progress, "last": check_list(progress["last"], str, "last")}


def _explain(results: list[RankResult]) -> str:
    """Return why ranks were lost, in a sentence.

    Raises:
        IvisError: naming the rank, if one raised: starting again would not help.
    """
    failed = sorted((each for each in results if "facts" not in each), key=lambda each: _KINDS.index(each["kind"]))
    first = failed[0]
    name = "ranks were lost" if first["rank"] is None else f"rank {first['rank']} on {first.get('host', 'its host')}"
    if first["kind"] == "refused":
        raise remote_error(first["type"], f"{name}: {first['error']}")
    if first["kind"] == "raised":
        raise TrainingError(f"{name} raised {first['error']}; see the log of its executor")
    return f"{name}: {first['error']}"


def _spark_reason(err: Exception | None) -> str:
    """Return why Spark ended the job, which it does when a barrier task of it is lost."""
    if err is None:
        return "Spark ended the job"
    if "barrier" in account_of(err):
        return "an executor, or the Python worker of a rank, was lost"
    return str(deepest_cause(err))
