"""What speaks for a pose, as numbers of which larger is better."""

from __future__ import annotations

import math

import numpy as np

from reloc_core.geometry import inverse, transform
from reloc_core.types import (
    Camera,
    Correspondences,
    Evidence,
    Float64Array,
    FloatArray,
    Localization,
)

_CELLS = 8  # of the image's longer side, for the share of it that inliers cover
_OF_BOTH = ("alone", "camera")  # that solvers and estimators tell
_AGREES_PX = 4.0  # what a random correspondence must meet, over 640 pixels of image


def support(evidence: Evidence, solved: Localization, camera: Camera) -> dict[str, float]:
    """Describe how well the evidence carries the pose that a solver found in it.

    Args:
        evidence: what the solver was given.
        solved: the solver's result, with a pose.
        camera: of the query.

    Returns:
        `inliers`: log of the number of different things that agree: scene points in different places of
        the image, or reference images;
        `ratio`: log odds of the share of the evidence that agrees;
        `distinct`: log odds of the share of sparse evidence with a scene point of its own: the repeated
            parts of a tiled picture, a pattern or noise all claim the same few points;
        `chance`: log of the decimal log of how unlikely so many would agree by chance, over all poses that
        could have been tried (a contrario, Desolneux et al. 2000);
        `spread`: log of the smaller standard deviation of the inliers over the image's diagonal, which a
        thin band has small;
        `cover`: log of the share of the image's cells with an inlier;
        `weight`: log of the inliers' mean weight over that of all;
        `claimed`: minus the log of the claimed position's standard deviation over the scene's depth;
        `score`: log odds of the solver's own score;
        `signal.NAME`: what the estimator says (the pipeline adds `signal.REFINER.NAME`), `solver.NAME`:
        what the solver does; of both as `solver.alone` the probability that no other place explains it, and
        as `solver.camera` what speaks against the camera;
        `depth`: of the scene points that agree, in the map's unit: no support, but a measure for it.
        Only what the kind of evidence has.
    """
    found = {f"solver.{name}": float(value) for name, value in solved.support.items()}
    # An estimator that compared places knows of rivals that the evidence which it gave does not show, and
    # one that matched pixels of cameras that relative poses do not.
    for name, value in evidence.signals.items():
        if name in _OF_BOTH:
            known = found.get(f"solver.{name}", float(value))
            found[f"solver.{name}"] = min(float(value), known)
        else:
            found[f"signal.{name}"] = float(value)
    count = max(_size(evidence), 1)
    agreeing = float(solved.num_inliers)
    if isinstance(evidence, Correspondences) and solved.inliers is not None:
        mask = solved.inliers
        pixels = np.asarray(evidence.points2d)[mask]
        agreeing = _different(pixels, np.asarray(evidence.points3d)[mask], camera)
        found |= _in_image(pixels, camera)
        if evidence.weights is not None and mask.any():
            mean = float(np.mean(evidence.weights)) + 1e-12
            found["weight"] = math.log(float(np.mean(evidence.weights[mask])) / mean + 1e-6)
        if evidence.kind == "sparse":
            found["distinct"] = _distinct(np.asarray(evidence.points3d, np.float64))
        radius = _AGREES_PX * math.hypot(camera.width, camera.height) / 800
        chance = math.pi * radius**2 / (camera.width * camera.height)
        found["chance"] = math.log1p(max(0.0, _surprise(count, agreeing, chance)))
    depth = scene_depth(evidence, solved)
    if depth is not None:
        found["depth"] = depth
    # A solver that took one reference, and names none that agree, did not ask.
    if _size(evidence) and (solved.inliers is not None or solved.num_inliers > 1):
        found["inliers"] = math.log1p(agreeing)
        share = (agreeing + 0.5) / (max(count, agreeing) + 1.0)
        found["ratio"] = math.log(share / (1 - share))
    if solved.covariance is not None:
        stdev = math.sqrt(max(float(np.trace(solved.covariance[3:, 3:])), 0.0) + 1e-18)
        if depth is not None:
            found["claimed"] = -math.log(stdev / depth)
    # Whether another pose explains the evidence too is a support of its own.
    score = solved.score / max(solved.support.get("alone", 1.0), 1e-3)
    score = min(max(score, 1e-4), 1 - 1e-4)
    found["score"] = math.log(score / (1 - score))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def scene_depth(evidence: Evidence, solved: Localization) -> float | None:
    """Median distance, along the optical axis, of the scene points that agree; None without points."""
    if not isinstance(evidence, Correspondences) or solved.world_from_cam is None:
        return None
    points = np.asarray(evidence.points3d, np.float64)
    if solved.inliers is not None and solved.inliers.any():
        points = points[solved.inliers]
    points = points[np.isfinite(points).all(1)]
    if not len(points):
        return None
    depth = float(np.median(transform(inverse(solved.world_from_cam), points)[:, 2]))
    return depth if depth > 0 else None


