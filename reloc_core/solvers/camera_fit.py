"""Pose and camera fitted together: what of a camera's error the pose makes up for, and what is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from reloc_core.geometry import inverse, pose_plus, transform, unproject
from reloc_core.types import CAMERA_MODELS, BoolArray, Camera, Correspondences, Float64Array

WRONG = np.array([0.2, 0.1, 0.1, 0.1, 0.1, 0.2])
"""Standard deviations of what is wrong, in the units of `bent`."""
FEWEST = 12  # points that a pose and a camera are fitted to
_STEPS = 12
_TOLERANCE, _UNSETTLED = 0.05, 2.0  # of what remains, over its covariance
_CELL = 0.12  # focal lengths, within which residuals may be correlated
_TUNING = 3.0  # standard deviations at which a residual has a quarter of its weight
_FARTHEST = 1.0  # of what is wrong
_INLIER = 3.0  # standard deviations
_FAR = 1e4  # noise variances, from which on a residual says nothing
_BEHIND = (1e3, 1e3, 1.0)  # where points behind the camera are put: far off the image
_MEDIAN = 1.386  # of the squared length of two standard normal numbers
_FINEST = 2e-4  # focal lengths; no residuals are smaller
LONGEST = 0.2  # step of what is wrong
_STRAIGHT, _SQUARE = 0.005, 0.001  # a lens and a stretch that are not worth another model


@dataclass(frozen=True)
class Points:
    """Scene points (N, 3), where they were seen (N, 2) in focal lengths, relative noise and weight (N,)."""

    world: Float64Array
    seen: Float64Array
    noise: Float64Array
    weight: Float64Array

    def of(self, which: BoolArray | slice) -> Points:
        """Some of them."""
        return Points(*(a[which] for a in (self.world, self.seen, self.noise, self.weight)))


@dataclass(frozen=True)
class Joint:
    """Pose and camera after, or before, a fit.

    Attributes:
        pose: (4, 4) world_from_cam.
        wrong: (6,) by what the camera differs; see `bent`.
        step: (12,) of pose and camera to the minimum, to first order.
        moves: (6, 6) how the pose moves with the camera.
        information: (6, 6) of the camera if the pose is free.
        noise: standard deviation of residuals, in units of `Points.noise`.
    """

    pose: Float64Array
    wrong: Float64Array
    step: Float64Array
    moves: Float64Array
    information: Float64Array
    noise: float

    @property
    def remaining(self) -> float:
        """Squared step of the camera to the minimum, over its covariance."""
        step = self.step[6:]
        return float(step @ self.information @ step)


def points_of(
    evidence: Correspondences, camera: Camera, pose: Float64Array, ray: bool, step: int = 1
) -> tuple[Points, BoolArray]:
    """What can be fitted of every `step`-th correspondence, and which of these that is."""
    world = np.asarray(evidence.points3d[::step], np.float64)
    seen = unproject(camera, evidence.points2d[::step])[:, :2]
    depth = transform(inverse(pose), world)[:, 2]
    noise = np.ones(len(world))
    if evidence.variances is not None:
        noise = np.sqrt(np.asarray(evidence.variances[::step], np.float64))
    if ray or evidence.variances is not None:
        noise = noise / np.maximum(depth, 1e-6)
    weight = np.ones(len(world))
    if evidence.weights is not None:
        weight = np.asarray(evidence.weights[::step], np.float64)
    good = np.isfinite(world).all(1) & np.isfinite(seen).all(1) & (depth > 0)
    good &= np.isfinite(noise) & (noise > 0) & (weight > 0)
    points = Points(world[good], seen[good], noise[good] / np.median(noise[good]), weight[good])
    return points, good


def bent(ideal: Float64Array, wrong: Float64Array) -> Float64Array:
    """Where points (N, 2) of the given camera's image plane are seen if the camera is wrong.

    Args:
        ideal: in focal lengths from the principal point.
        wrong: (6,) logarithm of the focal length, stretch along x over y, skew, shift
            of the principal point in focal lengths (2), coefficient of the radius squared.
    """
    lens = 1 + wrong[5] * np.square(ideal).sum(1, keepdims=True)
    return np.asarray((ideal * lens + wrong[3:5]) @ _stretch(wrong).T)


def _stretch(wrong: Float64Array) -> Float64Array:
    focal, along, across = wrong[:3]
    return math.exp(focal) * np.array([[1 + along, across], [0, 1 - along]])


def residuals(
    points: Points, pose: Float64Array, wrong: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Residuals (N, 2) over the relative noise, and the points in the camera's frame."""
    local = transform(inverse(pose), points.world)
    local[local[:, 2] <= 0] = _BEHIND
    error = (bent(local[:, :2] / local[:, 2:], wrong) - points.seen) / points.noise[:, None]
    return error, local


