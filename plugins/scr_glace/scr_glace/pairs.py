"""Which mapping images are matched with which: similar looks, spread viewpoints."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from reloc_core.types import Float64Array

_POOL = 60  # similar images among which partners are spread
_ANGLE_UNIT = math.radians(25)  # a turn that counts as much as a typical distance of cameras


def pose_features(world_from_cam: Float64Array) -> Float64Array:
    """(N, 6) vectors whose distance compares poses without a metric scale.

    Positions in units of the cameras' median distance from their median, viewing directions in units
    of 25 degrees.
    """
    centers, directions = world_from_cam[:, :3, 3], world_from_cam[:, :3, 2]
    spread = np.median(np.linalg.norm(centers - np.median(centers, 0), axis=1)) + 1e-9
    return np.concatenate([centers / spread, directions / _ANGLE_UNIT], 1)


def farthest_points(features: Float64Array, count: int) -> np.ndarray:
    """Indices of a well-spread subset that starts with the first row (farthest point sampling)."""
    chosen = [0]
    distance = ((features - features[0]) ** 2).sum(1)
    while len(chosen) < min(count, len(features)):
        farthest = int(distance.argmax())
        if distance[farthest] <= 0:
            break
        chosen.append(farthest)
        distance = np.minimum(distance, ((features - features[farthest]) ** 2).sum(1))
    return np.array(chosen)


def choose_pairs(
    world_from_cam: Float64Array, looks: Tensor, near: int, spread: int, max_angle_deg: float
) -> np.ndarray:
    """Pairs of images worth matching.

    Every image gets its `near` most similar ones and `spread` more that lie far apart in pose among
    its 60 most similar ones: short baselines match surely, long ones triangulate well.

    Args:
        world_from_cam: (N, 4, 4).
        looks: (N, D) unit VLAD vectors.
        near: partners by similarity.
        spread: partners by spread.
        max_angle_deg: largest angle between viewing directions.

    Returns:
        (P, 2) int64, first < second, sorted.
    """
    similarity = (looks @ looks.T).numpy()
    directions = world_from_cam[:, :3, 2]
    features = pose_features(world_from_cam)
    similarity[directions @ directions.T < math.cos(math.radians(max_angle_deg))] = -np.inf
    np.fill_diagonal(similarity, -np.inf)
    pairs: set[tuple[int, int]] = set()
    for i, row in enumerate(similarity):
        order = np.argsort(-row, kind="stable")[:_POOL]
        order = order[np.isfinite(row[order])]
        pool = np.concatenate([[i], order])
        partners = {
            *order[:near].tolist(),
            *pool[farthest_points(features[pool], spread + 1)[1:]].tolist(),
        }
        pairs.update((min(i, j), max(i, j)) for j in partners)
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)
