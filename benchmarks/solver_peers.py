"""Peers behind one signature: `solve(points2d, points3d) -> (4, 4) world_from_cam or None`."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from solver_problems import Problem

from reloc_core.types import Camera

Solve = Callable[[Problem], "np.ndarray | None"]


def _from_cam(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R.T, -R.T @ np.ravel(t)
    return pose


def _pinhole(camera: Camera) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy."""
    if camera.model not in ("SIMPLE_PINHOLE", "PINHOLE"):
        raise SystemExit(f"Peers take pinhole cameras here, not {camera.model}: undistort first.")
    return (camera.params[0], *camera.params[-3:])


def _opencv(
    camera: Camera, flags: int | None, method: int | None, threshold: float, iterations: int
) -> Solve:
    fx, fy, cx, cy = _pinhole(camera)
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

    def solve(p: Problem) -> np.ndarray | None:
        if method is not None:
            params = cv2.UsacParams()
            params.threshold, params.maxIterations, params.confidence = threshold, iterations, 0.99
            params.score, params.randomGeneratorState = cv2.SCORE_METHOD_MSAC, 1
            if method == cv2.USAC_ACCURATE:
                params.loMethod, params.loIterations, params.loSampleSize = (
                    cv2.LOCAL_OPTIM_GC,
                    20,
                    25,
                )
            else:
                params.loMethod, params.loIterations, params.loSampleSize = (
                    cv2.LOCAL_OPTIM_INNER_LO,
                    10,
                    25,
                )
            out = cv2.solvePnPRansac(p.points3d, p.points2d, K, None, params=params)
            ok, rvec, tvec, inliers = out[0], out[2], out[3], out[4]
        else:
            ok, rvec, tvec, inliers = cv2.solvePnPRansac(
                p.points3d, p.points2d, K, None, flags=flags, reprojectionError=threshold,
                iterationsCount=iterations, confidence=0.99,
            )  # fmt: skip
        if not ok or inliers is None or len(inliers) < 4:
            return None
        chosen = inliers.ravel()
        rvec, tvec = cv2.solvePnPRefineLM(
            p.points3d[chosen], p.points2d[chosen], K, None, rvec, tvec
        )
        return _from_cam(cv2.Rodrigues(rvec)[0], tvec)

    return solve


def _poselib(cam: Camera, threshold: float) -> Solve:
    import poselib

    camera = {
        "model": "PINHOLE",
        "width": cam.width,
        "height": cam.height,
        "params": list(_pinhole(cam)),
    }
    ransac = {
        "max_reproj_error": threshold, "max_error": threshold, "min_iterations": 20,
        "success_prob": 0.99, "dyn_num_trials_mult": 1.0, "seed": 1,
    }  # fmt: skip

    def solve(p: Problem) -> np.ndarray | None:
        pose, info = poselib.estimate_absolute_pose(p.points2d, p.points3d, camera, ransac, {})
        pose = getattr(pose, "pose", pose)
        return _from_cam(pose.R, pose.t) if info["num_inliers"] >= 4 else None

    return solve


def _colmap(cam: Camera, threshold: float) -> Solve:
    import pycolmap

    fx, fy, cx, cy = _pinhole(cam)
    camera = pycolmap.Camera(
        model="PINHOLE", width=cam.width, height=cam.height, params=[fx, fy, cx + 0.5, cy + 0.5]
    )
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error, options.ransac.min_num_trials, options.ransac.confidence = (
        threshold,
        30,
        0.99,
    )
    refinement = pycolmap.AbsolutePoseRefinementOptions()

    def solve(p: Problem) -> np.ndarray | None:
        out = pycolmap.estimate_and_refine_absolute_pose(
            p.points2d + 0.5, p.points3d, camera, options, refinement
        )
        if out is None:
            return None
        pose = out["cam_from_world"].matrix()
        return _from_cam(pose[:, :3], pose[:, 3])

    return solve


def absolute_peers(camera: Camera) -> dict[str, Solve]:
    """All installed peers with fair settings."""
    cv2.setNumThreads(1)
    return {
        "opencv-iterative": _opencv(camera, cv2.SOLVEPNP_ITERATIVE, None, 10, 1000),
        "opencv-p3p": _opencv(camera, cv2.SOLVEPNP_P3P, None, 10, 10000),
        "usac-default": _opencv(camera, None, cv2.USAC_DEFAULT, 10, 10000),
        "usac-accurate": _opencv(camera, None, cv2.USAC_ACCURATE, 25, 10000),
        "poselib-10": _poselib(camera, 10),
        "poselib-25": _poselib(camera, 25),
        "colmap-10": _colmap(camera, 10),
        "colmap-25": _colmap(camera, 25),
    }


def _kabsch(cam: np.ndarray, scene: np.ndarray) -> np.ndarray:
    c, s = cam.mean(0), scene.mean(0)
    u, _, vt = np.linalg.svd((cam - c).T @ (scene - s))
    R = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return _from_cam(R, c - R @ s)


def _ransac_kabsch(threshold: float) -> Solve:
    """Vectorised RANSAC in NumPy with rigid three-point samples, refitted on the inliers."""

    def solve(p: Problem) -> np.ndarray | None:
        rng = np.random.default_rng(1)
        best, best_count, drawn, needed = None, 3, 0, 16.0
        n = len(p.points3d)
        while drawn < min(needed, 20_000):
            idx = rng.integers(0, n, 3)
            drawn += 1
            pose = _kabsch(p.points_cam[idx], p.points3d[idx])
            d = np.linalg.norm(p.points_cam @ pose[:3, :3].T + pose[:3, 3] - p.points3d, axis=1)
            count = int((d < threshold).sum())
            if count > best_count:
                best, best_count = d < threshold, count
                needed = np.log(0.01) / np.log1p(-min(0.999999, (count / n) ** 3))
        if best is None:
            return None
        for _ in range(5):
            pose = _kabsch(p.points_cam[best], p.points3d[best])
            d = np.linalg.norm(p.points_cam @ pose[:3, :3].T + pose[:3, 3] - p.points3d, axis=1)
            best = d < threshold
        return pose

    return solve


def _colmap_rigid(threshold: float) -> Solve:
    import pycolmap

    options = pycolmap.RANSACOptions()
    options.max_error, options.min_num_trials, options.confidence = threshold, 30, 0.99

    def solve(p: Problem) -> np.ndarray | None:
        out = pycolmap.estimate_rigid3d_robust(p.points_cam, p.points3d, options)
        if out is None:
            return None
        chosen = out["inlier_mask"]
        return _kabsch(p.points_cam[chosen], p.points3d[chosen])

    return solve


def _opencv_affine(threshold: float) -> Solve:
    def solve(p: Problem) -> np.ndarray | None:
        ok, _, inliers = cv2.estimateAffine3D(
            p.points_cam, p.points3d, ransacThreshold=threshold, confidence=0.99
        )
        if not ok:
            return None
        chosen = inliers.ravel() > 0
        return _kabsch(p.points_cam[chosen], p.points3d[chosen])

    return solve


def rgbd_peers() -> dict[str, Solve]:
    """Peers for camera-frame points; each ends with a rigid fit to its inliers."""
    cv2.setNumThreads(1)
    return {
        "numpy-kabsch-10cm": _ransac_kabsch(0.1),
        "opencv-affine-10cm": _opencv_affine(0.1),
        "colmap-rigid-5cm": _colmap_rigid(0.05),
        "colmap-rigid-10cm": _colmap_rigid(0.1),
    }