def _size(evidence: Evidence) -> int:
    for name in ("points2d", "world_from_ref"):
        if hasattr(evidence, name):
            return len(getattr(evidence, name))
    return 0


def _different(pixels: FloatArray, points: FloatArray, camera: Camera) -> float:
    """Number of agreeing scene points that are different ones, in different places of the image.

    Many key points that all claim one landmark, or many landmarks at one pixel, are one witness.
    """
    if not len(pixels):
        return 0.0
    size = max(camera.width, camera.height) / 160  # four pixels of a 640 pixel image
    cells = np.floor(np.asarray(pixels, np.float64) / size).astype(np.int64)
    extent = float(np.median(np.abs(points - np.median(points, axis=0)))) + 1e-12
    voxels = np.floor(np.asarray(points, np.float64) / (extent * 1e-3)).astype(np.int64)
    places = cells[:, 0] * 1_000_003 + cells[:, 1]
    things = (voxels[:, 0] * 73_856_093) ^ (voxels[:, 1] * 19_349_663) ^ (voxels[:, 2] * 83_492_791)
    return float(min(len(np.unique(places)), len(np.unique(things))))


def _distinct(points: Float64Array) -> float:
    """Log odds of the share of different ones among scene points (N, 3)."""
    # One number tells equal points from others: these are the same landmark, to the last bit.
    number = points[:, 0] + math.pi * points[:, 1] + math.e * points[:, 2]
    different = len(np.unique(number))
    return math.log((different + 0.5) / (len(points) - different + 0.5))


def _in_image(pixels: FloatArray, camera: Camera) -> dict[str, float]:
    if len(pixels) < 2:
        return {"spread": -7.0, "cover": -7.0}
    diagonal = math.hypot(camera.width, camera.height)
    smaller = float(np.linalg.eigvalsh(np.cov(np.asarray(pixels, np.float64).T))[0])
    size = max(camera.width, camera.height) / _CELLS
    cells = np.floor(np.asarray(pixels) / size).astype(np.int64)
    every = math.ceil(camera.width / size) * math.ceil(camera.height / size)
    covered = len(np.unique(cells[:, 0] * 1000 + cells[:, 1]))
    return {
        "spread": math.log(math.sqrt(max(smaller, 0.0)) / diagonal + 1e-3),
        "cover": math.log(covered / every),
    }


def _surprise(count: float, agreeing: float, chance: float) -> float:
    """Decimal log of one over the expected number of so good poses by chance (a contrario)."""
    count, k = max(count, agreeing), agreeing
    if k <= 3:
        return 0.0

    def log_choose(n: float, m: float) -> float:
        return math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)

    expected = (
        math.log(max(count - 3, 1))
        + log_choose(count, k)
        + log_choose(k, 3)
        + (k - 3) * math.log(chance)
    )
    return -expected / math.log(10)


def novelty(world_from_cam: Float64Array, mapped: Float64Array, depth: float) -> float:
    """How far a view is from the nearest one that was mapped, over the scene's depth.

    A turn counts by the share of the view that it brings into sight: 0.2 of the depth a radian.

    Args:
        world_from_cam: (4, 4) the view.
        mapped: (N, 3, 4) or (N, 4, 4) poses of the mapping images.
        depth: of the scene.
    """
    if not len(mapped):
        return 1.0
    moved = np.linalg.norm(mapped[:, :3, 3] - world_from_cam[:3, 3], axis=1)
    cosine = (np.einsum("nij,ij->n", mapped[:, :3, :3], world_from_cam[:3, :3]) - 1) / 2
    turned = np.arccos(np.clip(cosine, -1, 1))
    return float(np.min(moved / depth + 0.2 * turned))