def scores(
    points: Points, pose: Float64Array, wrong: Float64Array, noise: float
) -> tuple[Float64Array, Float64Array, Float64Array, float]:
    """What the normal equations are made of.

    Returns:
        derivatives (12, 2 N) of the residuals by pose and camera, residuals (2 N,), first all of x, then of
        y, Geman-McClure weights (N,), and the variance of a residual.
    """
    error, local = residuals(points, pose, wrong)
    lengths = np.square(error).sum(1)
    weight = points.weight / np.square(1 + lengths / (_TUNING * noise) ** 2)
    weight[lengths > _FAR * noise**2] = 0
    variance = float((weight**2 * lengths).sum() / (2 * weight.sum() + 1e-300)) + 1e-300
    x, y, z = local[:, 0] / local[:, 2], local[:, 1] / local[:, 2], local[:, 2]
    k, r2 = wrong[5], x * x + y * y
    lens, mixed, near = 1 + k * r2, 2 * k * x * y, 1 / z
    u, v = x * lens + wrong[3], y * lens + wrong[4]
    (a, b), (_, d) = _stretch(wrong)
    focal = math.exp(wrong[0])
    # Of the image point without any stretch, by the direction that the point is seen in.
    xx, yy = lens + 2 * k * x * x, lens + 2 * k * y * y
    along, across = np.zeros((12, len(x))), np.zeros((12, len(x)))
    for rows, by_x, by_y in (
        (along, a * xx + b * mixed, a * mixed + b * yy),
        (across, d * mixed, d * yy),
    ):
        rows[0] = by_x * (x * y) + by_y * (1 + y * y)
        rows[1] = -by_x * (1 + x * x) - by_y * (x * y)
        rows[2] = by_x * y - by_y * x
        rows[3], rows[4], rows[5] = -by_x * near, -by_y * near, (by_x * x + by_y * y) * near
    along[6], along[7], along[8] = a * u + b * v, focal * u, focal * v
    across[6], across[7] = d * v, -focal * v
    along[9], along[10], across[10] = a, b, d
    along[11], across[11] = (a * x + b * y) * r2, d * y * r2
    rows = np.concatenate([along, across], axis=1) / np.tile(points.noise, 2)
    return rows, error.T.ravel(), weight, variance


def joint_of(
    points: Points, pose: Float64Array, wrong: Float64Array, noise: float, trust: float
) -> Joint | None:
    """Normal equations of pose and camera; None where they are singular.

    Args:
        points: seen.
        pose: (4, 4) world_from_cam.
        wrong: (6,) by what the camera differs.
        noise: standard deviation of residuals, as far as it is known.
        trust: how many points are worth an independent one.
    """
    rows, error, weight, variance = scores(points, pose, wrong, noise)
    weighted = rows * np.tile(weight / (variance * trust), 2)
    hessian, gradient = weighted @ rows.T, weighted @ error
    prior = np.concatenate([np.zeros(6), WRONG**-2])
    pull = prior * np.concatenate([np.zeros(6), wrong])
    try:
        step = -np.linalg.solve(hessian + np.diag(prior), gradient + pull)
        moves = -np.linalg.solve(hessian[:6, :6], hessian[:6, 6:])
    except np.linalg.LinAlgError:
        return None
    information = hessian[6:, 6:] + hessian[6:, :6] @ moves
    if not (np.isfinite(step).all() and np.isfinite(information).all()):
        return None
    # Of little evidence rounding leaves directions of negative information.
    values, vectors = np.linalg.eigh((information + information.T) / 2)
    information = (vectors * np.maximum(values, 0)) @ vectors.T
    return Joint(pose, wrong, step, moves, information, noise)


