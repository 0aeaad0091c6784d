"""Every notebook of notebooks/experiments runs here, on few rows: its cells in order, with other parameters.

What is asserted is what the notebook's text says, as far as few rows and few epochs show it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parent.parent / "notebooks" / "experiments"
CELL = re.compile(r"^# %%(.*)$", flags=re.M)
CODE, TEXT, PARAMETERS = "", " [markdown]", ' tags=["parameters"]'

Run = Callable[..., dict[str, Any]]


def test_commands_name_a_kernel() -> None:
    """Which a notebook in the percent format does not, so that jupytext finds none."""
    pages = [page for folder in ("notebooks", "docs") for page in (EXPERIMENTS.parent.parent / folder).rglob("*.md")]
    commands = re.findall(r"jupytext (?=-).*", "".join(page.read_text() for page in pages))
    assert len(commands) >= 2 and all("--set-kernel python3" in command for command in commands)


def cells(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the kind and the source of every cell, in jupytext's percent format."""
    head, *parts = CELL.split(path.read_text())
    assert not head, "a notebook begins with a cell"
    yield from zip(parts[::2], parts[1::2], strict=True)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Return a function that runs a notebook with parameters of the test, and returns its names."""
    pytest.importorskip("tensorflow")
    import matplotlib as mpl

    before = mpl.get_backend()
    mpl.use("agg")
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: None)

    def run_cells(path: Path, **parameters: Any) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "__main__"}
        for kind, source in cells(path):
            if kind != TEXT:
                exec(compile(source, path.name, "exec"), names)
            if kind == PARAMETERS:
                assert parameters.keys() <= names.keys(), "no parameter of that name"
                names.update(parameters)
        figures = [plt.figure(number) for number in plt.get_fignums()]
        assert figures, "no plot was drawn"
        assert all(panel.has_data() for figure in figures for panel in figure.axes)
        return names

    yield run_cells
    plt.close("all")
    mpl.use(before)


def write_digits(folder: Path) -> str:
    """Write 1,000 digits as a file of the reader's own."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    path = folder / "digits.npz"
    np.savez(path, X=digits.data[:1000].astype(np.uint8), y=digits.target[:1000].astype(np.int32))
    return str(path)


