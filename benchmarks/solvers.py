"""The native solvers against their peers, side by side.

    python benchmarks/solvers.py --data DIR [--problems 60] [--classes dense-s1-o0 ...] [--kernels avx2]
    python benchmarks/solvers.py --correspondences FILES.npz ...

Problems come from the depth and poses of DIR (`depth/`, `poses/` as ACE has them) or from saved
correspondences of an estimator: npz files with `points2d`, `points3d`, `world_from_cam`, `camera_params`
(SIMPLE_PINHOLE, 640x480). One thread, CPU time per solve, the same problems for all in one run: ratios hold
on a busy machine too. A failed solve counts as an infinite error.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import solver_peers
import solver_problems as sp
from solver_problems import Problem, pose_error

from reloc_core import _native
from reloc_core.solvers import (
    AbsolutePoseOptions,
    DsacOptions,
    RgbdPoseOptions,
    estimate_absolute_pose,
    estimate_pose_dsac,
    estimate_rgbd_pose,
)
from reloc_core.types import Camera

CAMERA = Camera.pinhole(sp.FOCAL, sp.WIDTH, sp.HEIGHT)


def ours(kernels: str, dense: bool, rgbd: bool) -> dict[str, solver_peers.Solve]:
    """The methods of this project for one kind of problem, as the framework calls them by default."""
    absolute = AbsolutePoseOptions(residual="ray" if dense else "reprojection", kernels=kernels)
    dsac, depth = DsacOptions(kernels=kernels), RgbdPoseOptions(kernels=kernels)

    def pose(e):
        return e.world_from_cam if e.success else None

    if rgbd:
        return {
            "reloc": lambda p: pose(estimate_rgbd_pose(p.points_cam, p.points3d, options=depth))
        }
    return {
        "reloc": lambda p: pose(
            estimate_absolute_pose(p.points2d, p.points3d, CAMERA, options=absolute)
        ),
        "reloc-dsac": lambda p: pose(
            estimate_pose_dsac(p.points2d, p.points3d, CAMERA, options=dsac)
        ),
    }


def measure(
    problems: list[Problem], methods: dict[str, solver_peers.Solve]
) -> dict[str, dict[str, float]]:
    """Median errors (cm, deg), recall at 5 cm / 5 deg (%), median CPU time (ms)."""
    table = {}
    for name, solve in methods.items():
        errors, seconds = [], []
        solve(problems[0])  # first-call costs are nobody's solve time
        for p in problems:
            start = time.process_time()
            try:
                result = solve(p)
            except Exception:  # a peer that throws has not localized
                result = None
            seconds.append(time.process_time() - start)
            errors.append(
                (np.inf, np.inf) if result is None else pose_error(result, p.world_from_cam)
            )
        e = np.array(errors)
        table[name] = {
            "t_cm": float(np.median(e[:, 0])),
            "r_deg": float(np.median(e[:, 1])),
            "recall": float(100 * np.mean((e[:, 0] < 5) & (e[:, 1] < 5))),
            "ms": float(1e3 * np.median(seconds)),
        }
    return table


def compare(table: dict[str, dict[str, float]]) -> dict[str, float | str]:
    """Ours against the most accurate peer and the fastest peer with the highest recall."""
    peers = {k: v for k, v in table.items() if not k.startswith("reloc")}
    top = max(v["recall"] for v in peers.values())
    accurate = min(peers, key=lambda k: peers[k]["t_cm"])
    fastest = min(
        (k for k in peers if peers[k]["recall"] >= min(top, 99.0)), key=lambda k: peers[k]["ms"]
    )
    us = table["reloc"]
    return {
        "best_peer": accurate,
        "error_ratio": us["t_cm"] / peers[accurate]["t_cm"],
        "fastest_peer": fastest,
        "speedup": peers[fastest]["ms"] / us["ms"],
        "recall": us["recall"],
        "peer_recall": top,
    }


def saved_problems(paths: list[Path]) -> list[Problem]:
    """Problems from correspondences that an estimator saved."""
    out = []
    for path in paths:
        z = np.load(path)
        n = len(z["points2d"])
        out.append(
            Problem(
                z["points2d"].astype(np.float64),
                z["points3d"].astype(np.float64),
                z["world_from_cam"],
                np.ones(n, bool),
            )
        )
    return out


def main() -> None:
    """Run and print the table; write JSON beside it with --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--correspondences", type=Path, nargs="*")
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--classes", nargs="*", default=[*sp.DENSE, *sp.SPARSE, *sp.RGBD])
    parser.add_argument("--peers", nargs="*", help="only these peers")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    frames = sp.Frames(args.data) if args.data else None
    print(f"kernels: {_native.kernel_name(args.kernels)}")
    results = {}
    classes = ["saved"] if args.correspondences else args.classes
    for cls in classes:
        if args.correspondences:
            problems = saved_problems(args.correspondences)
        elif frames is None:
            parser.error("name --data or --correspondences")
        else:
            problems = [sp.make(cls, frames, args.first + k) for k in range(args.problems)]
        rgbd = cls.startswith("rgbd")
        peers = solver_peers.rgbd_peers() if rgbd else solver_peers.absolute_peers()
        if args.peers:
            peers = {k: v for k, v in peers.items() if k in args.peers}
        table = measure(
            problems, {**peers, **ours(args.kernels, not cls.startswith("sparse"), rgbd)}
        )
        summary = compare(table)
        results[cls] = {"methods": table, "summary": summary}
        for name, row in table.items():
            print(
                f"{cls:14s} {name:18s} {row['t_cm']:8.3f} cm "
                f"{row['r_deg']:7.4f} deg {row['recall']:5.1f} % "
                f"{row['ms']:9.3f} ms"
            )
        print(
            f"{cls:14s} => error x{summary['error_ratio']:.2f} of {summary['best_peer']}, "
            f"{summary['speedup']:.1f} times faster than {summary['fastest_peer']}, "
            f"recall {summary['recall']:.1f} % (peers {summary['peer_recall']:.1f} %)",
            flush=True,
        )
    for kind in ("dense", "sparse", "rgbd"):
        chosen = [r["summary"] for c, r in results.items() if c.startswith(kind)]
        if chosen:
            print(
                f"{kind}: mean error ratio {np.mean([s['error_ratio'] for s in chosen]):.2f}, "
                f"mean time ratio 1/{1 / np.mean([1 / s['speedup'] for s in chosen]):.1f}, "
                f"worst 1/{min(s['speedup'] for s in chosen):.1f}"
            )
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
