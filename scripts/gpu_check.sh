#!/usr/bin/env bash
# Check and time what can use a CUDA device. Without one, say so and succeed: nothing needs it.
#   scripts/gpu_check.sh [TABLE.md]     also writes the table there
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi >/dev/null 2>&1; then
    echo "skipped: no CUDA device on this machine"
    exit 0
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$python" -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "this PyTorch was built without CUDA: install one with it")'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
table="$work/table.md"
echo "| experiment | device | mapping s | query ms | median cm | 5cm/5deg |" > "$table"
echo "|---|---|---|---|---|---|" >> "$table"
for device in cpu cuda; do
    out="$work/$device"
    "$python" -m reloc_core.cli demo device="$device" output_dir="$out"
    "$python" - "$out" "$device" >> "$table" <<'PY'
import json, sys
from pathlib import Path
out, device = Path(sys.argv[1]), sys.argv[2]
r = json.loads((out / "result.json").read_text())
m, s = r["metrics"], r["seconds"]
fit = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
mapping = sum(e["seconds"] for e in fit if e["event"] == "finished" and e["step"] != "Localizing")
print(f"| scr_glace/compact | {device} | {mapping:.1f} | {1000 * s['per_query']['median']:.1f} "
      f"| {100 * m['median_translation_m']:.2f} | {100 * m['recall']['5cm_5deg']:.0f} % |")
PY
done
# The published network: a short training run in fp16 on the device must lower the loss.
"$python" -m pytest plugins/scr_glace/tests/test_training.py -q
cat "$table"
[ $# -eq 0 ] || cp "$table" "$1"
