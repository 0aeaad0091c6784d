#!/usr/bin/env bash
# Prints which set of versions an environment gets: classic (Petastorm, Horovod; CPython 3.10 to 3.12) or today (the newest
# packages; CPython 3.13 and later). Asks the environment given, or where there is none yet the Python it would be made of.
set -u

python=${1:-.venv}/bin/python
[ -x "$python" ] || python=$(bash "$(dirname "$0")/find_python.sh" 2>/dev/null) || { echo classic; exit 0; }
"$python" -c 'import sys; print("classic" if sys.version_info < (3, 13) else "today")'
