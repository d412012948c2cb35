"""Problems and peers beyond one calibrated pinhole image, for `solvers.py`.

* `focal-o{20,50,80}`: sparse matches of an image without calibration; the focal length is estimated. The
  camera that all methods get has COLMAP's guess, 1.2 image widths (1.46 times the true focal length).
* `lens-o30`: sparse matches through a lens with strong barrel distortion (COLMAP's OPENCV model).
* `rig-o{20,50,80}`: four frames of a sequence, 250 matches each, as one query with known relative poses.

Frames, noise (1 px) and mismatches are those of the sparse classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import solver_problems as sp
from solver_peers import Solve, _from_cam

from reloc_core.solvers import (
    AbsolutePoseOptions,
    estimate_absolute_pose,
    estimate_generalized_absolute_pose,
)
from reloc_core.types import Camera

KINDS = ("focal", "lens", "rig")
CLASSES = [f"{k}-o{o}" for k in ("focal", "rig") for o in (20, 50, 80)] + ["lens-o30"]
TRUE = Camera.pinhole(sp.FOCAL, sp.WIDTH, sp.HEIGHT)
GUESS = Camera.pinhole(1.2 * sp.WIDTH, sp.WIDTH, sp.HEIGHT)
LENS = Camera("OPENCV", sp.WIDTH, sp.HEIGHT, (420.0, 400.0, *sp.CENTER, -0.28, 0.07, 4e-3, -6e-3))
RIG_FRAMES, RIG_MATCHES = 4, 250


@dataclass
class CameraProblem:
    """One problem; `found` takes the focal lengths that the methods estimate."""

    points2d: list[np.ndarray]
    points3d: list[np.ndarray]
    rig_from_cam: np.ndarray
    world_from_cam: np.ndarray
    camera: Camera
    found: dict[str, float] = field(default_factory=dict)


def _colmap_camera(camera: Camera):
    import pycolmap

    params = np.array(camera.params)
    at = 1 if camera.model == "SIMPLE_PINHOLE" else 2
    params[at : at + 2] += 0.5
    return pycolmap.Camera(
        model=camera.model, width=camera.width, height=camera.height, params=params
    )


def _poselib_camera(camera: Camera) -> dict:
    return {
        "model": camera.model, "width": camera.width, "height": camera.height,
        "params": list(camera.params),
    }  # fmt: skip


def make(name: str, frames: sp.Frames, number: int) -> CameraProblem:
    """Problem `number` of class `name`; the same arguments give the same problem."""
    kind = name.split("-")[0]
    outliers = int(re.search(r"-o(\d+)", name).group(1)) / 100
    rng = np.random.default_rng([number, *name.encode()])
    if kind == "rig":
        first = int(rng.integers(len(frames) - RIG_FRAMES + 1))
        chosen, n = range(first, first + RIG_FRAMES), RIG_MATCHES
    else:
        chosen, n = [int(rng.integers(len(frames)))], int(rng.integers(500, 2001))
    pixels, points = [], []
    for index in chosen:
        p = rng.uniform((0, 0), (sp.WIDTH - 1, sp.HEIGHT - 1), (n, 2))
        cam = frames.lift(index, p)
        world = sp._move(frames.pose[index], cam)
        if kind == "lens":
            p = np.asarray(_colmap_camera(LENS).img_from_cam(cam)) - 0.5
        bad = rng.permutation(n) < round(outliers * n)
        world[bad] = world[rng.integers(0, n, bad.sum())]
        pixels.append(p + rng.standard_normal((n, 2)))
        points.append(world)
    rig = frames.pose[chosen[0]]
    relative = np.stack([np.linalg.inv(rig) @ frames.pose[i] for i in chosen])
    camera = {"focal": GUESS, "lens": LENS, "rig": TRUE}[kind]
    return CameraProblem(pixels, points, relative, rig, camera)


def ours(name: str, kernels: str) -> dict[str, Solve]:
    """The methods of this project."""
    kind = name.split("-")[0]
    options = AbsolutePoseOptions(
        residual="reprojection", kernels=kernels, estimate_focal=kind == "focal"
    )

    def rig(p: CameraProblem) -> np.ndarray | None:
        e = estimate_generalized_absolute_pose(
            p.points2d, p.points3d, p.camera, p.rig_from_cam, options=options
        )
        return e.world_from_rig if e.success else None

    def single(p: CameraProblem) -> np.ndarray | None:
        e = estimate_absolute_pose(p.points2d[0], p.points3d[0], p.camera, options=options)
        p.found["reloc"] = e.camera.fx
        return e.world_from_cam if e.success else None

    return {"reloc": rig if kind == "rig" else single}


def _colmap(kind: str, threshold: float) -> Solve:
    import pycolmap

    options = pycolmap.AbsolutePoseEstimationOptions()
    for o in (options.ransac, ransac := pycolmap.RANSACOptions()):
        o.max_error, o.min_num_trials, o.confidence = threshold, 30, 0.99
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    options.estimate_focal_length = refinement.refine_focal_length = kind == "focal"

    def solve(p: CameraProblem) -> np.ndarray | None:
        camera = _colmap_camera(p.camera)
        if kind == "rig":
            out = pycolmap.estimate_and_refine_generalized_absolute_pose(
                np.vstack(p.points2d) + 0.5, np.vstack(p.points3d),
                np.repeat(np.arange(RIG_FRAMES), RIG_MATCHES),
                [pycolmap.Rigid3d(np.linalg.inv(T)[:3]) for T in p.rig_from_cam],
                [camera] * RIG_FRAMES, ransac, refinement,
            )  # fmt: skip
        else:
            out = pycolmap.estimate_and_refine_absolute_pose(
                p.points2d[0] + 0.5, p.points3d[0], camera, options, refinement
            )
        if out is None:
            return None
        p.found[f"colmap-{threshold:g}"] = camera.params[0]
        pose = out["rig_from_world" if kind == "rig" else "cam_from_world"].matrix()
        return _from_cam(pose[:, :3], pose[:, 3])

    return solve


def _poselib(kind: str, threshold: float) -> Solve:
    import poselib

    options = {
        "max_reproj_error": threshold, "max_error": threshold, "min_iterations": 20,
        "success_prob": 0.99, "dyn_num_trials_mult": 1.0, "seed": 1,
    }  # fmt: skip

    def solve(p: CameraProblem) -> np.ndarray | None:
        camera = _poselib_camera(p.camera)
        if kind == "rig":
            poses = []
            for T in p.rig_from_cam:
                pose = poselib.CameraPose()
                back = np.linalg.inv(T)
                pose.R, pose.t = back[:3, :3], back[:3, 3]
                poses.append(pose)
            pose, info = poselib.estimate_generalized_absolute_pose(
                p.points2d, p.points3d, poses, [camera] * RIG_FRAMES, options, {}
            )
        else:
            pose, info = poselib.estimate_absolute_pose(
                p.points2d[0], p.points3d[0], camera, options, {}
            )
        return _from_cam(pose.R, pose.t) if info["num_inliers"] >= 4 else None

    return solve


def _opencv(threshold: float) -> Solve:
    import cv2

    def solve(p: CameraProblem) -> np.ndarray | None:
        c = p.camera
        distortion = np.array(c.distortion)
        ok, rvec, tvec, inliers = cv2.solvePnPRansac(
            p.points3d[0], p.points2d[0], c.matrix, distortion, reprojectionError=threshold,
            iterationsCount=10000, confidence=0.99,
        )  # fmt: skip
        if not ok or inliers is None or len(inliers) < 4:
            return None
        chosen = inliers.ravel()
        rvec, tvec = cv2.solvePnPRefineLM(
            p.points3d[0][chosen], p.points2d[0][chosen], c.matrix, distortion, rvec, tvec
        )
        return _from_cam(cv2.Rodrigues(rvec)[0], tvec)

    return solve


def peers(name: str) -> dict[str, Solve]:
    """All peers that solve the class."""
    kind = name.split("-")[0]
    table = {"colmap-10": _colmap(kind, 10)}
    if (
        kind != "focal"
    ):  # PoseLib 2.0.5 has the minimal solver alone, and no robust estimation of focal
        table["poselib-10"] = _poselib(kind, 10)
    if kind == "lens":
        table["opencv-iterative"] = _opencv(10)
    return table


def focal_errors(problems: list[CameraProblem]) -> dict[str, float]:
    """Median error of the estimated focal length per method, in per cent."""
    names = sorted({n for p in problems for n in p.found})
    return {
        n: float(np.median([abs(p.found.get(n, np.inf) / sp.FOCAL - 1) for p in problems])) * 100
        for n in names
    }
