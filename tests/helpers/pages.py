"""Reports of made-up rows without Spark, and a real Chromium to open them in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivis_spark.core.metrics import draw_pairs
from ivis_spark.report import html
from ivis_spark.report.evaluate import write_findings
from ivis_spark.report.labels import Labels, read_labels
from ivis_spark.report.sample import Sample

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PHONE = (390, 844)


def write_report(
    folder: Path, embedding: np.ndarray, labels: list[Any] | None, columns: dict[str, list[Any]] | None = None
) -> tuple[Path, np.ndarray]:
    """Write the report of an embedding whose first rows, up to 1,000, have features that are its double.

    Returns: The page, and the pairs of rows whose distances it compares, shape (pairs, 2).
    """
    n, measured = len(embedding), np.arange(min(len(embedding), 1000))
    features = (2 * embedding[measured]).astype(np.float32)
    read = {name: read_labels(values) for name, values in (columns or {}).items()}
    known: dict[str, Labels] = {name: column for name, column in read.items() if column is not None}
    # Beyond 2^53, where JavaScript rounds.
    ids = np.arange(n, dtype=np.int64) + 2**60
    sample = Sample(ids, embedding, None if labels is None else read_labels(labels), measured, features, known)
    pairs = draw_pairs(features, embedding[measured], n_pairs=2000, rng=np.random.default_rng(0))
    found: dict[str, Any] = {key: 0.5 for key, *_ in html.METRIC_TEXTS}
    found |= {"rows": n, "embedding_dims": embedding.shape[1], "plot_rows": n, "sample_rows": len(measured)}
    found |= {
        "features": 2,
        "k": 5,
        "n_pairs": 2000,
        "n_triplets": 2000,
        "neighbours_k": 5,
        "labelled_rows": n,
    }
    found |= {"classes": None}
    for name in ("recall", "original_recall"):
        found |= {f"{name}_low": 0.4, f"{name}_high": 0.6, f"{name}_sample": 50}
    training = {"loss": [0.9, 0.5, 0.3]}
    found |= {"labels": None, "tested_rows": None}
    findings = html.Findings("A page", found, sample, None, pairs, measured, None, training, {}, [], {})
    folder.mkdir(parents=True, exist_ok=True)
    write_findings(str(folder), findings)
    return folder / "report.html", np.stack([pairs.first, pairs.second], axis=1)


@contextmanager
def open_chromium(*flags: str) -> Iterator[Any]:
    """Yield a headless Chromium that logs its console and its requests; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip(f"no Chromium with its driver: none of {', '.join(CHROMIUM)}, or no chromedriver, on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # Root, as in containers, may not use the sandbox; /dev/shm is small there.
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    shown = ("--headless=new", "--window-size=1280,1000", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader")
    for flag in (*shown, *sandbox, *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        chromium.set_script_timeout(120)
        yield chromium
    finally:
        chromium.quit()


def open_page(chromium: Any, uri: str) -> None:
    """Open a report and wait until it is drawn."""
    chromium.get(uri)
    chromium.execute_async_script(
        "const done = arguments[0], drawn = () => 'drawn' in document.body.dataset;"
        "const look = () => drawn() ? done() : setTimeout(look, 20); look();"
    )


def requested(chromium: Any) -> list[str]:
    """Return the addresses that the browser asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def complaints(chromium: Any) -> list[str]:
    """Return what the console says, but for the graphics driver's remarks about its own speed."""
    return [entry["message"] for entry in chromium.get_log("browser") if "GL Driver Message" not in entry["message"]]
