"""What the benchmarks share: data, programs in processes of their own, and a line a result."""

from __future__ import annotations

import argparse
import datetime
import glob
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

RESULTS = os.path.join(os.path.dirname(__file__), "results")
Floats = npt.NDArray[np.float32]


def parser(doc: str | None, *, data: bool = True, ivis: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options that benchmarks have in common."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        made.add_argument("--data", help="folder with mnist/, cytof_multicenter/, kdd99/; without it: random rows")
    if ivis:
        made.add_argument("--ivis-python", help="python of an environment with ivis 2.0.11, to measure beside ours")
    return made


def mnist(folder: str | None) -> tuple[Floats, npt.NDArray[Any]]:
    """Return the 70,000 images scaled to [0, 1] with their digits; random ones without a folder."""
    if folder is None:
        return random_clusters(70_000, 784, 10)
    tables = [pq.read_table(path) for path in sorted(glob.glob(os.path.join(folder, "mnist", "*.parquet")))]
    flat = np.concatenate([np.asarray(c.flatten()) for table in tables for c in table["features"].chunks])
    labels = np.concatenate([table["y"].to_numpy() for table in tables])
    return (flat.reshape(-1, 784) / 255).astype(np.float32), labels


def cytometry(folder: str | None, rows: int | None = 100_000) -> tuple[Floats, npt.NDArray[Any]]:
    """Return labelled cells, arcsinh(x / 5), min-max, `rows` of them drawn; random rows without a folder."""
    if folder is None:
        return random_clusters(rows or 370_087, 8, 4)
    table = pa.concat_tables(
        [pq.read_table(path) for path in sorted(glob.glob(os.path.join(folder, "cytof_multicenter", "*.parquet")))]
    )
    labels = table["y"].to_numpy()
    names = [name for name in table.column_names if name not in ("y", "sample")]
    X = np.stack([table[name].to_numpy() for name in names], axis=1)[labels > 0]
    X = np.arcsinh(X / 5)
    X = ((X - X.min(axis=0)) / np.ptp(X, axis=0)).astype(np.float32)
    drawn = np.random.default_rng(0).permutation(len(X))[:rows]
    return X[drawn], labels[labels > 0][drawn]


def kdd99(folder: str | None) -> Floats:
    """Return the 494,021 connections, min-max, of which 145,586 differ; without a folder, rows as often repeated."""
    if folder is None:
        X = random_clusters(145_586, 119, 20)[0]
        weights = 1 / np.arange(1, len(X) + 1)
        return X[np.random.default_rng(0).choice(len(X), 494_021, p=weights / weights.sum())]
    table = pq.read_table(os.path.join(folder, "kdd99", "kdd99_10percent.parquet"))
    X = np.stack([table[name].to_numpy() for name in table.column_names if name not in ("y", "attack")], axis=1)
    spread = np.ptp(X, axis=0)
    return ((X - X.min(axis=0)) / np.where(spread > 0, spread, 1)).astype(np.float32)


def moved_digits(folder: str | None, rows: int) -> Floats:
    """Return digits of MNIST, each turned, sheared, scaled and shifted at random: as many different rows as wanted."""
    from scipy.ndimage import affine_transform

    images = mnist(folder)[0].reshape(-1, 28, 28)
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(images), size=rows)
    angles, shears = rng.uniform(-0.3, 0.3, rows), rng.uniform(-0.3, 0.3, rows)
    scales, shifts = rng.uniform(0.85, 1.15, (rows, 2)), rng.uniform(-2, 2, (rows, 2))
    found = np.empty((rows, 28, 28), np.float32)
    for row, number in enumerate(chosen):
        cos, sin = np.cos(angles[row]), np.sin(angles[row])
        matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shears[row]], [0, 1]]) * scales[row]
        offset = 13.5 - matrix @ np.array([13.5, 13.5]) + shifts[row]
        affine_transform(images[number], matrix, offset, output=found[row], order=1)
    return found.reshape(rows, 784)


def random_clusters(rows: int, dims: int, clusters: int) -> tuple[Floats, npt.NDArray[Any]]:
    """Return rows of a Gaussian mixture, clipped to [0, 1], with the cluster of each."""
    rng = np.random.default_rng(0)
    labels = rng.integers(clusters, size=rows)
    centres = rng.random((clusters, dims), dtype=np.float32)
    X = centres[labels] + 0.1 * rng.standard_normal((rows, dims), dtype=np.float32)
    return np.clip(X, 0, 1).astype(np.float32), labels


def write_table(path: str, X: Floats, labels: npt.NDArray[Any] | None = None, *, files: int = 8) -> None:
    """Write rows as a user's table: folder of Parquet files with `id`, `features` array<float> and `label`."""
    os.makedirs(path)
    for number, rows in enumerate(np.array_split(np.arange(len(X)), files)):
        features = pa.FixedSizeListArray.from_arrays(pa.array(X[rows].reshape(-1)), X.shape[1])
        columns = {"id": pa.array(rows), "features": features.cast(pa.list_(pa.float32()))}
        if labels is not None:
            columns["label"] = pa.array(labels[rows].astype(np.int64))
        pq.write_table(pa.table(columns), os.path.join(path, f"part-{number}.parquet"), row_group_size=8192)


def run_python(python: str, program: str, *arguments: object) -> dict[str, Any]:
    """Run a program in its own process; it prints `RESULT <JSON>` as its last line. `seconds` of the whole is added."""
    started = time.perf_counter()
    done = subprocess.run(
        [python, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{python} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return {"seconds": time.perf_counter() - started, **json.loads(lines[-1].removeprefix("RESULT "))}


def results_file(name: str) -> str:
    """Return the file of JSON lines that the runs of a benchmark are kept in."""
    return os.path.join(RESULTS, f"{name}.jsonl")


def append_result(path: str, row: dict[str, Any]) -> dict[str, Any]:
    """Append a row to a file of JSON lines, with date, commit and machine added, and return it with these."""
    stamped = {**row, "date": datetime.date.today().isoformat(), "commit": commit(), "machine": machine()}
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(stamped) + "\n")
    return stamped


def commit() -> str:
    """Return the commit of this checkout."""
    here = os.path.dirname(__file__)
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    """Return cores and kind of this machine."""
    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {sys.version.split()[0]}"


def processor_seconds() -> float:
    """Return the processor seconds of all processes of this session so far, those that ended included."""
    ticks = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                parts = stat.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(parts[3]) == os.getsid(0):
            ticks += sum(map(int, parts[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
