"""Mutual nearest neighbours of descriptors, checked against known poses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from reloc_core.interfaces import Progress
from reloc_core.mapping.observations import Observations
from reloc_core.mapping.pairs import evenly, pose_features
from reloc_core.mapping.triangulation import two_view_depths
from reloc_core.types import Float64Array, FloatArray

_SAMPLED = 40  # images whose depth is looked at
_NEIGHBOUR = 4  # by pose, that each is matched with
_PARALLAX = 0.015  # radians
_ENOUGH = 15  # matches of a pair


def mutual_matches(
    a: FloatArray,
    b: FloatArray,
    min_similarity: float = -1.0,
    ratio: float = 1.0,
    buffer: FloatArray | None = None,
) -> tuple[np.ndarray, np.ndarray, FloatArray]:
    """Mutual nearest neighbours of unit descriptors.

    Args:
        a: (N, C) float32.
        b: (M, C) float32.
        min_similarity: least cosine.
        ratio: largest distance to the best match over that to the second best (Lowe); 1 asks nothing.
        buffer: float32 array of N * M or more numbers to work in.

    Returns:
        their indices (K,) in `a` and in `b`, and cosines (K,).
    """
    if not len(a) or not len(b):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    out = None if buffer is None else buffer[: len(a) * len(b)].reshape(len(a), len(b))
    similarity = np.matmul(a, b.T, out=out)
    index = np.arange(len(a))
    partner = similarity.argmax(1)
    best = similarity[index, partner]
    kept = (best >= similarity.max(0)[partner]) & (best > min_similarity)
    if ratio < 1 and len(b) > 1:
        similarity[index, partner] = -2
        second = similarity.max(1)
        kept &= 1 - best < ratio**2 * (1 - second)  # squared distance of unit vectors, halved
    (chosen,) = np.nonzero(kept)
    return chosen, partner[chosen], best[chosen]


def match_pairs(
    descriptors: FloatArray,
    observations: Observations,
    pairs: np.ndarray,
    *,
    min_similarity: float = -1.0,
    ratio: float = 1.0,
    max_epipolar_px: float = 2.5,
    progress: Progress | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours of pairs of images that agree with the known poses.

    Args:
        descriptors: (M, C) unit vectors of all key points.
        observations: rays of the key points.
        pairs: (P, 2) image indices.
        min_similarity: cosine.
        ratio: see `mutual_matches`.
        max_epipolar_px: largest epipolar error.
        progress: advanced once per pair.
        threads: pairs that are matched at a time.

    Returns:
        the matched key points' rows, two arrays (K,).
    """
    starts = np.searchsorted(observations.images, np.arange(len(observations.centers) + 1))
    most = int(np.diff(starts).max(initial=0))
    # One per thread for all pairs: matches that are kept between large blocks that come and go would
    # leave the heap full of holes, by gigabytes.
    buffers = threading.local()

    def match(pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not hasattr(buffers, "block"):
            buffers.block = np.empty(most * most, np.float32)
        i, j = pair
        a, b, _ = mutual_matches(
            descriptors[starts[i] : starts[i + 1]], descriptors[starts[j] : starts[j + 1]],
            min_similarity, ratio, buffers.block,
        )  # fmt: skip
        a, b = a + starts[i], b + starts[j]
        agrees = observations.epipolar_errors(a, b) < max_epipolar_px
        return a[agrees], b[agrees]

    first, second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="match") as pool:
        for a, b in pool.map(match, pairs):
            first.append(a)
            second.append(b)
            if progress is not None:
                progress.advance()
    return np.concatenate(first), np.concatenate(second)


def typical_depth(
    descriptors: FloatArray,
    observations: Observations,
    world_from_cam: Float64Array,
    *,
    min_similarity: float = 0.75,
    max_epipolar_px: float = 2.5,
) -> float | None:
    """Median distance of the scene from its cameras, from a few pairs of images with near poses.

    Args:
        descriptors: (M, C) unit vectors of all key points.
        observations: rays of the key points.
        world_from_cam: (N, 4, 4).
        min_similarity: cosine.
        max_epipolar_px: largest epipolar error.

    Returns:
        in scene units; None where nothing matches.
    """
    poses = pose_features(world_from_cam)
    found = []
    for i in evenly(len(poses), _SAMPLED).tolist():
        near = np.argsort(((poses - poses[i]) ** 2).sum(1), kind="stable")
        j = int(near[min(_NEIGHBOUR, len(near) - 1)])
        pair = np.array([[i, j]])
        a, b = match_pairs(
            descriptors, observations, pairs=pair, min_similarity=min_similarity,
            max_epipolar_px=max_epipolar_px,
        )  # fmt: skip
        motion = np.eye(4)
        motion[:3, 3] = observations.centers[i] - observations.centers[j]
        depths, angle = two_view_depths(
            np.stack([observations.rays[a], observations.rays[b]]), motion
        )
        seen = (depths > 0).all(0) & (angle > _PARALLAX)
        if seen.sum() >= _ENOUGH:
            found.append(float(np.median(depths[:, seen])))
    return float(np.median(found)) if found else None
