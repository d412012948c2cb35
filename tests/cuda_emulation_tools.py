"""The emulated CUDA solver through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.solvers import AbsolutePoseOptions, PoseEstimate
from reloc_core.solvers.options import RESIDUALS
from reloc_core.types import Camera

_DOUBLES = ctypes.POINTER(ctypes.c_double)
_RESIDUAL = {"reprojection": 0, "ray": 1, "auto": 2}
assert set(_RESIDUAL) == set(RESIDUALS)


class _Options(ctypes.Structure):
    _fields_ = (
        [(n, ctypes.c_double) for n in ("search_radius", "threshold", "confidence", "pixel_noise")]
        + [("min_score", ctypes.c_double), ("seed", ctypes.c_uint64)]
        + [(n, ctypes.c_int) for n in ("min_iterations", "max_iterations", "min_inliers")]
        + [(n, ctypes.c_int) for n in ("local_noise", "residual", "threads", "backends")]
    )


class _Problem(ctypes.Structure):
    _fields_ = (
        [(n, _DOUBLES) for n in ("points2d", "points3d", "weights", "variances")]
        + [("n", ctypes.c_int)]
        + [(n, ctypes.c_double) for n in ("focal_x", "focal_y", "center_x", "center_y")]
    )


class _Result(ctypes.Structure):
    _fields_ = (
        [("cam_from_world", ctypes.c_double * 16), ("covariance", ctypes.c_double * 36)]
        + [(n, ctypes.c_double) for n in ("score", "sigma", "effective_points", "design_effect")]
        + [(n, ctypes.c_double) for n in ("false_alarms", "focal_shift", "focal_shift_std")]
        + [(n, ctypes.c_int) for n in ("status", "inliers", "iterations", "optimised")]
        + [("inlier", ctypes.c_void_p)]
    )


def _double_pointer(array: np.ndarray | None) -> Any:
    return None if array is None else array.ctypes.data_as(_DOUBLES)


class Emulation:
    """Solves batches with the kernels' functions on the host."""

    def __init__(self, library: Path) -> None:
        self._solve = ctypes.CDLL(str(library)).reloc_emulate
        self._solve.restype = ctypes.c_int

    def solve(
        self,
        points2d: Sequence[np.ndarray],
        points3d: Sequence[np.ndarray],
        camera: Camera,
        *,
        weights: Sequence[np.ndarray] | None = None,
        variances: Sequence[np.ndarray] | None = None,
        options: AbsolutePoseOptions | None = None,
        threads: int = 1,
        backends: int = 1,
    ) -> list[PoseEstimate]:
        """As `estimate_absolute_pose_batch`; `threads` of an emulated block."""
        o = options or AbsolutePoseOptions()
        native = _Options(
            o.search_radius or 0.0, o.threshold, o.confidence, o.pixel_noise, o.min_score, o.seed,
            o.min_iterations, o.max_iterations, o.min_inliers, o.local_noise,
            _RESIDUAL[o.residual], threads, backends,
        )  # fmt: skip
        count = len(points3d)
        kept = []  # arrays that the structures point to
        problems, results = (_Problem * count)(), (_Result * count)()
        for i in range(count):
            arrays = [
                None if a is None else np.ascontiguousarray(a[i], np.float64)
                for a in (points2d, points3d, weights, variances)
            ]
            inlier = np.zeros(len(points3d[i]), bool)
            kept.append((arrays, inlier))
            m = camera.matrix
            problems[i] = _Problem(
                *map(_double_pointer, arrays),
                len(points3d[i]), m[0, 0], m[1, 1], m[0, 2], m[1, 2],
            )  # fmt: skip
            results[i].inlier = inlier.ctypes.data
        assert self._solve(problems, count, ctypes.byref(native), results) == 0
        return [
            PoseEstimate(
                success=r.status == 0,
                message=str(r.status),
                world_from_cam=np.linalg.inv(np.reshape(r.cam_from_world, (4, 4))),
                covariance=np.reshape(r.covariance, (6, 6)),
                inliers=inlier,
                num_inliers=r.inliers,
                score=r.score,
                iterations=r.iterations,
                noise=r.sigma,
                effective_points=r.effective_points,
                design_effect=r.design_effect,
                false_alarms=r.false_alarms,
                focal_shift=r.focal_shift,
                focal_shift_std=r.focal_shift_std,
            )
            for r, (_, inlier) in zip(results, kept, strict=True)
        ]
