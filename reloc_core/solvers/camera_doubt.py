"""Whether the evidence agrees with the camera that came with an image, and what follows if not.

An image that was cropped, stretched or sheared, or whose lens was not told, still has a pose that explains
most of it, and its residuals are small: the pose makes up for the camera, and is off by far more than it
claims. It shows in how the residuals are structured. So pose and camera are fitted together, and every way
in which a camera may be wrong is weighed against its being right (Bayesian model averaging, Hoeting et al.,
Statistical Science 1999, each model by Laplace's approximation at the joint fit).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from reloc_core.geometry import inverse, pose_minus, pose_plus, transform, unproject
from reloc_core.solvers.absolute import PoseEstimate
from reloc_core.types import CAMERA_MODELS, BoolArray, Camera, Correspondences, Float64Array

_WAYS = {
    (): 0.95, (0,): 0.03, (1, 2): 0.004, (3, 4): 0.004, (5,): 0.004, (0, 3, 4): 0.004, (0, 5): 0.002,
    (0, 1, 2, 3, 4, 5): 0.002,
}  # fmt: skip
"""Share of images of which nothing is wrong, or the focal length, a stretch or skew of the pixels, the
principal point, the lens, several of them: a crop that was enlarged has another focal length and centre.
Where the focal length of sparse evidence is known to be wrong, something else is as often as not."""
_WRONG = np.array([0.2, 0.1, 0.1, 0.1, 0.1, 0.2])
"""Standard deviations of what is wrong, in the units of `_bent`."""
_USUAL = np.array([0.003, 0.008, 0.02, 0.01, 0.01, 0.02])
"""The same of what is right: calibrations differ by so much from day to day, and a rolling shutter shears
the images of a camera in motion."""
_GUESSED = np.array([1e-4, 0.003, 0.003, 0.02, 0.02, 0.05])
"""The same beside the focal length, which the solver knew to be uncertain, of a camera that is a guess."""
_GUESS = 0.1  # standard deviation of the focal length, over it, from which on a camera is one
_USUAL_DENSE = np.array([0.003, 0.008, 0.02, 0.1, 0.1, 0.1])
"""The same for scene coordinates of a network, which errs smoothly over the image, as a lens or another
principal point would let it."""
_FOCAL_DENSE = 0.2
"""Share of images of a wrong focal length where such errors hide it."""
_WITNESSES = 100.0
"""Independent points that the evidence is worth at most: maps err smoothly, too."""
_ANOTHER = (
    0.05  # change of the focal length's logarithm that says that the image is not as it was taken
)
_MOST = 600  # points
_FEWEST = 12
_STEPS = 12
_TOLERANCE, _UNSETTLED = 0.05, 2.0  # of what remains, over its covariance
_CELL = 0.12  # focal lengths, within which residuals may be correlated
_EXPLAINED = (
    0.6  # share of the evidence, beyond which little is left that another camera could explain
)
_WORTH = 0.25  # odds that the camera is wrong at a first look, over those before it, that are worth a fit
_CORRECTED = 1e-4  # probability that a camera is right, below which another one takes its place
_FINER = 0.75  # of the residuals, which another camera has to bring
_TUNING = 3.0  # standard deviations at which a residual has a quarter of its weight
_FARTHEST = 1.0  # of what is wrong
_INLIER = 3.0  # standard deviations
_FAR = 1e4  # noise variances, from which on a residual says nothing
_BEHIND = (1e3, 1e3, 1.0)  # where points behind the camera are put: far off the image
_SIGMAS = 3.0  # of the focal length, beyond which it is another one
_MEDIAN = 1.386  # of the squared length of two standard normal numbers
_FINEST = 2e-4  # focal lengths; no residuals are smaller
_LONGEST = 0.2  # step of what is wrong
_STRAIGHT, _SQUARE = 0.005, 0.001  # a lens and a stretch that are not worth another model


@dataclass(frozen=True)
class _Points:
    """Scene points (N, 3), where they were seen (N, 2) in focal lengths, relative noise and weight (N,)."""

    world: Float64Array
    seen: Float64Array
    noise: Float64Array
    weight: Float64Array

    def of(self, which: BoolArray | slice) -> _Points:
        """Some of them."""
        return _Points(*(a[which] for a in (self.world, self.seen, self.noise, self.weight)))


@dataclass(frozen=True)
class _Joint:
    """Pose and camera after, or before, a fit.

    Attributes:
        pose: (4, 4) world_from_cam.
        wrong: (6,) by what the camera differs; see `_bent`.
        step: (12,) of pose and camera to the minimum, to first order.
        moves: (6, 6) how the pose moves with the camera.
        information: (6, 6) of the camera if the pose is free.
        noise: standard deviation of residuals, in units of `_Points.noise`.
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


