"""OpenBLAS uses the instructions there are: what it takes this processor for, and what processes started later use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ivis_spark.core.blas import VARIABLE, core_type

HASWELL = frozenset({"avx2", "fma", "sse4_2"})
SKYLAKE = HASWELL | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
PROGRAM = f"""
import os, subprocess, sys
from ivis_spark.core import blas
print(*blas.wrong_core())
blas.correct_core()
assert os.environ[{VARIABLE!r}] == "Prescott"  # what was set stays
del os.environ[{VARIABLE!r}]
blas.correct_core()
print(os.environ[{VARIABLE!r}])
subprocess.run([sys.executable, "-c", "from ivis_spark.core import blas; print(blas.wrong_core())"], check=True)
"""


@pytest.mark.parametrize(
    ("architecture", "flags", "wanted"),
    [
        ("Prescott", SKYLAKE, "SkylakeX"),
        ("Nehalem", HASWELL, "Haswell"),
        ("Sandybridge", HASWELL - {"avx2"}, None),
        ("Prescott", frozenset(), None),
        ("Haswell", SKYLAKE, None),
        ("Zen", HASWELL, None),
    ],
)
def test_the_core_type_that_fits(architecture: str, flags: frozenset[str], wanted: str | None) -> None:
    assert core_type(architecture, flags) == wanted


def test_processes_started_later_use_the_instructions_that_there_are() -> None:
    environment = {**os.environ, VARIABLE: "Prescott"}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=environment
    )
    if output.returncode and "NoneType" in output.stderr:
        pytest.skip("no OpenBLAS with threadpoolctl, or a processor without AVX2")
    assert output.returncode == 0, output.stderr
    first, core, later = output.stdout.split("\n")[:3]
    assert first == f"Prescott {core}" and core in ("Haswell", "SkylakeX") and later == "None"
