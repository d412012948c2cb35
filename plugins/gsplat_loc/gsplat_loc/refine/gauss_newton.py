"""Robust Gauss-Newton on a camera pose: colours of a rendering, matched points, and a prior.

The pose is improved as T <- T D, D = (Exp(w), v) in camera axes, the tangent of `reloc_core.types`. A
scene point X of the rendered camera is seen at X' = R_D^T (X - v), so to first order
dX' = [X']x dw - dv. The rendering is warped by sampling the *query* where its points fall: depth is
exact at the rendered pixel, and the query's gradients are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from reloc_core.geometry import inverse, skew, so3_exp, so3_log
from reloc_core.types import Camera, Float64Array

_MAD = 1.4826
_TUNING = 2.5  # noise levels at which the robust weight has fallen to a quarter
_GREY = 10.0  # brightness levels of 255: scale of the cost by which poses are compared
_DAMPING = 1e-4
_CONVERGED = 1e-3  # of a pixel
_REGIONS = 8  # of an image whose errors are independent


@dataclass(frozen=True)
class Prior:
    """A Gaussian on the pose.

    Attributes:
        world_from_cam: (4, 4) mean.
        information: (6, 6) inverse covariance in the tangent at the mean.
    """

    world_from_cam: Float64Array
    information: Float64Array


@dataclass(frozen=True)
class Term:
    """What observations say about a pose: cost, gradient and Gauss-Newton matrix.

    Attributes:
        cost: robust cost in 0..1 on a fixed scale, 0 for a perfect fit; comparable between poses.
        gradient: (6,).
        information: (6, 6).
        used: number of observations.
        noise: their standard deviation.
    """

    cost: float
    gradient: Float64Array
    information: Float64Array
    used: int
    noise: float


def motion_to(world_from_a: Float64Array, world_from_b: Float64Array) -> Float64Array:
    """Tangent vector (6,) at a that leads to b: rotation (rad), translation (scene units)."""
    step = inverse(world_from_a) @ world_from_b
    return np.concatenate([so3_log(step[:3, :3]), step[:3, 3]])


def moved(world_from_cam: Float64Array, motion: Float64Array) -> Float64Array:
    """The pose at a tangent vector (6,)."""
    step = np.eye(4)
    step[:3, :3], step[:3, 3] = so3_exp(motion[:3]), motion[3:]
    return np.asarray(world_from_cam @ step)


def prior_term(prior: Prior, world_from_cam: Float64Array) -> Term:
    """The prior at a pose; its Jacobian is taken as the identity, as motions are small."""
    offset = motion_to(prior.world_from_cam, world_from_cam)
    gradient = prior.information @ offset
    return Term(float(offset @ gradient) / 2, gradient, prior.information, 1, 1.0)


def fused(
    prior: Prior, pose: Float64Array, covariance: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """The mean of a prior and of an estimate near it, weighted by their information.

    Both owe their errors to the same map. So the covariance is that of fully correlated errors, which is
    not below both of them.

    Args:
        prior: on the pose.
        pose: (4, 4) the estimate.
        covariance: (6, 6) of it.

    Returns:
        the pose (4, 4), and its covariance (6, 6).
    """
    information = np.linalg.inv(covariance)
    total = np.linalg.inv(information + prior.information)
    back = prior.information @ motion_to(prior.world_from_cam, pose)
    spread = total @ information @ np.linalg.cholesky(covariance)
    spread += total @ prior.information @ np.linalg.cholesky(np.linalg.inv(prior.information))
    return moved(pose, -total @ back), spread @ spread.T


def robust(residuals: np.ndarray, noise: float) -> np.ndarray:
    """Geman-McClure weights (N,) of residuals (N,)."""
    weights: np.ndarray = (1 + (residuals / (_TUNING * noise)) ** 2) ** -2
    return weights


@dataclass(frozen=True)
class ColorLevel:
    """One pyramid level: points and brightness of a rendering, and the query to find them in.

    Attributes:
        camera: pinhole of this level.
        points: (N, 3) float32 scene points in the axes of the rendered camera.
        values: (N,) float32 their brightness.
        image: (H, W) float32 the query.
        gradient_x: (H, W) float32 its derivative per pixel.
        gradient_y: the same along y.
        mask: (H, W) float32 1 where the query has content.
    """

    camera: Camera
    points: np.ndarray
    values: np.ndarray
    image: np.ndarray
    gradient_x: np.ndarray
    gradient_y: np.ndarray
    mask: np.ndarray

    def term(self, step: Float64Array, redundancy: float, least: int) -> Term | None:
        """The brightness residuals after the camera moved by `step` (4, 4) from the rendered pose.

        A gain and an offset between rendering and query are estimated along and eliminated.
        """
        camera = self.camera
        moved_points = (self.points - step[:3, 3].astype(np.float32)) @ step[:3, :3].astype(
            np.float32
        )
        z = moved_points[:, 2]
        front = z > 1e-6
        inverse_z = 1 / np.where(front, z, 1)
        x, y = moved_points[:, 0] * inverse_z, moved_points[:, 1] * inverse_z
        u, v = camera.fx * x + camera.cx, camera.fy * y + camera.cy
        inside = front & (u >= 1) & (v >= 1) & (u <= camera.width - 2) & (v <= camera.height - 2)
        u, v = u.astype(np.float32)[inside], v.astype(np.float32)[inside]
        if len(u) < least:
            return None
        sampled, gx, gy, seen = (_sample(image, u, v) for image in
                                 (self.image, self.gradient_x, self.gradient_y, self.mask))  # fmt: skip
        whole = seen > 0.99
        if int(whole.sum()) < least:
            return None
        sampled, gx, gy = sampled[whole], gx[whole], gy[whole]
        x, y, iz = (a[inside][whole] for a in (x, y, inverse_z))
        values = self.values[inside][whole]
        gain, offset = _gain(values, sampled)
        residual = sampled - gain * values - offset
        noise = max(_MAD * float(np.median(np.abs(residual))), 1e-3)
        weights = robust(residual, noise)
        a, b = camera.fx * gx, camera.fy * gy
        along = -(a * x + b * y)  # derivative along z times z
        # Columns: rotation by [X']x, translation by -I, then gain and offset.
        jacobian = np.stack(
            [
                b - along * y,
                along * x - a,
                a * y - b * x,
                -a * iz,
                -b * iz,
                -along * iz,
                -values,
                -np.ones_like(values),
            ],
            1,
        )
        weighted = jacobian * weights[:, None]
        matrix = (weighted.T @ jacobian).astype(np.float64)
        vector = (weighted.T @ residual).astype(np.float64)
        scale = 1 / (noise**2 * redundancy)
        # Schur complement over gain and offset.
        nuisance = matrix[6:, 6:] + 1e-9 * np.eye(2)
        elimination = np.linalg.solve(nuisance, matrix[6:, :6]).T
        information = (matrix[:6, :6] - elimination @ matrix[6:, :6]) * scale
        gradient = (vector[:6] - elimination @ vector[6:]) * scale
        cost = float((residual**2 / (residual**2 + _GREY**2)).mean())
        return Term(cost, gradient, information, len(values), noise)


def _sample(image: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear values (N,) of an image at pixels; any N, though OpenCV limits rows to 32,767."""
    width = 4096
    pad = -len(u) % width
    grid_u, grid_v = (np.pad(a, (0, pad)).reshape(-1, width) for a in (u, v))
    values: np.ndarray = cv2.remap(image, grid_u, grid_v, cv2.INTER_LINEAR)
    return values.ravel()[: len(u)]


