"""A pose fitted again to scene points of which each is known better in some directions than in others.

Points that were triangulated from few photographs are uncertain by pixels, and mostly along one line. A fit
that takes every residual for one of the image gives up the near points, whose residuals are large and which
say most about the position. Here every residual is weighed by its own covariance, that of the key point and
of the point as the query sees it, with a wide robust scale.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reloc_core.geometry import inverse, pose_plus, transform, unproject
from reloc_core.solvers.absolute import PoseEstimate
from reloc_core.types import Camera, Correspondences, Float64Array

_STEPS = 12
_SCALE = 5.0  # standard deviations at which a residual has a quarter of its weight
_FAR = 30.0  # standard deviations, from which on one has none
_FEWEST = 12  # points


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
    rays = unproject(camera, evidence.points2d)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    known = np.isfinite(rays).all(1) & np.isfinite(evidence.points3d).all(1)
    known &= np.isfinite(evidence.covariances).all((1, 2))
    rays = rays[known]
    points = np.asarray(evidence.points3d[known], np.float64)
    covariances = np.asarray(evidence.covariances[known], np.float64)
    noise = np.broadcast_to(np.asarray(evidence.pixel_noise, np.float64), known.shape)
    variance = (noise[known] / camera.fx) ** 2
    basis = _across(rays)
    pose = estimate.world_from_cam
    try:
        for _ in range(_STEPS):
            step = _step(pose, rays, basis, points, covariances, variance)
            if step is None:
                return estimate
            pose = pose_plus(pose, step)
    except np.linalg.LinAlgError:
        return estimate
    return replace(estimate, world_from_cam=pose) if np.isfinite(pose).all() else estimate


def _across(rays: Float64Array) -> Float64Array:
    """(N, 2, 3) two unit vectors across each ray."""
    axis = np.eye(3)[np.abs(rays).argmin(1)]
    first = np.cross(rays, axis)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(rays, first)], 1)


def _step(
    pose: Float64Array, rays: Float64Array, basis: Float64Array, points: Float64Array,
    covariances: Float64Array, variance: Float64Array,
) -> Float64Array | None:  # fmt: skip
    """A Gauss-Newton step (6,) in the tangent at the pose; None where too few points are near it."""
    local = transform(inverse(pose), points)
    distance = np.maximum(np.linalg.norm(local, axis=1), 1e-300)
    direction = local / distance[:, None]
    residual = np.einsum("nij,nj->ni", basis, direction)
    # Of the residual by the point in camera axes.
    slope = basis - residual[:, :, None] * direction[:, None]
    slope /= distance[:, None, None]
    world = slope @ pose[:3, :3].T
    spread = world @ covariances @ world.transpose(0, 2, 1) + variance[:, None, None] * np.eye(2)
    information = np.linalg.inv(spread)
    squared = np.einsum("ni,nij,nj->n", residual, information, residual)
    front = np.einsum("ni,ni->n", rays, direction) > 0
    weights = np.where(front & (squared < _FAR**2), (1 + squared / _SCALE**2) ** -2.0, 0.0)
    if (weights > 0).sum() < _FEWEST:
        return None
    # A turn w and a move v of the camera take the point to local + local x w - v.
    x, y, z = local.T
    zero = np.zeros_like(x)
    turned = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    jacobian = np.concatenate([slope @ turned, -slope], 2)
    weighted = np.einsum("nik,nij,n->nkj", jacobian, information, weights)
    step = np.linalg.solve(
        np.einsum("nkj,njl->kl", weighted, jacobian), -np.einsum("nkj,nj->k", weighted, residual)
    )
    return np.asarray(step, np.float64)