def with_camera_doubt(
    estimate: PoseEstimate, evidence: Correspondences, camera: Camera, ray: bool
) -> PoseEstimate:
    """An estimate that takes into account that its camera may be wrong.

    Args:
        estimate: of the evidence.
        evidence: 2D-3D correspondences.
        camera: that came with the image.
        ray: whether noise is that of the points, in units of the scene, instead of that of pixels.

    Returns:
        `estimate` itself where the evidence does not speak against the camera; the same pose with a
        covariance that takes in what does; or, where the camera is surely wrong, the evidence is sparse
        and its residuals become far smaller, the pose and the camera that fit. Dense coordinates err like
        cameras do, far from the mapped views most of all: which of the two it is, they do not tell.
    """
    given, camera = camera, estimate.camera or camera
    if not estimate.success or estimate.num_inliers < _FEWEST or camera.is_fisheye:
        return estimate
    pose, none = estimate.world_from_cam, np.zeros(6)
    step = math.ceil(len(evidence.points2d) / _MOST)
    points, good = _points(evidence, camera, pose, ray, step)
    agreeing = points.of(estimate.inliers[::step][good])
    if len(agreeing.world) < _FEWEST:
        return estimate
    noise = _noise(agreeing, pose, none, math.inf)
    dense = evidence.kind == "dense"
    trust = max(1.0, evidence.redundancy / step) + len(points.world) / _WITNESSES
    changed = abs(math.log(camera.fx / given.fx))
    altered = changed > max(_ANOTHER, _SIGMAS * given.focal_sigma)
    prior = _Prior.of(dense, altered)
    first = _joint(points, pose, none, noise, trust)
    if first is None:
        return estimate
    if given.focal_sigma >= _GUESS:
        spread = np.linalg.inv(first.information + np.diag(_GUESSED**-2))
        likely = spread @ (first.information + np.diag(_WRONG**-2)) @ first.step[6:]
        unknown = first.moves @ (spread + np.outer(likely, likely)) @ first.moves.T
        estimate = replace(estimate, covariance=estimate.covariance + unknown)
    # A pose for a wrong camera sheds what contradicts it: its inliers alone may look well.
    explained = dense or estimate.num_inliers > _EXPLAINED * len(evidence.points2d)
    if explained and _weighed(first, prior).odds < _WORTH * prior.odds:
        return estimate
    fitted = _fit(points, first, trust)
    if fitted is None:
        return estimate
    weighed = _weighed(fitted, prior)
    if weighed.odds <= prior.odds and not altered:
        # Nothing speaks against the camera, as over a flat scene, where nothing can.
        return estimate
    sure = not dense and fitted.noise < _FINER * first.noise
    return _concluded(estimate, evidence, camera, fitted, weighed, ray, sure)


def _points(
    evidence: Correspondences, camera: Camera, pose: Float64Array, ray: bool, step: int = 1
) -> tuple[_Points, BoolArray]:
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
    points = _Points(world[good], seen[good], noise[good] / np.median(noise[good]), weight[good])
    return points, good


def _bent(ideal: Float64Array, wrong: Float64Array) -> Float64Array:
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