def _gain(values: np.ndarray, sampled: np.ndarray) -> tuple[float, float]:
    """Robust gain and offset that turn the rendering's brightness into the query's."""
    # From the median difference on, so that a hidden part of the image does not bend the line.
    gain, offset = 1.0, float(np.median(sampled - values))
    for _ in range(3):
        residual = sampled - gain * values - offset
        weights = robust(residual, max(_MAD * float(np.median(np.abs(residual))), 1e-3))
        total = weights.sum() + 1e-9
        mean_v, mean_s = (weights @ values) / total, (weights @ sampled) / total
        spread = weights @ (values - mean_v) ** 2
        gain = float((weights @ ((values - mean_v) * (sampled - mean_s))) / (spread + 1e-9))
        gain = float(np.clip(gain, 0.3, 3.0))
        offset = float(mean_s - gain * mean_v)
    return gain, offset


@dataclass(frozen=True)
class PointMatches:
    """Scene points of a rendering and the pixels of the query they were matched with.

    Attributes:
        camera: pinhole of the pixels.
        points: (N, 3) in the axes of the rendered camera.
        pixels: (N, 2).
        noise: standard deviation, pixels.
    """

    camera: Camera
    points: Float64Array
    pixels: Float64Array
    noise: float

    def term(self, step: Float64Array, redundancy: float, least: int) -> Term | None:
        """The reprojection errors after the camera moved by `step` from the rendered pose."""
        points = (self.points - step[:3, 3]) @ step[:3, :3]
        front = points[:, 2] > 1e-6
        if int(front.sum()) < least:
            return None
        points, pixels = points[front], self.pixels[front]
        camera, z = self.camera, points[:, 2]
        x, y = points[:, 0] / z, points[:, 1] / z
        residual = np.stack([camera.fx * x + camera.cx, camera.fy * y + camera.cy], 1) - pixels
        weights = robust(np.linalg.norm(residual, axis=1), self.noise)
        jacobian = pixel_jacobians(camera, points)
        weighted = jacobian * weights[:, None, None]
        scale = 1 / (self.noise**2 * redundancy)
        information = np.einsum("nij,nik->jk", weighted, jacobian) * scale
        gradient = np.einsum("nij,ni->j", weighted, residual) * scale
        return Term(float((1 - np.sqrt(weights)).mean()), gradient, information, len(z), self.noise)


