"""Relative pose of two calibrated images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reloc_core import _native
from reloc_core.solvers.absolute import check_camera, native_options
from reloc_core.solvers.checks import floats, make_options
from reloc_core.solvers.options import RelativePoseOptions
from reloc_core.types import BoolArray, Camera, Float64Array


@dataclass(frozen=True)
class RelativePoseEstimate:
    """Outcome of a two-view problem.

    Attributes:
        success: whether `b_from_a` is to be used.
        message: why not; "" on success.
        b_from_a: (4, 4) float64, p_b = b_from_a @ p_a, with a translation of length one.
        inliers: (N,) bool over the input.
        num_inliers: number of true entries.
        iterations: minimal samples drawn.
    """

    success: bool
    message: str
    b_from_a: Float64Array
    inliers: BoolArray
    num_inliers: int
    iterations: int


def estimate_relative_pose(
    points_a: Any,
    points_b: Any,
    camera_a: Camera,
    camera_b: Camera,
    *,
    options: RelativePoseOptions | Mapping[str, Any] | None = None,
) -> RelativePoseEstimate:
    """Robust relative pose from matches: five-point RANSAC, then a robust Sampson fit.

    Args:
        points_a: (N, 2) pixels in image a.
        points_b: (N, 2) pixels of the same points in image b.
        camera_a: intrinsics of image a.
        camera_b: intrinsics of image b.
        options: `RelativePoseOptions` or a mapping of its fields.

    Raises:
        InputError: an array has the wrong shape or type.
        ConfigError: an option is unknown or out of range.
    """
    native = native_options(make_options(RelativePoseOptions, options))
    a = floats("points_a", points_a, (None, 2))
    b = floats("points_b", points_b, (len(a), 2))
    return RelativePoseEstimate(
        *_native.relative_pose(a, b, check_camera(camera_a), check_camera(camera_b), native)
    )
