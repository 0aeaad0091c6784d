#!/usr/bin/env bash
# Installs Horovod (Gloo) for the TensorFlow of an environment: conf/install_horovod.sh PYTHON CONSTRAINTS
# It is compiled once; the wheel is kept by (horovod, tensorflow, python), since pip's own cache holds one for all.
set -eu

fail() { printf 'Horovod cannot be built here yet: %s\n' "$1" >&2; exit 1; }

python=$1 constraints=$2
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
version=$(sed -n 's/^horovod==//p' "$constraints")
tensorflow=$("$python" -c '
import importlib.metadata as metadata
installed = {d.metadata["Name"].replace("_", "-"): d.version for d in metadata.distributions()}
print(next((installed[name] for name in ("tensorflow", "tensorflow-cpu") if name in installed), ""))')
[ -n "$tensorflow" ] || fail "it is compiled against TensorFlow, which $python does not have (pip install '.[cpu]' first)."
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
wheels=$(cd "$(dirname "$0")/.." && pwd)/.cache/wheels/horovod-$version-tensorflow-$tensorflow-$tag

if ! ls "$wheels"/horovod-*.whl >/dev/null 2>&1; then
  command -v "${CXX:-c++}" >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 \
    || fail "there is no C++ compiler (Debian: apt-get install g++)."
  command -v make >/dev/null 2>&1 || fail "there is no make (Debian: apt-get install make)."
  printf 'Building Horovod %s for TensorFlow %s: a few minutes, once.\n' "$version" "$tensorflow" >&2
  pip install -q -c "$constraints" cmake setuptools wheel
  building=$(mktemp -d)
  trap 'rm -rf "$building"' EXIT
  # The cmake of the environment: version 4 refuses Horovod's files.
  PATH=$(cd "$(dirname "$python")" && pwd):$PATH \
  HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 \
  HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 MAKEFLAGS="-j$(nproc)" \
    pip wheel -q --no-build-isolation --no-cache-dir --no-deps -w "$building" "horovod==$version" >"$building/log" 2>&1 \
    || { tail -n 40 "$building/log" >&2; fail "the compilation failed, see above."; }
  mkdir -p "$wheels"
  mv "$building"/horovod-*.whl "$wheels"
fi
pip install -q -c "$constraints" --force-reinstall --no-deps "$wheels"/horovod-*.whl
pip install -q -c "$constraints" "horovod==$version"
