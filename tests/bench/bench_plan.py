"""`ivis-spark plan` against measured runs: seconds, bytes stored and bytes shuffled of each stage, planned and taken.

Rows of a Gaussian mixture, 32 features, go through all stages on this machine's cores, each size in a process of its
own. Shuffled bytes come from Spark's event log. A ratio outside [1/1.5, 1.5] is marked, and the exit code is 1 then.
Where planned and taken are both below 1 s or below 5 MB they are not compared. The seconds of a machine of another
speed differ by that: after the first size that is large enough to tell rates, larger ones are also planned by these, as
by `plan --measured`. Each size is appended to tests/bench/results/plan.jsonl with date, commit and machine: [planned,
taken] by stage and unit.

    python tests/bench/bench_plan.py --rows 100000 1000000 5000000
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

from ivis_spark.errors import ConfigError
from ivis_spark.operations.measured import measure, plan_of_run, run_manifests, seconds_of
from ivis_spark.storage import Manifest

SETTINGS = ["train.epochs=4", "train.batch_size=512"]
UNITS = (("s", 1), ("MB stored", 1e6), ("MB shuffled", 1e6))
LEAST = {"s": 1, "s by rates": 1, "MB stored": 5, "MB shuffled": 5}
SPARK = {"spark.driver.memory": "4g", "spark.eventLog.enabled": "true", "spark.eventLog.compress": "false"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000])
    parser.add_argument("--dims", type=int, default=32)
    arguments = parser.parse_args()
    cores, wrong, factors = os.cpu_count() or 1, 0, dict[str, float]()
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="bench-plan-") as folder:
            manifests, shuffled = run(Path(folder), rows, arguments.dims)
            rates, factors = factors, factors or rates_of(os.path.join(folder, "out"), cores)
        common.say(f"\n{rows:,} x {arguments.dims}, {cores} cores: planned / taken (ratio)")
        found: dict[str, dict[str, list[float]]] = {}
        for stage in plan_of_run(manifests, cores):
            manifest = manifests[stage.stage]
            taken = (seconds_of(manifest), sum(file["bytes"] for file in manifest.files), shuffled.get(stage.stage, 0))
            planned = (stage.seconds, stage.storage_bytes, stage.shuffle_bytes)
            pairs = {name: [p / u, t / u] for p, t, (name, u) in zip(planned, taken, UNITS, strict=True)}
            if stage.stage in rates:
                rated = dataclasses.replace(stage, core_seconds=stage.core_seconds * rates[stage.stage])
                pairs["s by rates"] = [rated.seconds, taken[0]]
            found[stage.stage] = {name: [round(value, 2) for value in pair] for name, pair in pairs.items()}
            parts = [compare(*pair, name) for name, pair in pairs.items()]
            common.say(f"{stage.stage:<12}" + "".join(parts))
            wrong += sum(part.endswith("!") for part in parts)
        info = manifests["neighbours"].info
        common.say(f"replicas {info['replicas']}, steps of neighbours {info['step_seconds']}, recall {info['recall']}")
        facts = {name: info[name] for name in ("replicas", "recall", "step_seconds")}
        row = {"rows": rows, "dims": arguments.dims, "stages": found, "neighbours": facts}
        common.append_result(common.results_file("plan"), row)
    sys.exit(int(wrong > 0))


def rates_of(root: str, cores: int) -> dict[str, float]:
    try:
        return measure(root, cores)[0]
    except ConfigError:  # too few rows to tell
        return {}


def compare(planned: float, taken: float, unit: str) -> str:
    if max(planned, taken) < LEAST[unit]:
        return f"{'-':>38}"
    ratio = planned / max(taken, 1e-9)
    mark = " " if 1 / 1.5 <= ratio <= 1.5 else "!"
    return f"{planned:>10,.1f} /{taken:>9,.1f} {unit:<11} ({ratio:.2f}){mark}"


def run(folder: Path, rows: int, dims: int) -> tuple[dict[str, Manifest], dict[str, float]]:
    X, labels = common.random_clusters(rows, dims, 20)
    common.write_table(str(folder / "table"), X, labels)
    (folder / "events").mkdir()
    command = [sys.executable, "-m", "ivis_spark.cli", "run", "--input", str(folder / "table"), "--quiet"]
    command += ["--output", str(folder / "out"), "--id-col", "id", "--label-col", "label"]
    for key, value in {**SPARK, "spark.eventLog.dir": f"file://{folder}/events"}.items():
        command += ["--spark-conf", f"{key}={value}"]
    for text in SETTINGS:
        command += ["--set", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return run_manifests(str(folder / "out")), shuffled_bytes(folder / "events")


def shuffled_bytes(events: Path) -> dict[str, float]:
    """Add up the bytes that tasks wrote to shuffles, by the first word of their job's description."""
    names: dict[int, str] = {}
    totals: dict[str, float] = {}
    for path in events.rglob("*"):
        for event in map(json.loads, path.read_text().splitlines() if path.is_file() else []):
            add_event(event, names, totals)
    return {{"ingest": "rows", "embed": "embeddings"}.get(name, name): size for name, size in totals.items()}


def add_event(event: dict[str, Any], names: dict[int, str], totals: dict[str, float]) -> None:
    if event["Event"] == "SparkListenerStageSubmitted":
        described = (event.get("Properties") or {}).get("spark.job.description", "")
        names[event["Stage Info"]["Stage ID"]] = described.split(":")[0].strip()
    elif event["Event"] == "SparkListenerTaskEnd" and event.get("Task Metrics"):
        written = event["Task Metrics"]["Shuffle Write Metrics"]["Shuffle Bytes Written"]
        name = names.get(event["Stage ID"], "")
        totals[name] = totals.get(name, 0.0) + written


if __name__ == "__main__":
    main()