def _design_effect(points: Points, joint: Joint) -> float:
    """By how much residuals that neighbours share inflate the variance of pose and camera; at least 1.

    The sums of scores over blocks of the image, against what they are under independence; what neighbouring
    blocks share is missing in proportion to their circumference, so it halves from one size to the next.
    """
    rows, error, weight, variance = scores(points, joint.pose, joint.wrong, joint.noise)
    weighted = rows * np.tile(weight, 2)
    score = (weighted * error).reshape(12, 2, -1).sum(1)
    inverse = np.linalg.pinv(weighted @ rows.T * variance)
    ratios, worst, correlated = [], 1.0, False
    for size in (_CELL, 2 * _CELL):
        cell = np.floor(points.seen / size).astype(np.int64)
        _, block = np.unique(cell[:, 0] * 100_003 + cell[:, 1], return_inverse=True)
        sums = np.array([np.bincount(block, column) for column in score])
        blocks = sums.shape[1]
        quad = float(np.einsum("ib,ij,jb->", sums, inverse, sums)) / 12
        # All sums together are zero; under independence the ratio scatters.
        ratio, scatter = quad * blocks / max(blocks - 1, 1), math.sqrt(2 / (12 * blocks))
        ratios.append(ratio)
        worst, correlated = max(worst, ratio - scatter), correlated or ratio - 1 > 2 * scatter
    return max(*ratios, 2 * ratios[1] - ratios[0]) if correlated else worst


def noise_of(points: Points, pose: Float64Array, wrong: Float64Array, within: float) -> float:
    """Standard deviation of the residuals that are not larger than `within`, by their median."""
    squares = np.square(residuals(points, pose, wrong)[0]).sum(1)
    close = squares <= within**2
    if close.sum() < FEWEST:
        return within
    return max(math.sqrt(float(np.median(squares[close])) / _MEDIAN), _FINEST)


def fit(points: Points, start: Joint, trust: float) -> Joint | None:
    """Pose and camera that fit best; None where no camera does."""
    now, noise = start, start.noise
    for _ in range(_STEPS):
        step = now.step / max(1.0, float(np.abs(now.step[6:]).max()) / LONGEST)
        pose, wrong = pose_plus(now.pose, step[:6]), now.wrong + step[6:]
        if float(np.abs(wrong).max()) > _FARTHEST:
            return None
        noise = noise_of(points, pose, wrong, _TUNING * noise)
        after = joint_of(points, pose, wrong, noise, trust)
        if after is None:
            return None
        now = after
        if now.remaining < _TOLERANCE:
            break
    if now.remaining > _UNSETTLED:
        return None
    return joint_of(points, now.pose, now.wrong, now.noise, trust * _design_effect(points, now))


def changed(camera: Camera, wrong: Float64Array) -> Camera:
    """A camera that differs so; without what no camera has, a skew."""
    bent = _stretch(wrong)
    fx, fy = camera.fx * bent[0, 0], camera.fy * bent[1, 1]
    cx, cy = [camera.cx, camera.cy] + bent @ wrong[3:5] * [camera.fx, camera.fy]
    model, distortion = camera.model, list(camera.distortion)
    if not distortion and abs(wrong[5]) > _STRAIGHT:
        model, distortion = "OPENCV", [0.0] * 4
    if distortion:
        distortion[0] += wrong[5]
    if CAMERA_MODELS[model][0] == "fx":
        return replace(camera, model=model, params=(fx, fy, cx, cy, *distortion))
    if abs(wrong[1]) > _SQUARE:
        # No model of one focal length bends the image.
        distortion = [*distortion, 0.0, 0.0, 0.0][:4] if distortion else []
        if len(camera.distortion) == 1:
            distortion = [distortion[0], 0.0, 0.0, 0.0]
        model = "OPENCV" if distortion else "PINHOLE"
        return replace(camera, model=model, params=(fx, fy, cx, cy, *distortion))
    return replace(camera, params=(math.sqrt(fx * fy), cx, cy, *distortion))


def agreeing(evidence: Correspondences, camera: Camera, fitted: Joint, ray: bool) -> BoolArray:
    """(N,) what of the evidence agrees with a pose and a camera."""
    points, good = points_of(evidence, camera, fitted.pose, ray)
    squares = np.square(residuals(points, fitted.pose, fitted.wrong)[0]).sum(1)
    inliers = np.zeros(len(good), bool)
    inliers[good] = squares <= (_INLIER * fitted.noise) ** 2
    return inliers