def _residuals(
    points: _Points, pose: Float64Array, wrong: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Residuals (N, 2) over the relative noise, and the points in the camera's frame."""
    local = transform(inverse(pose), points.world)
    local[local[:, 2] <= 0] = _BEHIND
    error = (_bent(local[:, :2] / local[:, 2:], wrong) - points.seen) / points.noise[:, None]
    return error, local


def _scores(
    points: _Points, pose: Float64Array, wrong: Float64Array, noise: float
) -> tuple[Float64Array, Float64Array, Float64Array, float]:
    """What the normal equations are made of.

    Returns:
        derivatives (12, 2 N) of the residuals by pose and camera, residuals (2 N,), first all of x, then of
        y, Geman-McClure weights (N,), and the variance of a residual.
    """
    error, local = _residuals(points, pose, wrong)
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


def _joint(
    points: _Points, pose: Float64Array, wrong: Float64Array, noise: float, trust: float
) -> _Joint | None:
    """Normal equations of pose and camera; None where they are singular.

    Args:
        points: seen.
        pose: (4, 4) world_from_cam.
        wrong: (6,) by what the camera differs.
        noise: standard deviation of residuals, as far as it is known.
        trust: how many points are worth an independent one.
    """
    rows, error, weight, variance = _scores(points, pose, wrong, noise)
    weighted = rows * np.tile(weight / (variance * trust), 2)
    hessian, gradient = weighted @ rows.T, weighted @ error
    prior = np.concatenate([np.zeros(6), _WRONG**-2])
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
    return _Joint(pose, wrong, step, moves, information, noise)


def _design_effect(points: _Points, joint: _Joint) -> float:
    """By how much residuals that neighbours share inflate the variance of pose and camera; at least 1.

    The sums of scores over blocks of the image, against what they are under independence; what neighbouring
    blocks share is missing in proportion to their circumference, so it halves from one size to the next.
    """
    rows, error, weight, variance = _scores(points, joint.pose, joint.wrong, joint.noise)
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


def _noise(points: _Points, pose: Float64Array, wrong: Float64Array, within: float) -> float:
    """Standard deviation of the residuals that are not larger than `within`, by their median."""
    squares = np.square(_residuals(points, pose, wrong)[0]).sum(1)
    close = squares <= within**2
    if close.sum() < _FEWEST:
        return within
    return max(math.sqrt(float(np.median(squares[close])) / _MEDIAN), _FINEST)


def _fit(points: _Points, start: _Joint, trust: float) -> _Joint | None:
    """Pose and camera that fit best; None where no camera does."""
    now, noise = start, start.noise
    for _ in range(_STEPS):
        step = now.step / max(1.0, float(np.abs(now.step[6:]).max()) / _LONGEST)
        pose, wrong = pose_plus(now.pose, step[:6]), now.wrong + step[6:]
        if float(np.abs(wrong).max()) > _FARTHEST:
            return None
        noise = _noise(points, pose, wrong, _TUNING * noise)
        after = _joint(points, pose, wrong, noise, trust)
        if after is None:
            return None
        now = after
        if now.remaining < _TOLERANCE:
            break
    if now.remaining > _UNSETTLED:
        return None
    return _joint(points, now.pose, now.wrong, now.noise, trust * _design_effect(points, now))


@dataclass(frozen=True)
class _Weighed:
    """The camera when all ways in which it may be wrong are weighed.

    Attributes:
        right: probability that it is the given one.
        wrong: (6,) by what it differs if it is not.
        spread: (6, 6) covariance of that.
    """

    right: float
    wrong: Float64Array
    spread: Float64Array

    @property
    def odds(self) -> float:
        """Of a wrong camera."""
        return (1 - self.right) / max(self.right, 1e-300)


@dataclass(frozen=True)
class _Prior:
    """What cameras are like.

    Attributes:
        chances: (W,) of the ways in which one may be wrong; the first: not at all.
        precisions: (W, 6, 6) of what is wrong.
    """

    chances: Float64Array
    precisions: Float64Array

    @property
    def odds(self) -> float:
        """Of a wrong camera."""
        return float((1 - self.chances[0]) / self.chances[0])

    @classmethod
    def of(cls, dense: bool, altered: bool) -> _Prior:
        """For dense or sparse evidence, and for images that are known not to be as they were taken."""
        usual = _USUAL_DENSE if dense else _USUAL
        chances = np.array(list(_WAYS.values()))
        if dense:
            chances[1] = _FOCAL_DENSE
        elif altered:
            chances[1:] *= chances[0] / chances[1:].sum()
        rows = [[_WRONG[i] if i in way else usual[i] for i in range(6)] for way in _WAYS]
        return cls(
            chances / chances.sum(), np.array([np.diag(np.array(row) ** -2) for row in rows])
        )


def _weighed(joint: _Joint, prior: _Prior) -> _Weighed:
    likeliest = joint.wrong + joint.step[6:]
    pull = (joint.information + np.diag(_WRONG**-2)) @ likeliest
    spreads = np.linalg.inv(joint.information + prior.precisions)
    means = spreads @ pull
    fits = np.linalg.slogdet(spreads)[1] + np.linalg.slogdet(prior.precisions)[1] + means @ pull
    odds = np.exp((fits - fits.max()) / 2) * prior.chances
    right, share = float(odds[0] / odds.sum()), odds[1:] / max(float(odds[1:].sum()), 1e-300)
    wrong = share @ means[1:]
    apart = means[1:] - wrong
    spread = np.einsum("w,wij->ij", share, spreads[1:]) + (apart.T * share) @ apart
    return _Weighed(right, wrong, spread)


def _concluded(
    estimate: PoseEstimate,
    evidence: Correspondences,
    camera: Camera,
    fitted: _Joint,
    weighed: _Weighed,
    ray: bool,
    sure: bool,
) -> PoseEstimate:
    """What remains of an estimate when its camera is weighed; `sure`: another one may take its place."""
    right, moves = weighed.right, fitted.moves
    pose = pose_plus(fitted.pose, moves @ (weighed.wrong - fitted.wrong))
    # The solver's own covariance knows what else its errors share.
    covariance = estimate.covariance + moves @ weighed.spread @ moves.T
    between = pose_minus(estimate.world_from_cam, pose)
    gap = np.outer(between, between)
    if right > _CORRECTED or not sure:
        mixed = right * estimate.covariance + (1 - right) * (covariance + gap)
        return replace(estimate, covariance=mixed)
    inliers = _agreeing(evidence, camera, replace(fitted, pose=pose, wrong=weighed.wrong), ray)
    return replace(
        estimate,
        world_from_cam=pose,
        covariance=(1 - right) * covariance + right * (estimate.covariance + gap),
        camera=_changed(camera, weighed.wrong),
        focal_std=camera.fx * math.sqrt(float(weighed.spread[0, 0])),
        inliers=inliers,
        num_inliers=int(inliers.sum()),
    )


def _changed(camera: Camera, wrong: Float64Array) -> Camera:
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


def _agreeing(evidence: Correspondences, camera: Camera, fitted: _Joint, ray: bool) -> BoolArray:
    """(N,) what of the evidence agrees with a pose and a camera."""
    points, good = _points(evidence, camera, fitted.pose, ray)
    squares = np.square(_residuals(points, fitted.pose, fitted.wrong)[0]).sum(1)
    inliers = np.zeros(len(good), bool)
    inliers[good] = squares <= (_INLIER * fitted.noise) ** 2
    return inliers
