#!/usr/bin/env bash
# Run the tests on the oldest Python and the lowest versions of all dependencies that are declared.
#   scripts/test_lowest.sh [pytest arguments]      PYTHON=python3.10 names the interpreter
# PyTorch alone is that of constraints.txt: its old releases bring gigabytes of CUDA libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv-lowest}
python=${PYTHON:-python3.10}
if ! command -v "$python" >/dev/null || ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))'; then
    echo "skipped: no Python 3.10 (PYTHON=PATH names it)"
    exit 0
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check -q)
"$python" scripts/lowest_versions.py --keep torch > "$venv/lowest.txt"
grep '^torch==' constraints.txt >> "$venv/lowest.txt"
# The build's own lower bounds; cmake and ninja only where the system has none.
"${pip[@]}" install 'scikit-build-core==0.11.0' 'pybind11==2.13.0' cmeel-eigen hatchling editables cmake ninja
plugins=(); for folder in plugins/*/; do plugins+=(-e "$folder"); done
PATH="$(cd "$venv" && pwd)/bin:$PATH" "${pip[@]}" install -c "$venv/lowest.txt" --no-build-isolation \
    -e '.[features,test,serve,colmap]' "${plugins[@]}"
"$venv/bin/python" -m pytest -m "not real" "$@"
