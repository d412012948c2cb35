"""Absolute pose from RGB-D: pairs of camera-frame and scene points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reloc_core import _native
from reloc_core.solvers.absolute import PoseEstimate, native_options
from reloc_core.solvers.checks import floats, make_options
from reloc_core.solvers.options import RgbdPoseOptions


def estimate_rgbd_pose(
    points_cam: Any,
    points3d: Any,
    *,
    weights: Any = None,
    options: RgbdPoseOptions | Mapping[str, Any] | None = None,
) -> PoseEstimate:
    """Robust camera pose from measured depth.

    Triangles whose sides agree in both frames give hypotheses; the final fit weighs each image region
    by the noise found in it.

    Args:
        points_cam: (N, 3) points in camera axes, scene units. Rows with non-finite values or without
            positive depth carry no information.
        points3d: (N, 3) the same points in the scene.
        weights: (N,) relative confidence; points whose weight is not positive are left out.
        options: `RgbdPoseOptions` or a mapping of its fields.

    Returns:
        The estimate; `noise` is in scene units.

    Raises:
        InputError: an array has the wrong shape or type.
        ConfigError: an option is unknown or out of range.
    """
    native = native_options(make_options(RgbdPoseOptions, options))
    p3 = floats("points3d", points3d, (None, 3))
    pc = floats("points_cam", points_cam, (len(p3), 3))
    w = None if weights is None else floats("weights", weights, (len(p3),))
    return PoseEstimate(*_native.rgbd_pose(pc, p3, w, native)[:-2])
