"""Ranks as processes of this machine, which meet without Spark."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from ivis_spark.train.backends import Meeting, name_of, resolve_backend
from ivis_spark.train.job import TrainingJob
from ivis_spark.train.rank import rank_environment

HELPERS = Path(__file__).parent


def run_ring(job: TrainingJob, folder: Path, *, ranks: range | None = None) -> list[dict[str, Any]]:
    """Run a job on `train.num_ranks` ranks, or on some of them alone, and return what each said."""
    from ivis_spark.spark.training import run_rank

    n_ranks = job.config.num_ranks
    order = {"job": job.to_mapping(), "backend": name_of(resolve_backend(job.config))}
    order["progress_uri"] = str(folder / "progress.json")
    run = ranks or range(n_ranks)
    meeting, texts = threading.Barrier(len(run)), [f"127.0.0.1:{rank + 1}" for rank in range(n_ranks)]

    def start(rank: int) -> dict[str, Any]:
        def share(text: str) -> list[str]:
            texts[rank] = text
            meeting.wait(200)
            everybody = list(texts)
            meeting.wait(200)
            return everybody

        config = job.config
        hosts = ["localhost"] * n_ranks
        place = Meeting(rank, hosts, share, config.stall_timeout_seconds, config.start_timeout_seconds)
        environment = rank_environment(rank, [], 1)
        environment |= {"PYTHONPATH": os.pathsep.join([str(HELPERS / "lean"), str(HELPERS), *filter(None, sys.path)])}
        environment |= {"IVIS_TEST_FOLDER": str(folder)}
        result = run_rank(json.dumps(order), place, environment)
        if result.get("kind") == "lost":  # whoever starts ranks ends those that are still there, as Spark does
            for process in psutil.Process().children(recursive=True):
                if process.status() == psutil.STATUS_STOPPED:
                    process.kill()
        return result

    with ThreadPoolExecutor(len(run)) as pool:
        return list(pool.map(start, run))
