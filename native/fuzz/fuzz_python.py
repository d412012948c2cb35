"""Random degenerate input through the Python entry points of the solvers.

    python native/fuzz/fuzz_python.py [--calls 100000] [--seed 0]

Complements the libFuzzer target, which does not see averaging and the bindings. A call may raise a
`RelocError`; any other exception, a non-finite result or more than `MAX_SECONDS` of CPU time ends the run.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter

import numpy as np

from reloc_core.errors import RelocError
from reloc_core.solvers import (
    average_rotations,
    estimate_absolute_pose,
    estimate_pose_dsac,
    estimate_relative_pose,
    estimate_rgbd_pose,
    intersect_directions,
)
from reloc_core.types import Camera

MAX_SECONDS = 5.0
CAMERA = Camera.pinhole(525.0, 640, 480)
SPECIAL = np.array([0, 1, -1, 1e-30, 1e30, -1e30, 1e-6, 1e6, np.nan, np.inf, -np.inf, 1e300])


def wild(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Ordinary values, small integers (duplicates, lines, planes) or special ones, mixed."""
    kind = rng.integers(4)
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4)
    if kind == 1:
        values = rng.integers(-2, 3, shape).astype(np.float64)
    elif kind >= 2:
        chosen = rng.random(shape) < (0.02, 0.5)[kind - 2]
        values = np.where(chosen, rng.choice(SPECIAL, shape), values)
    with np.errstate(over="ignore"):
        return values.astype(rng.choice([np.float32, np.float64]))


def rotations(rng: np.random.Generator, n: int) -> np.ndarray:
    """Rotations, some of them equal, reflected or no rotations at all."""
    q, _ = np.linalg.qr(rng.standard_normal((n, 3, 3)))
    if n and rng.random() < 0.5:
        q[rng.integers(n)] = wild(rng, 3, 3)
    if n > 1 and rng.random() < 0.3:
        q[:] = q[0]
    return q


def entries(rng: np.random.Generator) -> dict[str, object]:
    """One call of each entry point, by name."""
    n = int(rng.integers(0, 24))
    weights = None if rng.random() < 0.5 else wild(rng, n)
    pixels, other, points, camera_points = (wild(rng, n, k) for k in (2, 2, 3, 3))
    short = {"max_iterations": 64, "seed": int(rng.integers(2**63))}
    return {
        "absolute": lambda: estimate_absolute_pose(
            pixels * 100 + 300, points, CAMERA, weights=weights, options=short
        ),
        "rgbd": lambda: estimate_rgbd_pose(camera_points, points, weights=weights, options=short),
        "relative": lambda: estimate_relative_pose(
            pixels * 100 + 300, other * 100 + 300, CAMERA, CAMERA, options=short
        ),
        "dsac": lambda: estimate_pose_dsac(
            pixels * 100 + 300, points, CAMERA, options={"hypotheses": 4, "max_tries": 8}
        ),
        "average_rotations": lambda: average_rotations(rotations(rng, n), weights),
        "intersect_directions": lambda: intersect_directions(points, camera_points, weights),
    }


def check(name: str, result: object) -> bool:
    """Whether the call localized; raises where a result is not finite."""
    success = bool(getattr(result, "success", True))
    if isinstance(result, np.ndarray):
        values = [result]
    else:
        poses = ("world_from_cam", "b_from_a", "covariance")
        values = [getattr(result, k) for k in poses if hasattr(result, k)] if success else []
    if not all(np.isfinite(v).all() for v in values):
        raise AssertionError(f"{name} gave a result that is not finite")
    return success


def main() -> None:
    """Run and print the number of calls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    calls, successes, slowest = Counter(), Counter(), Counter()
    number = 0
    while sum(calls.values()) < args.calls:
        rng = np.random.default_rng([args.seed, number])
        for name, call in entries(rng).items():
            start = time.process_time()
            try:
                successes[name] += check(name, call())
            except RelocError:
                pass
            except Exception as error:
                where = f"--seed {args.seed}, round {number}"
                raise SystemExit(f"{name} failed at {where}: {error!r}") from error
            seconds = time.process_time() - start
            if seconds > MAX_SECONDS:
                raise SystemExit(f"{name} took {seconds:.1f} s, round {number}")
            slowest[name] = max(slowest[name], seconds)
            calls[name] += 1
        number += 1
    for name in calls:
        print(f"{name}: {calls[name]} calls, {successes[name]} successes, {slowest[name]:.4f} s")
    print(f"solver calls: {sum(calls.values())}")


if __name__ == "__main__":
    main()
