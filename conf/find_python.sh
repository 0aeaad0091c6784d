#!/usr/bin/env bash
# Prints a Python that can build and run this project, or reports missing prerequisites.
set -u

fail() { printf 'This machine cannot install ivis_spark yet: %s\n' "$1" >&2; exit 1; }

found=""
for name in ${PYTHON_FOR_VENV:-} python3.11 python3.12 python3.10 python3.13 python3 python; do
  # Run it: a name on PATH may be a shim with nothing behind it.
  if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then found=$name; break; fi
done
[ -n "$found" ] || fail "it needs CPython 3.10 to 3.13 (Debian: apt-get install python3 python3-venv python3-dev; uv: uv python install 3.13; or set PYTHON_FOR_VENV to one)."
"$found" -c 'import venv, ensurepip' 2>/dev/null || fail "$found cannot make environments (Debian: apt-get install python3-venv)."
"$found" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' \
  || fail "annoy is compiled here and the headers of $found are missing (Debian: apt-get install python3-dev)."
command -v "${CXX:-c++}" >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 \
  || fail "annoy is compiled here and there is no C++ compiler (Debian: apt-get install g++)."
printf '%s\n' "$found"
