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

from reloc_core.geometry import pose_minus, pose_plus
from reloc_core.solvers.absolute import PoseEstimate
from reloc_core.solvers.camera_fit import (
    FEWEST,
    LONGEST,
    WRONG,
    Joint,
    Points,
    agreeing,
    changed,
    fit,
    joint_of,
    noise_of,
    points_of,
)
from reloc_core.types import Camera, Correspondences, Float64Array

_WAYS = {
    (): 0.95, (0,): 0.03, (1, 2): 0.004, (3, 4): 0.004, (5,): 0.004, (0, 3, 4): 0.004, (0, 5): 0.002,
    (0, 1, 2, 3, 4, 5): 0.002,
}  # fmt: skip
"""Share of images of which nothing is wrong, or the focal length, a stretch or skew of the pixels, the
principal point, the lens, several of them: a crop that was enlarged has another focal length and centre.
Where the focal length of sparse evidence is known to be wrong, something else is as often as not."""
_USUAL = np.array([0.003, 0.008, 0.02, 0.01, 0.01, 0.02])
"""Standard deviations, in the units of `WRONG`, of what is right: calibrations differ by so much from day
to day, and a rolling shutter shears the images of a camera in motion."""
_GUESSED = np.array([1e-4, 0.003, 0.003, 0.02, 0.02, 0.05])
"""The same beside the focal length, which the solver knew to be uncertain, of a camera that is a guess."""
_GUESS = 0.1  # standard deviation of the focal length, over it, from which on a camera is one
_SMOOTH = np.array([3.0, 1.0, 1.0, 5.0, 5.0, 10.0])
"""What smooth errors of dense coordinates pass for, over the noise of the residuals: a network errs as a
lens or another principal point would let it, by about as much as it errs from point to point. Of a shift of
the centre a pose leaves the part that grows with the squared distance from it, of a lens with the cube."""
_FOCAL_DENSE = 0.2
"""Share of images of a wrong focal length where such errors hide it."""
_WITNESSES = 100.0
"""Independent points that the evidence is worth at most: maps err smoothly, too."""
_ANOTHER = (
    0.05  # change of the focal length's logarithm that says that the image is not as it was taken
)
_MOST = 600  # points
_EXPLAINED = (
    0.6  # share of the evidence, beyond which little is left that another camera could explain
)
_WORTH = 0.25  # odds that the camera is wrong at a first look, over those before it, that are worth a fit
_CORRECTED = 1e-4  # probability that a camera is right, below which another one takes its place
_FINER = 0.75  # of the residuals, which another camera has to bring
_SIGMAS = 3.0  # of the focal length, beyond which it is another one


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
    if not estimate.success or estimate.num_inliers < FEWEST or camera.is_fisheye:
        return estimate
    pose, none = estimate.world_from_cam, np.zeros(6)
    step = math.ceil(len(evidence.points2d) / _MOST)
    points, good = points_of(evidence, camera, pose, ray, step)
    inlying = points.of(estimate.inliers[::step][good])
    if len(inlying.world) < FEWEST:
        return estimate
    noise = noise_of(inlying, pose, none, math.inf)
    dense = evidence.kind == "dense"
    trust = max(1.0, evidence.redundancy / step) + len(points.world) / _WITNESSES
    by = abs(math.log(camera.fx / given.fx))
    altered = by > max(_ANOTHER, _SIGMAS * given.focal_sigma)
    first = joint_of(points, pose, none, noise, trust)
    if first is None:
        return estimate
    if given.focal_sigma >= _GUESS:
        spread = np.linalg.inv(first.information + np.diag(_GUESSED**-2))
        likely = spread @ (first.information + np.diag(WRONG**-2)) @ first.step[6:]
        unknown = first.moves @ (spread + np.outer(likely, likely)) @ first.moves.T
        estimate = _widened(estimate, estimate.covariance + unknown)
    # A pose for a wrong camera sheds what contradicts it: its inliers alone may look well.
    explained = dense or estimate.num_inliers > _EXPLAINED * len(evidence.points2d)
    if explained:
        # The noise of dense coordinates is not known before the camera is free.
        look = _stepped(points, first, trust) if dense else first
        prior = _Prior.of(dense, altered, first.noise if look is None else look.noise)
        if look is not None and _weighed(look, prior).odds < _WORTH * prior.odds:
            return estimate
    fitted = fit(points, first, trust)
    if fitted is None:
        return estimate
    prior = _Prior.of(dense, altered, fitted.noise)
    weighed = _weighed(fitted, prior)
    if weighed.odds <= prior.odds and not altered:
        # Nothing speaks against the camera, as over a flat scene, where nothing can.
        return estimate
    sure = not dense and fitted.noise < _FINER * first.noise
    return _concluded(estimate, evidence, camera, fitted, weighed, ray, sure)


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
    def of(cls, dense: bool, altered: bool, noise: float) -> _Prior:
        """For dense or sparse evidence, and for images that are known not to be as they were taken.

        `noise` is that of residuals by the camera that fits best, in focal lengths.
        """
        usual = np.hypot(_USUAL, noise * _SMOOTH) if dense else _USUAL
        chances = np.array(list(_WAYS.values()))
        if dense:
            chances[1] = _FOCAL_DENSE
        elif altered:
            chances[1:] *= chances[0] / chances[1:].sum()
        rows = [[WRONG[i] if i in way else usual[i] for i in range(6)] for way in _WAYS]
        return cls(
            chances / chances.sum(), np.array([np.diag(np.array(row) ** -2) for row in rows])
        )


