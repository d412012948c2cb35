#!/usr/bin/env bash
# Check and time what can use a CUDA device. Without one, say so and succeed: nothing needs it.
#   scripts/gpu_check.sh [TABLE.md]     also writes the tables there
#
# Builds the native module of this checkout with the CUDA solver where nvcc is, and leaves it so. Every check runs,
# whatever the others say; the exit code is 1 if one failed. PYTHON names another interpreter than .venv's.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi >/dev/null 2>&1; then
    echo "skipped: no CUDA device on this machine"
    exit 0
fi
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
table="$work/table.md"
{
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
    echo
} | tee "$table"
failed=()

# check NAME COMMAND...: runs the command and remembers whether it failed.
check() {
    local name=$1
    shift
    echo "== $name"
    if "$@"; then
        echo "ok: $name"
    else
        echo "FAILED: $name"
        failed+=("$name")
        return 1
    fi
}

# The pose solver.
build_solver() {
    "$python" -m pip install -q --disable-pip-version-check --no-deps -e . \
        -C cmake.define.RELOC_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES=native
}
device_found() {
    "$python" -c 'import sys
from reloc_core.solvers import cuda_devices
sys.exit(0 if cuda_devices() > 0 else "the solver finds no CUDA device")'
}
time_solver() {
    "$python" benchmarks/solver_devices.py > "$work/solver.md" || return 1
    { echo "Absolute pose, batches:"; echo; cat "$work/solver.md"; echo; } >> "$table"
}
if ! command -v nvcc >/dev/null; then
    echo "skipped: the CUDA solver (no nvcc on PATH)"
elif check "build with RELOC_CUDA=ON" build_solver && check "device of the solver" device_found; then
    check "solver agrees with the CPU" "$python" -m pytest tests/native/test_cuda_solver.py -rs
    if command -v compute-sanitizer >/dev/null; then
        check "solver under compute-sanitizer" compute-sanitizer --tool memcheck --error-exitcode 1 \
            "$python" benchmarks/solver_devices.py --devices cuda --quick
        check "solver under racecheck" compute-sanitizer --tool racecheck --error-exitcode 1 \
            "$python" benchmarks/solver_devices.py --devices cuda --quick
    fi
    check "time of the solver" time_solver
fi

# What goes through PyTorch.
torch_sees_device() {
    "$python" -c 'import sys, torch
sys.exit(0 if torch.cuda.is_available() else "this PyTorch was built without CUDA: install one with it")'
}
demo_on() {
    local device=$1 out="$work/$1"
    "$python" -m reloc_core.cli demo device="$device" output_dir="$out" || return 1
    "$python" - "$out" "$device" >> "$table" <<'PY'
import json, sys
from pathlib import Path
out, device = Path(sys.argv[1]), sys.argv[2]
r = json.loads((out / "result.json").read_text())
m, s = r["metrics"], r["seconds"]
fit = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
mapping = sum(e["seconds"] for e in fit if e["event"] == "finished" and e["step"] != "Localizing")
print(f"| landmarks/default | {device} | {mapping:.1f} | {1000 * s['per_query']['median']:.1f} "
      f"| {100 * m['median_translation_m']:.2f} | {100 * m['recall']['5cm_5deg']:.0f} % |")
PY
}
if check "PyTorch sees the device" torch_sees_device; then
    {
        echo "| experiment | device | mapping s | query ms | median cm | 5cm/5deg |"
        echo "| --- | --- | --- | --- | --- | --- |"
    } >> "$table"
    check "demo on the CPU" demo_on cpu
    check "demo on the device" demo_on cuda
    # The published network: a short training run in half precision on the device must lower the loss.
    check "half-precision training" "$python" -m pytest plugins/scr_glace/tests/test_training.py -rs
    check "gsplat agrees with the CPU" "$python" -m pytest tests/rendering/test_cuda.py -rs
fi

echo
cat "$table"
if [ $# -gt 0 ]; then cp "$table" "$1" || exit 1; fi
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
