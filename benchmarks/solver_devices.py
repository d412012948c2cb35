"""Time of a batch of absolute poses on the CPU and on a CUDA device.

    python benchmarks/solver_devices.py [--devices cpu cuda] [--threads N] [--quick]

Simulated scene coordinates (2 cm noise, 50 % outliers). Prints a Markdown table of milliseconds per query:
the median over repetitions of whole calls, preparation and copies included.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from reloc_core.solvers import estimate_absolute_pose_batch
from reloc_core.types import Camera

CAMERA = Camera.pinhole(525.0, 640, 480)


def make_problem(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and scene points, float32, seen from the origin."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform((0, 0), (639, 479), (n, 2))
    z = rng.uniform(1, 4, (n, 1))
    points = np.column_stack([(pixels - CAMERA.matrix[:2, 2]) / 525.0, np.ones(n)]) * z
    points += 0.02 * rng.standard_normal((n, 3))
    bad = rng.permutation(n) < n // 2
    points[bad] = rng.uniform(-3, 3, (bad.sum(), 3))
    return pixels.astype(np.float32), points.astype(np.float32)


def seconds(
    problems: list[tuple[np.ndarray, np.ndarray]], device: str, threads: int, repetitions: int
) -> float:
    """Median wall time of a call."""
    times = []
    for repetition in range(repetitions + 1):
        start = time.perf_counter()
        estimates = estimate_absolute_pose_batch(
            [p[0] for p in problems],
            [p[1] for p in problems],
            CAMERA,
            options={"residual": "ray"},
            threads=threads,
            device=device,
        )
        if repetition > 0:  # the first call allocates and loads
            times.append(time.perf_counter() - start)
        failed = sum(
            not e.success or np.linalg.norm(e.world_from_cam[:3, 3]) > 0.05 for e in estimates
        )
        if failed > 0.02 * len(problems):
            raise SystemExit(f"{failed} of {len(problems)} poses are wrong on {device}")
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="small batches, one repetition")
    args = parser.parse_args()
    print(f"| queries | points | {' | '.join(f'{d} ms/query' for d in args.devices)} |")
    print("| --- " * (2 + len(args.devices)) + "|")
    for points in (512, 4800) if args.quick else (512, 4800, 19200):
        for queries in (1, 4) if args.quick else (1, 8, 64, 512):
            problems = [make_problem(seed, points) for seed in range(queries)]
            row = [
                f"{1e3 * seconds(problems, d, args.threads, 1 if args.quick else 5) / queries:.3f}"
                for d in args.devices
            ]
            print(f"| {queries} | {points} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
