"""A pose fitted again to scene points of which each is known better in some directions than in others.

Points that were triangulated from few photographs are uncertain by pixels, and mostly along one line. A fit
that takes every residual for one of the image gives up the near points, whose residuals are large and which
say most about the position. Here every residual is weighed by its own covariance, that of the key point and
of the point as the query sees it, with a wide robust scale.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reloc_core import _native
from reloc_core.geometry import unproject
from reloc_core.solvers.absolute import PoseEstimate
from reloc_core.types import Camera, Correspondences


def with_located_points(
    estimate: PoseEstimate, evidence: Correspondences, camera: Camera
) -> PoseEstimate:
    """An estimate with its pose fitted to points whose covariances are known.

    Geman-McClure on the squared distance of residuals over their covariance, by iteratively reweighted
    Gauss-Newton steps from the pose that was found. What is said of its uncertainty stays: the fit is no
    worse. Without covariances, a pose, or enough points near it the estimate is returned as it is.

    Args:
        estimate: of the evidence.
        evidence: with `covariances`.
        camera: of the query, where the estimate has none of its own.
    """
    if not estimate.success or evidence.covariances is None:
        return estimate
    camera = estimate.camera or camera
    noise = np.broadcast_to(np.asarray(evidence.pixel_noise, np.float64), len(evidence.points2d))
    pose = _native.located_pose(
        unproject(camera, evidence.points2d),
        np.asarray(evidence.points3d, np.float64),
        np.asarray(evidence.covariances, np.float64),
        (noise / camera.fx) ** 2,
        estimate.world_from_cam,
    )
    return estimate if pose is None else replace(estimate, world_from_cam=pose)
