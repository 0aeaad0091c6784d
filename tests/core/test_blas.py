"""What OpenBLAS takes this processor for, and what it should take it for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ivis_spark.core.blas import VARIABLE, core_type

HASWELL = frozenset({"avx2", "fma", "sse4_2"})
SKYLAKE = HASWELL | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
PROGRAM = "from ivis_spark.core import blas; print(*blas.wrong_core() or ())"


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


def test_what_openblas_says_is_believed() -> None:
    found = {value: told(value) for value in ("Prescott", "Haswell")}
    if not found["Prescott"]:
        pytest.skip("no OpenBLAS with threadpoolctl, or a processor without AVX2")
    old, core = found["Prescott"].split()
    assert old == "Prescott" and core in ("Haswell", "SkylakeX")
    assert not found["Haswell"] and not told(core)


def told(core: str) -> str:
    """Return what a process says whose OpenBLAS takes the processor for this one."""
    command = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, VARIABLE: core}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()
