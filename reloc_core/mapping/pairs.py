"""Which mapping images are matched with which: similar looks or near poses, spread viewpoints."""

from __future__ import annotations

import math

import numpy as np

from reloc_core.types import Float64Array, FloatArray

_POOL = 60  # candidates among which partners are spread
_BLOCK = 256  # images whose looks are compared with all others at once
_ANGLE_UNIT = math.radians(25)  # a turn that counts as much as a typical distance of cameras


def evenly(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` things, evenly spread."""
    kept = min(count, most)
    return np.arange(kept) * count // max(kept, 1)


def pose_features(world_from_cam: Float64Array) -> Float64Array:
    """(N, 6) vectors whose distance compares poses without a metric scale.

    Positions in units of the cameras' median distance from their median, viewing directions in units
    of 25 degrees.
    """
    centers, directions = world_from_cam[:, :3, 3], world_from_cam[:, :3, 2]
    spread = np.median(np.linalg.norm(centers - np.median(centers, 0), axis=1)) + 1e-9
    return np.concatenate([(centers - centers.mean(0)) / spread, directions / _ANGLE_UNIT], 1)


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
    world_from_cam: Float64Array,
    looks: FloatArray | None = None,
    *,
    near: int = 2,
    spread: int = 6,
    max_angle_deg: float = 50.0,
    min_baseline: float = 0.0,
    reach: float = math.inf,
    depth: float | None = None,
) -> np.ndarray:
    """Pairs of images worth matching.

    Every image gets its `near` most similar ones and `spread` more that lie far apart in pose among
    its 60 most similar ones: short baselines match surely, long ones triangulate well.

    Args:
        world_from_cam: (N, 4, 4).
        looks: (N, D) unit vectors whose cosine tells how alike images look, such as VLAD; None to go
            by pose.
        near: partners by similarity.
        spread: partners by spread.
        max_angle_deg: largest angle between viewing directions.
        min_baseline: least distance of the cameras as a share of the median distance of all.
        reach: largest distance of the cameras. Without it images of other rooms, which may look alike, are
            preferred as partners for lying so far apart.
        depth: of the scene. What two partners look at, so far before each, lies no farther apart than that:
            they share a part of their view. Of a row of rooms that look alike others come within reach.

    Returns:
        (P, 2) int64, first < second, sorted.
    """
    features = pose_features(world_from_cam)
    centers, directions = world_from_cam[:, :3, 3], world_from_cam[:, :3, 2]
    minimum = 0.0
    if min_baseline > 0 and len(centers) > 1:
        some = centers[evenly(len(centers), 500)]
        distances = np.linalg.norm(some[:, None] - some, axis=2)
        minimum = min_baseline * float(np.median(distances[np.triu_indices(len(some), 1)]))
    looked_at = None if depth is None else centers + depth * directions
    cosine = math.cos(math.radians(max_angle_deg))
    pairs: set[tuple[int, int]] = set()
    # One for all blocks: large ones that come and go between what is kept leave the heap full of holes.
    buffer = None if looks is None else np.empty((min(_BLOCK, len(looks)), len(looks)), looks.dtype)
    for i in range(len(centers)):
        if looks is None or buffer is None:
            score = -((features - features[i]) ** 2).sum(1)
        else:
            if i % _BLOCK == 0:
                block = looks[i : i + _BLOCK]
                alike = np.matmul(block, looks.T, out=buffer[: len(block)])
            score = np.asarray(alike[i % _BLOCK], np.float64)
        usable = directions @ directions[i] >= cosine
        distance = np.linalg.norm(centers - centers[i], axis=1)
        usable &= (distance >= minimum) & (distance <= reach)
        if looked_at is not None:
            usable &= np.linalg.norm(looked_at - looked_at[i], axis=1) <= depth
        usable[i] = False
        (candidates,) = np.nonzero(usable)
        order = candidates[np.argsort(-score[candidates], kind="stable")[:_POOL]]
        pool = np.concatenate([[i], order])
        partners = {
            *order[:near].tolist(),
            *pool[farthest_points(features[pool], spread + 1)[1:]].tolist(),
        }
        pairs.update((min(i, j), max(i, j)) for j in partners)
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)