def pixel_jacobians(camera: Camera, points: Float64Array) -> Float64Array:
    """Derivatives (N, 2, 6) of the pixels of points (N, 3) in camera axes by the pose's tangent."""
    z = points[:, 2]
    zero = np.zeros_like(z)
    projection = np.stack(
        [
            np.stack([camera.fx / z, zero, -camera.fx * points[:, 0] / z**2], 1),
            np.stack([zero, camera.fy / z, -camera.fy * points[:, 1] / z**2], 1),
        ],
        1,
    )
    minus = np.broadcast_to(-np.eye(3), (len(z), 3, 3))
    jacobians: Float64Array = projection @ np.concatenate([skew(points), minus], 2)
    return jacobians


def map_covariance(camera: Camera, points: Float64Array, error_px: float) -> Float64Array:
    """What the map's own error does to a pose, however many pixels are aligned.

    Poses and calibration of the mapping images displace what a field shows by about a pixel, all of a
    neighbourhood alike. A view is taken as `_REGIONS` such neighbourhoods, displaced independently.

    Args:
        camera: of the rendering.
        points: (N, 3) surface points that it shows, in its axes.
        error_px: standard deviation of the displacement along each axis, pixels.

    Returns:
        covariance (6, 6) in the tangent of the pose.
    """
    jacobians = pixel_jacobians(camera, points)
    matrix = np.einsum("nij,nik->jk", jacobians, jacobians) * (_REGIONS / len(points))
    covariance: Float64Array = error_px**2 * np.linalg.inv(matrix + 1e-9 * np.eye(6))
    return covariance


def gauss_newton(
    world_from_render: Float64Array,
    world_from_cam: Float64Array,
    sources: Sequence[ColorLevel | PointMatches],
    redundancies: Sequence[float],
    prior: Prior | None,
    steps: int,
    least: int,
) -> tuple[Float64Array, Float64Array, Term | None]:
    """Improve a pose.

    Args:
        world_from_render: where the rendering was made.
        world_from_cam: where to start.
        sources: observations.
        redundancies: of each source, see `RefineConfig`.
        prior: on the pose, or None.
        steps: at most so many.
        least: observations a source needs.

    Returns:
        the pose, the information (6, 6) at it, and the first source's last term (None where too few
        observations were left; then the pose is the best one before).
    """
    pose, shown = world_from_cam, None
    information = np.zeros((6, 6))
    focal = sources[0].camera.fx
    for _ in range(steps):
        offset = inverse(world_from_render) @ pose
        terms = [s.term(offset, r, least) for s, r in zip(sources, redundancies, strict=True)]
        found = [term for term in terms if term is not None]
        if not found:
            return pose, information, None
        shown = terms[0]
        if prior is not None:
            found.append(prior_term(prior, pose))
        information = sum((t.information for t in found), np.zeros((6, 6)))
        gradient = sum((t.gradient for t in found), np.zeros(6))
        damped = information + _DAMPING * np.diag(np.diag(information)) + 1e-12 * np.eye(6)
        motion = -np.linalg.solve(damped, gradient)
        # No step may turn the camera or move it by more than the linearisation holds for.
        motion *= min(1.0, 0.2 / max(float(np.abs(motion[:3]).max()), 1e-12))
        pose = moved(pose, motion)
        if float(np.abs(motion[:3]).max()) * focal < _CONVERGED:
            break
    return pose, information, shown
