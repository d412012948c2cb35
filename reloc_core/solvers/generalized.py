"""Absolute pose of a generalized camera: a rig, or a window of a sequence, as one query."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reloc_core import _native
from reloc_core.errors import ConfigError, InputError
from reloc_core.geometry import check_pose
from reloc_core.solvers.absolute import arrays, check_camera, native_options, per_problem
from reloc_core.solvers.checks import floats, make_options
from reloc_core.solvers.options import AbsolutePoseOptions
from reloc_core.types import BoolArray, Camera, Float64Array

_IDENTITY = np.eye(4)


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
        options: `AbsolutePoseOptions` or a mapping of its fields; `estimate_focal` is not supported.

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
    _check_poses(poses)
    images, lengths = [], []
    for p2, p3, cam, pose, w, v in zip(
        columns[0], points3d, columns[1], np.linalg.inv(poses), columns[2], columns[3], strict=True
    ):
        a2, a3, aw, av = arrays(p2, p3, w, v)
        images.append((a2, a3, check_camera(cam), pose, aw, av))
        lengths.append(len(a3))
    success, message, pose, covariance, inliers, *rest = _native.generalized_pose(
        images, native_options(checked)
    )
    ends = list(itertools.accumulate(lengths))
    of_images = tuple(inliers[end - n : end] for n, end in zip(lengths, ends, strict=True))
    numbers: list[Any] = rest[:6]
    return GeneralizedPoseEstimate(success, message, pose, covariance, of_images, *numbers)


def _check_poses(poses: Float64Array) -> None:
    """Refuse what is no pose; all at once, since one by one takes as long as a solve."""
    rotation = poses[:, :3, :3]
    if (
        np.isfinite(poses).all()
        and np.all(np.abs(rotation.transpose(0, 2, 1) @ rotation - _IDENTITY[:3, :3]) < 1e-4)
        and np.all(np.abs(poses[:, 3] - _IDENTITY[3]) < 1e-4)
        and (np.linalg.det(rotation) > 0).all()
    ):
        return
    for index, pose in enumerate(poses):
        problem = check_pose(pose)
        if problem:
            raise InputError(f"rig_from_cam[{index}] is no pose: {problem}.")