SMALL: dict[str, dict[str, Any]] = {
    "unsupervised": {"epochs": 1},
    "cnn_backbone": {"rows": 300, "epochs": 1},
    "supervised": {"rows": 300, "epochs": 1, "weights": (0.0, 0.9), "shares": (0.5,)},
    "regression": {"epochs": 1},
    "anomaly_detection": {"epochs": 1},
    "out_of_memory": {"rows": 1000, "epochs": 1},
    "distance_preservation": {"rows": 300, "epochs": 1, "pairs": 1000},
    "k_and_patience": {"rows": 200, "ks": (5,), "patiences": (1,)},
    "invented_clusters": {"rows": 200, "epochs": 1},
    "concept_drift": {"epochs": 1, "shares": (0.0, 1.0)},
}


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_runs(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs, on few rows for a few steps; what the notebooks claim is for the tests below."""
    import short_fits

    from ivis_spark.estimator import ivis

    monkeypatch.setattr(ivis, "fit_model", short_fits.fit_briefly)
    run(EXPERIMENTS / f"{name}.py", **SMALL[name])


@pytest.mark.tf
@pytest.mark.claims
class TestClaims:
    def test_unsupervised(self, run: Run) -> None:
        figures = run(EXPERIMENTS / "unsupervised.py", epochs=60)["figures"]
        assert figures["kNN accuracy, embedding"] > figures["kNN accuracy, four measures"] - 0.1
        assert figures["trustworthiness"] > 0.9
        assert figures["triples in order"] > 0.75

    def test_cnn_backbone(self, run: Run, tmp_path: Path) -> None:
        accuracies = run(EXPERIMENTS / "cnn_backbone.py", data=write_digits(tmp_path), epochs=40)["accuracies"]
        assert min(accuracies.values()) > 0.7

    def test_supervised(self, run: Run) -> None:
        reduced = {"rows": 1000, "weights": (0.0, 0.9), "shares": (0.1,)}
        names = run(EXPERIMENTS / "supervised.py", **reduced)
        (unsupervised, _, near), (supervised, classes, less_near) = names["sweep"]
        assert supervised > unsupervised
        assert less_near < near
        assert classes > 0.8
        assert names["few"][0.1][1] > 0.5

    def test_regression(self, run: Run) -> None:
        names = run(EXPERIMENTS / "regression.py")
        assert names["r2"]["Ivis"] > 0.2
        assert names["order"]["with target"] > names["order"]["without"]

    def test_anomaly_detection(self, run: Run) -> None:
        names = run(EXPERIMENTS / "anomaly_detection.py", epochs=60)
        figures = names["figures"]
        assert figures["forest on the learnt metric"] > figures["forest on the features"]
        assert set(names["y_new"]) == {0, 1}

    def test_out_of_memory(self, run: Run) -> None:
        names = run(EXPERIMENTS / "out_of_memory.py", rows=3000, epochs=5)
        assert names["trust"] > 0.75
        assert names["clean_accuracy"] > 0.6
        assert not Path(names["path"]).exists()

    def test_distance_preservation(self, run: Run) -> None:
        figures = run(EXPERIMENTS / "distance_preservation.py", rows=800, epochs=20, pairs=5000)["figures"]
        without, with_term = figures["preset fast, no global term"], figures["preset fast, global_weight=1"]
        assert with_term[0] > without[0]
        assert with_term[2] > without[2]
        assert without[3] > 0.85

    def test_k_and_patience(self, run: Run) -> None:
        names = run(EXPERIMENTS / "k_and_patience.py", rows=600, ks=(5, 50), patiences=(1, 5))
        assert names["epochs"][50, 5] > names["epochs"][50, 1]
        assert min(trust for trust, *_ in names["fast"].values()) > 0.85

    def test_invented_clusters(self, run: Run) -> None:
        silhouettes = run(EXPERIMENTS / "invented_clusters.py", rows=500, epochs=30)["silhouettes"]
        noise = {method: value for (name, method), value in silhouettes.items() if name == "uniform noise"}
        assert {"PCA", "ivis", "preset fast"} <= noise.keys()
        assert max(noise.values()) < 0.46
        assert silhouettes["two moons", "preset fast"] < 0.61

    def test_concept_drift(self, run: Run) -> None:
        names = run(EXPERIMENTS / "concept_drift.py", epochs=30, shares=(0.0, 1.0))
        unchanged, changed = (
            {change: names["found"][change, share] for change in names["changes"]} for share in (0, 1)
        )
        assert np.max(list(unchanged.values())) < 5
        assert min(changed["only 0 and 1"]) > 20
        assert changed["a fading lamp"][1] > 20 > changed["a fading lamp"][0]


def test_every_experiment_is_tested_and_listed() -> None:
    present = {path.name for path in EXPERIMENTS.glob("*.py")}
    assert set(re.findall(r'EXPERIMENTS / "(\w+\.py)"', Path(__file__).read_text())) == present
    assert {f"{name}.py" for name in SMALL} == present
    assert set(re.findall(r"\]\((\w+\.py)\)", (EXPERIMENTS / "README.md").read_text())) == present


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem)
def test_cells_are_of_three_kinds(path: Path) -> None:
    found = list(cells(path))
    kinds = [kind for kind, _ in found]
    assert kinds[0] == TEXT and found[0][1].startswith("\n# # "), "the first cell is the title"
    assert set(kinds) == {CODE, TEXT, PARAMETERS} and kinds.count(PARAMETERS) == 1
    for kind, source in found:
        assert kind != TEXT or all(line.startswith("#") for line in source.splitlines() if line)
