"""The instructions that OpenBLAS multiplies matrices with.

Releases before 0.3.25, one of which NumPy 1.26 has, take processors that they do not know, like Intel's since 2023, for
old ones and are four times slower than they could be (https://github.com/OpenMathLib/OpenBLAS/pull/4268).
"""

from __future__ import annotations

VARIABLE = "OPENBLAS_CORETYPE"  # read when the library is loaded, so for processes that start later
SLOW_PRODUCTS = (
    "OpenBLAS takes this processor for a %s and multiplies matrices several times slower than it can: set "
    f"{VARIABLE}=%s before Python starts, or use NumPy 2"
)
_WITHOUT_AVX2 = frozenset({"Prescott", "Nehalem", "Sandybridge"})  # what NumPy's builds fall back to
_OF_HASWELL = frozenset({"avx2", "fma"})
_OF_SKYLAKE = _OF_HASWELL | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def wrong_core() -> tuple[str, str] | None:
    """Return the processor that OpenBLAS takes this one for, and the core type that uses its instructions.

    None if OpenBLAS uses them, or nothing is known: without threadpoolctl, or on another system than Linux.
    """
    try:
        import numpy  # noqa: F401 - loads OpenBLAS
        import threadpoolctl
    except ImportError:
        return None
    for library in threadpoolctl.threadpool_info():
        if library["internal_api"] == "openblas" and (core := core_type(library["architecture"], _flags())):
            return library["architecture"], core
    return None


def core_type(architecture: str, flags: frozenset[str]) -> str | None:
    """Return the core type for a processor with these flags, if OpenBLAS takes it for an older one."""
    if architecture not in _WITHOUT_AVX2 or not flags >= _OF_HASWELL:
        return None
    return "SkylakeX" if flags >= _OF_SKYLAKE else "Haswell"


def _flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(line.partition(":")[2].split())
