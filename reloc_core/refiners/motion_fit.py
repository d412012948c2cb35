"""Robust refinement of a camera's motion from followed points.

Points whose distance comes from a coordinate map are good to a few per cent, so that many of them miss
their pixel by more than the tracking error; and a nearly flat scene has two poses that explain it about
equally well, between which a search that forgets the last frame jumps.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from reloc_core.geometry import nearest_rotation
from reloc_core.types import Float64Array

_SCALE = 1.0  # pixels, of Cauchy's loss
_ITERATIONS = 8
_NEAREST = 1e-3  # metres


@dataclass(frozen=True)
class Fit:
    """A refined pose.

    Attributes:
        anchor_from_cam: (4, 4).
        covariance: (6, 6) in the tangent of `reloc_core.types`, of independent tracking errors.
        cost: sum of the robust losses.
    """

    anchor_from_cam: Float64Array
    covariance: Float64Array
    cost: float


def fit_motion(
    start: Float64Array, points: Float64Array, rays: Float64Array, focal: float
) -> Fit | None:
    """Iteratively reweighted least squares with Cauchy's loss on the reprojection error.

    Args:
        start: (4, 4) anchor_from_cam to begin with.
        points: (N, 3) in the anchor's camera axes, metres.
        rays: (N, 2) normalised image coordinates in the frame.
        focal: pixels, so that the loss is in pixels.

    Returns:
        None where the points do not determine a pose.
    """
    pose = start.copy()
    for _ in range(_ITERATIONS):
        error, jacobian, weight = _linearised(pose, points, rays, focal)
        weighted = jacobian * weight[:, None]
        try:
            step = np.linalg.solve(weighted.T @ jacobian, weighted.T @ error)
        except np.linalg.LinAlgError:
            return None
        # `pose_plus`, several times as fast; a few products keep a rotation one to the last digits.
        pose[:3, 3] += pose[:3, :3] @ step[3:]
        pose[:3, :3] = pose[:3, :3] @ cv2.Rodrigues(step[:3])[0]
        if np.abs(step).max() < 1e-7:
            break
    if not np.isfinite(pose).all():
        return None
    pose[:3, :3] = nearest_rotation(pose[:3, :3])
    error, jacobian, weight = _linearised(pose, points, rays, focal)
    normal = (jacobian * weight[:, None]).T @ jacobian
    noise = float((weight * error**2).sum() / weight.sum())
    square = (error.reshape(2, -1) ** 2).sum(0)
    try:
        covariance = noise * np.linalg.inv(normal)
    except np.linalg.LinAlgError:
        return None
    return Fit(pose, covariance, float(np.log1p(square / _SCALE**2).sum()))


def _linearised(
    pose: Float64Array, points: Float64Array, rays: Float64Array, focal: float
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Errors (2 N,) in pixels, all x first, their Jacobian (2 N, 6) and the loss's weights (2 N,)."""
    there = (points - pose[:3, 3]) @ pose[:3, :3]
    z = np.maximum(there[:, 2], _NEAREST)
    u, v, near = there[:, 0] / z, there[:, 1] / z, focal / z
    ahead, count = there[:, 2] > _NEAREST, len(points)
    jacobian = np.zeros((2 * count, 6))
    x, y = jacobian[:count].T, jacobian[count:].T
    x[0], x[1], x[2] = focal * u * v, -focal * (1 + u * u), focal * v
    y[0], y[1], y[2] = focal * (1 + v * v), -focal * u * v, -focal * u
    x[3] = y[4] = -near
    x[5], y[5] = u * near, v * near
    error = focal * np.concatenate([rays[:, 0] - u, rays[:, 1] - v])
    square = (error.reshape(2, -1) ** 2).sum(0)
    weight = ahead / (1 + square / _SCALE**2)
    return error, jacobian, np.concatenate([weight, weight])