def _stepped(points: Points, joint: Joint, trust: float) -> Joint | None:
    """One step towards the minimum, and the noise there."""
    step = joint.step / max(1.0, float(np.abs(joint.step[6:]).max()) / LONGEST)
    pose, wrong = pose_plus(joint.pose, step[:6]), joint.wrong + step[6:]
    noise = min(joint.noise, noise_of(points, pose, wrong, 3 * joint.noise))
    return joint_of(points, pose, wrong, noise, trust)


def _weighed(joint: Joint, prior: _Prior) -> _Weighed:
    likeliest = joint.wrong + joint.step[6:]
    pull = (joint.information + np.diag(WRONG**-2)) @ likeliest
    spreads = np.linalg.inv(joint.information + prior.precisions)
    means = spreads @ pull
    fits = np.linalg.slogdet(spreads)[1] + np.linalg.slogdet(prior.precisions)[1] + means @ pull
    odds = np.exp((fits - fits.max()) / 2) * prior.chances
    right, share = float(odds[0] / odds.sum()), odds[1:] / max(float(odds[1:].sum()), 1e-300)
    wrong = share @ means[1:]
    apart = means[1:] - wrong
    spread = np.einsum("w,wij->ij", share, spreads[1:]) + (apart.T * share) @ apart
    return _Weighed(right, wrong, spread)


def _widened(estimate: PoseEstimate, covariance: Float64Array) -> PoseEstimate:
    """An estimate with the covariance of what its camera lets it be, and by how much that is more."""
    try:
        root = np.linalg.cholesky(estimate.covariance)
        whitened = np.linalg.solve(root, np.linalg.solve(root, covariance).T)
        grown = math.log(max(float(np.linalg.eigvalsh(whitened)[-1]), 1.0))
    except np.linalg.LinAlgError:
        grown = 0.0
    return replace(estimate, covariance=covariance, camera_doubt=estimate.camera_doubt + grown)


def _concluded(
    estimate: PoseEstimate,
    evidence: Correspondences,
    camera: Camera,
    fitted: Joint,
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
        return _widened(estimate, mixed)
    inliers = agreeing(evidence, camera, replace(fitted, pose=pose, wrong=weighed.wrong), ray)
    return replace(
        estimate,
        world_from_cam=pose,
        covariance=(1 - right) * covariance + right * (estimate.covariance + gap),
        camera=changed(camera, weighed.wrong),
        focal_std=camera.fx * math.sqrt(float(weighed.spread[0, 0])),
        inliers=inliers,
        num_inliers=int(inliers.sum()),
        camera_doubt=0.0,
    )
