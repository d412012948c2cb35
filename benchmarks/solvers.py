"""The native solvers against their peers, side by side.

    python benchmarks/solvers.py --data DIR [--problems 60] [--classes dense-s1-o0 ...] [--kernels avx2]
    python benchmarks/solvers.py --correspondences FILES.npz ...

Problems come from the depth and poses of DIR (`depth/`, `poses/` as ACE has them) or from saved
correspondences of an estimator (`save_correspondences.py`): npz files with `points2d`, `points3d`,
`world_from_cam`, the camera's `model`, `size` (width, height) and `params`, the `kind` of evidence and,
where there are any, `weights` and `variances`; all files from one camera and of one kind. One thread, CPU
time per solve, the same problems for all. A failed solve counts as an infinite error; an exception in one
of our solvers is a crash, which is counted and makes the run fail.

Ours are called as the framework calls them by default: with the residual that the component `pnp` takes for
the kind of evidence, and with the estimator's weights and variances. The peers' functions take none.
Intervals are paired bootstrap intervals (95 %) of the ratio of median errors over the problems.

A class may be followed by its own number of problems (`dense-s5-o90:10`), where peers take seconds for one.
Peers take most of the time: `--peer-cache FILE` keeps their results per problem. The fastest one is timed
again on the first problems in every run, and the speedup taken over the same problems, so that the ratio
holds on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import solver_cameras
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


def ours(kernels: str, camera: Camera, kind: str) -> dict[str, solver_peers.Solve]:
    """The methods of this project for "dense", "sparse" or "rgbd" problems."""
    residual = "reprojection" if kind == "sparse" else "ray"
    absolute = AbsolutePoseOptions(residual=residual, kernels=kernels)
    dsac, depth = DsacOptions(kernels=kernels), RgbdPoseOptions(kernels=kernels)

    def pose(e):
        return e.world_from_cam if e.success else None

    if kind == "rgbd":
        return {
            "reloc": lambda p: pose(estimate_rgbd_pose(p.points_cam, p.points3d, options=depth))
        }
    return {
        "reloc": lambda p: pose(
            estimate_absolute_pose(
                p.points2d,
                p.points3d,
                camera,
                weights=p.weights,
                variances=p.variances,
                options=absolute,
            )
        ),
        "reloc-dsac": lambda p: pose(
            estimate_pose_dsac(p.points2d, p.points3d, camera, options=dsac)
        ),
    }


def run(
    solve: solver_peers.Solve,
    problems: list[Problem],
    repeats: int = 1,
    crashes: list[str] | None = None,
) -> list[list[float]]:
    """Per problem: errors in cm and degrees (infinite without a pose) and CPU time in ms.

    Exceptions are appended to `crashes`.
    """

    def attempt(problem: Problem) -> np.ndarray | None:
        try:
            return solve(problem)
        except Exception as error:
            if crashes is not None:
                crashes.append(repr(error))
            return None

    rows = []
    attempt(problems[0])  # first-call costs are nobody's solve time
    for p in problems:
        start = time.process_time()
        for _ in range(repeats):
            result = attempt(p)
        ms = 1e3 * (time.process_time() - start) / repeats
        error = (np.inf, np.inf) if result is None else pose_error(result, p.world_from_cam)
        rows.append([*error, ms])
    return rows


def ratio_interval(a: list[list[float]], b: list[list[float]]) -> list[float]:
    """Paired bootstrap interval (95 %) of the ratio of the median translation errors."""
    ours_cm, peer_cm = np.array(a)[:, 0], np.array(b)[:, 0]
    chosen = np.random.default_rng(0).integers(0, len(a), (2000, len(a)))
    ratios = np.median(ours_cm[chosen], 1) / np.median(peer_cm[chosen], 1)
    return [float(v) for v in np.quantile(ratios, (0.025, 0.975))]


def summary(rows: list[list[float]]) -> dict[str, float]:
    """Median errors (cm, deg), recall at 5 cm / 5 deg (%), median CPU time (ms)."""
    e = np.array(rows)
    return {
        "t_cm": float(np.median(e[:, 0])),
        "r_deg": float(np.median(e[:, 1])),
        "recall": float(100 * np.mean((e[:, 0] < 5) & (e[:, 1] < 5))),
        "ms": float(np.median(e[:, 2])),
    }


class PeerCache:
    """Results of the peers per class and problem; kept in a JSON file if one is named."""

    def __init__(self, path: Path | None, setting: str) -> None:
        self.path, self.setting = path, setting
        self.rows: dict[str, list[float]] = {}
        if path and path.exists():
            self.rows = json.loads(path.read_text())

    def run(
        self, cls: str, peer: str, solve: solver_peers.Solve, first: int, problems: list[Problem]
    ) -> list[list[float]]:
        """As `run`; solves only what is not known."""
        keys = [f"{self.setting} {cls} {peer} {first + k}" for k in range(len(problems))]
        for key, p in zip(keys, problems, strict=True):
            if key not in self.rows:
                self.rows[key] = run(solve, [p])[0]
        if self.path:
            self.path.write_text(json.dumps(self.rows))
        return [self.rows[key] for key in keys]


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


def saved_problems(paths: list[Path]) -> tuple[list[Problem], Camera, str]:
    """Problems from correspondences that an estimator saved, their camera and kind."""
    problems, cameras, kinds = [], set(), set()

    def optional(z: dict, name: str) -> np.ndarray | None:
        return z[name].astype(np.float64) if name in z else None

    for path in paths:
        z = np.load(path)
        model, (width, height) = str(z["model"]), z["size"]
        cameras.add(Camera(model, int(width), int(height), tuple(map(float, z["params"]))))
        problems.append(
            Problem(
                z["points2d"].astype(np.float64),
                z["points3d"].astype(np.float64),
                z["world_from_cam"],
                np.ones(len(z["points2d"]), bool),
                weights=optional(z, "weights"),
                variances=optional(z, "variances"),
            )
        )
        kinds.add(str(z["kind"]))
    if len(cameras) != 1 or len(kinds) != 1:
        raise SystemExit(
            f"The files have {len(cameras)} different cameras and are of the kinds {sorted(kinds)}; "
            "one of each is needed."
        )
    return problems, cameras.pop(), kinds.pop()


def report(cls: str, table: dict[str, dict[str, float]], s: dict[str, float | str]) -> None:
    """One class on the terminal."""
    for name, row in table.items():
        print(
            f"{cls:14s} {name:18s} {row['t_cm']:8.3f} cm {row['r_deg']:7.4f} deg "
            f"{row['recall']:5.1f} % {row['ms']:9.3f} ms"
        )
    print(
        f"{cls:14s} => error x{s['error_ratio']:.2f} ({s['error_interval'][0]:.2f}-"
        f"{s['error_interval'][1]:.2f}) of {s['best_peer']}, {s['speedup']:.1f} times "
        f"faster than {s['fastest_peer']}, recall {s['recall']:.1f} % (peers {s['peer_recall']:.1f} %)",
        flush=True,
    )


def main() -> None:
    """Run and print the table; write JSON with --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--correspondences", type=Path, nargs="*")
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--offset", type=int, default=0, help="first frame; every tenth is used")
    parser.add_argument("--classes", nargs="*", default=[*sp.DENSE, *sp.SPARSE, *sp.RGBD])
    parser.add_argument("--peers", nargs="*", help="only these peers")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--peer-cache", type=Path, help="JSON file with results of the peers")
    parser.add_argument("--retime", type=int, default=10, help="problems of the repeated timing")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not args.data and not args.correspondences:
        parser.error("name --data or --correspondences")
    kernels = _native.kernel_name(args.kernels)
    print(f"kernels: {kernels}")
    frames = sp.Frames(args.data, offset=args.offset) if args.data else None
    if frames is not None and not len(frames):
        parser.error(f"{args.data} has no depth: name a split of a scene, as DIR/train")
    cache = PeerCache(args.peer_cache, f"{args.data or args.correspondences[0]} {args.offset}")
    camera = Camera.pinhole(sp.FOCAL, sp.WIDTH, sp.HEIGHT)
    results, all_crashes = {}, []
    for entry in ["saved"] if args.correspondences else args.classes:
        cls, _, count = entry.partition(":")
        if args.correspondences:
            problems, camera, kind = saved_problems(args.correspondences)
        else:
            kind = cls.split("-")[0]
            source = solver_cameras if kind in solver_cameras.KINDS else sp
            problems = [
                source.make(cls, frames, args.first + k) for k in range(int(count or args.problems))
            ]
        other = kind in solver_cameras.KINDS
        if other:
            peers = solver_cameras.peers(cls)
        elif kind == "rgbd":
            peers = solver_peers.rgbd_peers()
        else:
            peers = solver_peers.absolute_peers(camera)
        if args.peers:
            known, peers = list(peers), {k: v for k, v in peers.items() if k in args.peers}
            if not peers:
                raise SystemExit(f"{cls}: none of the peers; it has {', '.join(known)}.")
        rows = {
            name: cache.run(cls, name, solve, args.first, problems) for name, solve in peers.items()
        }
        methods = (
            solver_cameras.ours(cls, args.kernels) if other else ours(args.kernels, camera, kind)
        )
        crashes: list[str] = []
        for name, solve in methods.items():
            rows[name] = run(solve, problems, 5 if name == "reloc" else 1, crashes)
        table = {name: summary(r) for name, r in rows.items()}
        s = compare(table)
        s["error_interval"] = ratio_interval(rows["reloc"], rows[str(s["best_peer"])])
        s["crashes"], s["problems"] = len(crashes), len(problems)
        all_crashes += crashes
        # Both sides again, in turn, under the same load.
        short, fastest = problems[: args.retime], peers[str(s["fastest_peer"])]
        peer_ms = summary(run(fastest, short))["ms"]
        s["speedup"] = peer_ms / summary(run(methods["reloc"], short, repeats=20))["ms"]
        results[cls] = {"methods": table, "summary": s}
        report(cls, table, s)
        if args.out:
            head = {"kernels": kernels, "first": args.first, "offset": args.offset}
            args.out.write_text(json.dumps({**head, "classes": results}, indent=1) + "\n")
        if cls.startswith("focal"):
            for name, error in solver_cameras.focal_errors(problems).items():
                print(f"{cls:14s} {name:18s} focal length {error:.3f} %")
    for kind in ("dense", "sparse", "rgbd", *solver_cameras.KINDS):
        chosen = [r["summary"] for c, r in results.items() if c.startswith(kind)]
        if chosen:
            print(
                f"{kind}: mean error ratio {np.mean([s['error_ratio'] for s in chosen]):.2f}, "
                f"mean time ratio 1/{1 / np.mean([1 / s['speedup'] for s in chosen]):.1f}, "
                f"worst 1/{min(s['speedup'] for s in chosen):.1f}"
            )
    if all_crashes:
        raise SystemExit(f"{len(all_crashes)} crashes of our solvers, the first: {all_crashes[0]}")


if __name__ == "__main__":
    main()
