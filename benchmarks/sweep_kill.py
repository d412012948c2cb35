"""Sweeps that are killed at a random moment and resumed, against one that nobody disturbed.

    python benchmarks/sweep_kill.py --out DIR [--launcher basic joblib ray] [--seed 0] [--json FILE]

Three estimators, three solvers, two refiners and three seeds are 54 jobs on a small room. One sweep runs
through; for each launcher another is killed (SIGKILL, at a moment drawn between 10 and 90 % of the time of
the first one) and resumed by `reloc sweep resume`. The poses and the metrics of all jobs must then be those
of the first sweep. Every sweep has a cache of fitted maps of its own, so that what a kill leaves of one is
tried, too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SWEPT = {
    "estimator": "landmarks,sfm_matching,kfnet_memory",
    "solver": "pnp,dsac,dsac_256",
    "refiners": "[],[pose_filter]",
    "seed": "1,2,3",
}
ROOM = ("dataset=synthetic", "dataset.train_frames=8", "dataset.test_frames=1",
        "dataset.width=120", "dataset.height=90")  # fmt: skip
FIXED = ("calibration.enabled=false", "threads=1", "report=false")
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "ray": ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2",
            "+hydra.launcher.ray.init.include_dashboard=false"),
}  # fmt: skip
JOBS = 54


def reloc(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the program with a cache beside the sweep's folder."""
    command = [str(Path(sys.executable).with_name("reloc")), *arguments]
    environment = {**os.environ, "RELOC_CACHE": f"{folder}-cache", "OMP_NUM_THREADS": "1"}
    with Path(f"{folder}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def sweep(folder: Path, launcher: str) -> subprocess.Popen[bytes]:
    swept = [f"{key}={values}" for key, values in SWEPT.items()]
    return reloc(folder, "benchmark", "-m", *LAUNCHERS[launcher], *swept, *ROOM, *FIXED,
                 f"output_dir={folder}")  # fmt: skip


def finished(folder: Path) -> int:
    return len(list(folder.glob("*/result.json")))


def outcome(job: Path) -> dict[str, Any]:
    """What must not depend on kills: poses and metrics."""
    result = json.loads((job / "result.json").read_text("utf-8"))
    metrics = {k: v for k, v in result["metrics"].items() if "second" not in k}
    return {
        "status": result["status"],
        "metrics": metrics,
        "poses": (job / "poses.txt").read_text(),
    }


def orphans(folder: Path) -> list[int]:
    """Processes that name the folder still."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--launcher", nargs="+", choices=LAUNCHERS, default=["basic", "joblib"])
    parser.add_argument("--seed", type=int, default=0, help="of the moment of the kill")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True)
    rng = random.Random(arguments.seed)
    begin = time.monotonic()
    if sweep(out / "undisturbed", "basic").wait():
        print(f"the undisturbed sweep failed; see {out}/undisturbed.log")
        return 1
    whole = time.monotonic() - begin
    expected = {str(n): outcome(out / "undisturbed" / str(n)) for n in range(JOBS)}
    print(f"undisturbed: {JOBS} jobs in {whole:.0f} s", flush=True)
    rows = {}
    for launcher in arguments.launcher:
        folder = out / launcher
        moment = rng.uniform(0.1, 0.9) * whole
        process = sweep(folder, launcher)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(3)
        left, done = orphans(folder), finished(folder)
        begin = time.monotonic()
        code = reloc(folder, "sweep", "resume", str(folder), *LAUNCHERS[launcher]).wait()
        seconds = time.monotonic() - begin
        equal = sum(
            (folder / number / "result.json").is_file() and outcome(folder / number) == content
            for number, content in expected.items()
        )
        rows[launcher] = {
            "killed after s": round(moment, 1), "finished then": done, "processes left": len(left),
            "resumed in s": round(seconds, 1), "exit code": code, "equal jobs": equal,
        }  # fmt: skip
        print(f"{launcher}: {rows[launcher]}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"undisturbed s": whole, **rows}, indent=2) + "\n")
    right = all(r["equal jobs"] == JOBS and not r["exit code"] and not r["processes left"]
                for r in rows.values())  # fmt: skip
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
