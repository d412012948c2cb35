"""Robust pose solvers, usable on their own.

    from reloc_core.solvers import estimate_absolute_pose

    estimate = estimate_absolute_pose(points2d, points3d, camera)
    if estimate.success:
        print(estimate.world_from_cam)

Names are resolved on first use, so that the command line and the registry can list solvers without
loading the native module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reloc_core.solvers.absolute import (
        PoseEstimate,
        estimate_absolute_pose,
        estimate_absolute_pose_batch,
        estimate_pose_dsac,
    )
    from reloc_core.solvers.averaging import (
        average_rotations,
        intersect_directions,
    )
    from reloc_core.solvers.device import cuda_devices
    from reloc_core.solvers.generalized import (
        GeneralizedPoseEstimate,
        estimate_generalized_absolute_pose,
    )
    from reloc_core.solvers.options import (
        AbsolutePoseOptions,
        DsacOptions,
        RelativePoseOptions,
        RgbdPoseOptions,
    )
    from reloc_core.solvers.relative import (
        RelativePoseEstimate,
        estimate_relative_pose,
    )
    from reloc_core.solvers.rgbd import (
        estimate_rgbd_pose,
    )

__all__ = [
    "AbsolutePoseOptions",
    "DsacOptions",
    "GeneralizedPoseEstimate",
    "PoseEstimate",
    "RelativePoseEstimate",
    "RelativePoseOptions",
    "RgbdPoseOptions",
    "average_rotations",
    "cuda_devices",
    "estimate_absolute_pose",
    "estimate_absolute_pose_batch",
    "estimate_generalized_absolute_pose",
    "estimate_pose_dsac",
    "estimate_relative_pose",
    "estimate_rgbd_pose",
    "intersect_directions",
]

_HOME = {
    "AbsolutePoseOptions": "options",
    "DsacOptions": "options",
    "GeneralizedPoseEstimate": "generalized",
    "PoseEstimate": "absolute",
    "RelativePoseEstimate": "relative",
    "RelativePoseOptions": "options",
    "RgbdPoseOptions": "options",
    "average_rotations": "averaging",
    "cuda_devices": "device",
    "estimate_absolute_pose": "absolute",
    "estimate_absolute_pose_batch": "absolute",
    "estimate_generalized_absolute_pose": "generalized",
    "estimate_pose_dsac": "absolute",
    "estimate_relative_pose": "relative",
    "estimate_rgbd_pose": "rgbd",
    "intersect_directions": "averaging",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
