"""Absolute pose of a generalized camera: a rig, or a window of a sequence, as one query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reloc_core import _native
from reloc_core.errors import ConfigError, InputError
from reloc_core.geometry import check_pose
from reloc_core.solvers.absolute import arrays, check_camera, native_options, per_problem
from reloc_core.solvers.arrays import floats
from reloc_core.solvers.checks import make_options
from reloc_core.solvers.options import AbsolutePoseOptions
from reloc_core.types import BoolArray, Camera, Float64Array


@dataclass(frozen=True)
class GeneralizedPoseEstimate:
    """Outcome of one problem with several images.

    Attributes:
        success: whether `world_from_rig` is a pose to be used.
        message: why not; "" on success.
        world_from_rig: (4, 4) float64; the identity where no pose was found.
        covariance: (6, 6) float64 in the tangent at the pose, rig axes, order rotation (rad),
            translation (scene unit): R_true = R Exp(w), t_true = t + R v. Infinite without a pose.
        inliers: per image (N_i,) bool; points within three sigmas of the estimated noise.
        num_inliers: number of true entries.
        score: 0..1, larger is surer.
        iterations: minimal samples drawn.
        noise: estimated noise: pixels for the reprojection residual, scene units for rays.
        effective_points: independent observations the covariance stands for.
        design_effect: how much correlated noise inflated the variance; 1 for independent noise.
    """

    success: bool
    message: str
    world_from_rig: Float64Array
    covariance: Float64Array
    inliers: tuple[BoolArray, ...]
    num_inliers: int
    score: float
    iterations: int
    noise: float
    effective_points: float
    design_effect: float


def estimate_generalized_absolute_pose(
    points2d: Sequence[Any],
    points3d: Sequence[Any],
    cameras: Camera | Sequence[Camera],
    rig_from_cam: Any,
    *,
    weights: Sequence[Any] | None = None,
    variances: Sequence[Any] | None = None,
    options: AbsolutePoseOptions | Mapping[str, Any] | None = None,
) -> GeneralizedPoseEstimate:
    """Robust pose of several images whose poses relative to each other are known.

    Locally optimised RANSAC over triples of viewing rays from any of the images (generalized P3P), then
    the same final fit as for one image, over all of them. Images without a pose of their own, with three
    points or fewer, contribute too. Releases the GIL. No state is kept between calls.

    Args:
        points2d: one array (N_i, 2) of pixels per image.
        points3d: one array (N_i, 3) of scene points per image.
        cameras: one camera for all images, or one per image.
        rig_from_cam: (C, 4, 4) poses of the images in the rig, scene units: for the cameras of a rig its
            calibration, for a window of a sequence the odometry, relative to any one of its images.
        weights: one array (N_i,) per image or None, as for `estimate_absolute_pose`; comparable between
            images.
        variances: one array (N_i,) per image or None; for all images or for none.
        options: `AbsolutePoseOptions` or a mapping of its fields. One thread is used; `estimate_focal`
            is not supported.

    Raises:
        InputError: the lists differ in length, an array has the wrong shape or type, or a pose is none.
        ConfigError: an option is unknown, out of range or not supported here.
    """
    checked = make_options(AbsolutePoseOptions, options)
    if checked.estimate_focal:
        raise ConfigError("estimate_focal is not supported for a generalized camera.")
    count = len(points3d)
    cams = [cameras] * count if isinstance(cameras, Camera) else cameras
    columns = [
        per_problem(name, values, count, "images")
        for name, values in (
            ("points2d", points2d), ("cameras", cams), ("weights", weights), ("variances", variances)
        )
    ]  # fmt: skip
    poses = floats("rig_from_cam", rig_from_cam, (count, 4, 4)).astype(np.float64)
    given = {None if v is None else True for v in columns[3]}
    if len(given) > 1:
        raise InputError("variances must be given for all images or for none.")
    images = []
    for index, (p2, p3, cam, w, v) in enumerate(
        zip(columns[0], points3d, columns[1], columns[2], columns[3], strict=True)
    ):
        problem = check_pose(poses[index])
        if problem:
            raise InputError(f"rig_from_cam[{index}] is no pose: {problem}.")
        a2, a3, aw, av = arrays(p2, p3, w, v)
        cam_from_rig = np.ascontiguousarray(np.linalg.inv(poses[index]))
        images.append((a2, a3, check_camera(cam), cam_from_rig, aw, av))
    success, message, pose, covariance, inliers, *rest = _native.generalized_pose(
        images, native_options(checked)
    )
    ends = np.cumsum([len(p) for p in points3d])[:-1]
    of_images = tuple(np.split(inliers, ends)) if count else ()
    numbers: list[Any] = rest[:6]
    return GeneralizedPoseEstimate(success, message, pose, covariance, of_images, *numbers)
