"""Where a map lies in the world of another one, and poses carried from the one to the other."""

from __future__ import annotations

import numpy as np

from reloc_core.errors import DataError
from reloc_core.geometry import inverse, orthonormalized, pose_minus
from reloc_core.interfaces import Dataset
from reloc_core.mapping import farthest_points, pose_features
from reloc_core.mapping.features import poses_of
from reloc_core.pipeline import Pipeline
from reloc_core.types import Float64Array

_DESCRIBED = 100  # images of a map
# Of the distance that cameras span, and degrees, within which votes agree.
_AGREE, _AGREE_DEG = 0.05, 2.0
_BASE = 0.1  # of that distance: least one that tells a scale


def align(reference: Pipeline, dataset: Dataset, least: int = 3) -> Float64Array:
    """Where another map lies in a reference's world, by localizing its images there.

    Args:
        reference: localizes in the reference map.
        dataset: images with their poses in the other map.
        least: images that must agree.

    Returns:
        (4, 4) reference_from_map: the pose that most images agree about, within 5 % of the distance
        that their cameras span and 2 degrees, averaged over those; with a scale if both units are
        arbitrary.

    Raises:
        DataError: too few images agree.
    """
    chosen = some_frames(dataset)
    poses = poses_of(dataset, np.asarray(chosen))
    votes = []
    for index, pose in zip(chosen, poses, strict=True):
        found = reference.localize_alone(dataset, index)
        if found.localized and found.world_from_cam is not None:
            votes.append((found.world_from_cam @ inverse(pose), pose))
    span = float(np.linalg.norm(np.ptp(poses[:, :3, 3], axis=0))) or 1.0
    if dataset.unit != "metre" and reference.map is not None and reference.map.info.unit != "metre":
        found_in = np.array([vote @ pose for vote, pose in votes]).reshape(-1, 4, 4)
        source = np.array([pose for _, pose in votes]).reshape(-1, 4, 4)
        aligned, agree = _similarity(source, found_in, span)
        _require_agreement(agree, len(chosen), dataset, least)
        return aligned

    def agreeing(candidate: Float64Array) -> list[Float64Array]:
        kept = []
        for vote, pose in votes:
            apart = pose_minus(vote @ pose, candidate @ pose)
            turned, away = np.linalg.norm(apart[:3]), np.linalg.norm(apart[3:])
            if away < _AGREE * span and turned < np.radians(_AGREE_DEG):
                kept.append(vote)
        return kept

    best = max((agreeing(vote) for vote, _ in votes), key=len, default=[])
    _require_agreement(len(best), len(chosen), dataset, least)
    mean = np.mean(best, axis=0)
    return np.asarray(orthonormalized(mean), np.float64)


def _require_agreement(agree: int, asked: int, dataset: Dataset, least: int) -> None:
    if agree < least:
        raise DataError(
            f"Only {agree} of {asked} images of {dataset.name} agree about where they lie in the "
            f"reference map; {least} are needed. Do the two overlap?"
        )


def _similarity(
    source: Float64Array, target: Float64Array, span: float
) -> tuple[Float64Array, int]:
    """The similarity (4, 4) that most pairs of poses agree about, and how many do.

    Two poses give one: the turn of the first, the scale of their distance. Over those that agree the turn
    is averaged, and scale and shift are of least squares; the poses' own turns, unlike their places alone
    (Umeyama), also tell it where all cameras lie on a line.

    Args:
        source: (N, 4, 4) poses in the one world.
        target: (N, 4, 4) the same in the other one.
        span: of the source's cameras.
    """
    turns = target[:, :3, :3] @ source[:, :3, :3].transpose(0, 2, 1)
    trace = np.einsum("nij,mij->nm", turns, turns)
    alike = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))) < _AGREE_DEG
    a, b = source[:, :3, 3], target[:, :3, 3]
    best = np.zeros(len(a), bool)
    for i, j in zip(*np.nonzero(np.triu(alike, 1)), strict=True):
        apart = float(np.linalg.norm(a[i] - a[j]))
        scale = float(np.linalg.norm(b[i] - b[j])) / max(apart, 1e-12)
        if apart < _BASE * span or scale == 0:
            continue
        off = scale * (a - a[i]) @ turns[i].T + b[i] - b
        agrees = (np.linalg.norm(off, axis=1) < _AGREE * span * scale) & alike[i]
        if agrees.sum() > best.sum():
            best = agrees
    result = np.eye(4)
    if best.any():
        turn = np.eye(4)
        turn[:3, :3] = turns[best].mean(0)
        turned = (a[best] - a[best].mean(0)) @ orthonormalized(turn)[:3, :3].T
        scale = float((turned * (b[best] - b[best].mean(0))).sum() / (turned**2).sum())
        result[:3, :3] = scale * orthonormalized(turn)[:3, :3]
        result[:3, 3] = b[best].mean(0) - result[:3, :3] @ a[best].mean(0)
    return result, int(best.sum())


def scale_of(similarity: Float64Array) -> float:
    """The scale of a (4, 4) matrix that scales, turns and shifts."""
    return float(np.cbrt(np.linalg.det(similarity[:3, :3])))


def moved(similarity: Float64Array, pose: Float64Array) -> Float64Array:
    """A camera's pose (4, 4) in the world that a similarity (4, 4) leads to."""
    result = similarity @ pose
    result[:3, :3] /= scale_of(similarity)
    return np.asarray(result, np.float64)


def scaled(covariance: Float64Array | None, scale: float) -> Float64Array | None:
    """The covariance (6, 6) of a pose where lengths are so many times as large."""
    if covariance is None:
        return None
    factors = np.array([1.0, 1.0, 1.0, scale, scale, scale])
    return np.asarray(covariance * np.outer(factors, factors), np.float64)


def some_frames(dataset: Dataset) -> list[int]:
    """Indices of at most 100 posed frames, spread over poses."""
    posed = [i for i, frame in enumerate(dataset.frames) if frame.world_from_cam is not None]
    if not posed:
        raise DataError(f"{dataset.name} has no frame with a pose.")
    poses = poses_of(dataset, np.asarray(posed))
    return sorted(posed[i] for i in farthest_points(pose_features(poses), _DESCRIBED))
