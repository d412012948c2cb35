#!/usr/bin/env bash
# Run the core's tests with the lowest declared versions of all dependencies, on the oldest Python.
#   scripts/test_lowest.sh [pytest arguments]
#     PYTHON=PATH         the interpreter; python3.10 where there is one, else python3
#     TORCH_INDEX=URL     where CPU builds of PyTorch are, beside pip's own sources
# PyTorch is the lowest version of which there is a CPU build for this Python, else that of constraints.txt; the
# builds with CUDA bring gigabytes. Where there is neither, the tests that need PyTorch are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
python=""
for candidate in ${PYTHON:-python3.10 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "skipped: no Python 3.10 or newer (PYTHON=PATH names one)"
    exit 0
fi
venv=${VENV:-.venv-lowest}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check -q)
lowest="$venv/lowest.txt"
"$python" scripts/lowest_versions.py > "$lowest"

torch=none
for version in $(sed -n 's/^torch==//p' "$lowest" constraints.txt); do
    if "${pip[@]}" install --only-binary :all: ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        "torch==$version+cpu" "$(grep '^numpy==' "$lowest")" 2>/dev/null; then
        torch=$version
        break
    fi
done
sed -i '/^torch==/d' "$lowest"
extras=test,serve,colmap
[ $torch = none ] || extras+=,features

# The build's own lower bounds; cmake and ninja for systems without them.
"${pip[@]}" install 'scikit-build-core==0.11.0' 'pybind11==2.13.0' 'cmeel-eigen==3.4.0' cmake ninja
PATH="$(cd "$venv" && pwd)/bin:$PATH" "${pip[@]}" install -c "$lowest" --no-build-isolation \
    -C build-dir="$venv/build" -e ".[$extras]"
echo "$("$venv/bin/python" --version), PyTorch: $torch; all else as in $lowest"
[ $# -gt 0 ] || set -- tests/core tests/io tests/datasets tests/evaluation tests/solvers tests/testing
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -m "not real and not long" "$@"
