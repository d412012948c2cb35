"""Matches of a query's key points with landmarks: first by looks, then near where they should appear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reloc_core.types import Float64Array, FloatArray


@dataclass(frozen=True)
class Matches:
    """K matches.

    Attributes:
        keypoints: (K,) of the query.
        landmarks: (K,).
        similarity: (K,) cosines.
        possible: landmarks that could have matched.
    """

    keypoints: np.ndarray
    landmarks: np.ndarray
    similarity: FloatArray
    possible: int

    def __len__(self) -> int:
        return len(self.keypoints)

    def completed(self, others: Matches) -> Matches:
        """These, and the others of key points that have none here."""
        (new,) = np.nonzero(~np.isin(others.keypoints, self.keypoints))
        return Matches(
            np.concatenate([self.keypoints, others.keypoints[new]]),
            np.concatenate([self.landmarks, others.landmarks[new]]),
            np.concatenate([self.similarity, others.similarity[new]]),
            self.possible,
        )


def by_looks(
    descriptors: FloatArray, keys: FloatArray, candidates: np.ndarray, min_similarity: float
) -> tuple[Matches, FloatArray]:
    """Mutual nearest neighbours among candidate landmarks, and the best cosine (M,) of each key point."""
    similarity = descriptors @ keys[candidates].T
    index = np.arange(len(descriptors))
    partner = similarity.argmax(1)
    best = similarity[index, partner]
    kept = (best >= similarity.max(0)[partner]) & (best > min_similarity)
    matches = Matches(index[kept], candidates[partner[kept]], best[kept], len(candidates))
    return matches, best


def by_place(
    pixels: Float64Array,
    descriptors: FloatArray,
    keys: FloatArray,
    visible: np.ndarray,
    places: Float64Array,
    radius: float,
    min_similarity: FloatArray,
) -> Matches:
    """Mutual nearest neighbours among key points and landmarks that a pose puts near them.

    Args:
        pixels: (M, 2) key points.
        descriptors: (M, C) theirs.
        keys: (L, C) of all landmarks.
        visible: (K,) landmarks that the pose puts into view, ...
        places: (K, 2) ... and where, in pixels.
        radius: pixels.
        min_similarity: (M,) least cosine of each key point.
    """
    from scipy.spatial import cKDTree  # takes half a second, which maps read by a softmax save

    none = np.zeros(0, np.int64)
    if not len(visible):
        return Matches(none, none, np.zeros(0, np.float32), 0)
    near = cKDTree(places).query_ball_point(pixels, radius, return_sorted=False)
    number = np.fromiter((len(n) for n in near), np.int64, len(near))
    if not number.any():
        return Matches(none, none, np.zeros(0, np.float32), len(visible))
    ours = np.repeat(np.arange(len(pixels)), number)
    theirs = np.concatenate([np.asarray(n, np.int64) for n in near if n])
    similarity = np.einsum("nc,nc->n", descriptors[ours], keys[visible[theirs]])
    best_of_ours = np.full(len(pixels), -2.0, np.float32)
    best_of_theirs = np.full(len(visible), -2.0, np.float32)
    np.maximum.at(best_of_ours, ours, similarity)
    np.maximum.at(best_of_theirs, theirs, similarity)
    kept = (similarity > min_similarity[ours]) & (similarity >= best_of_ours[ours])
    kept &= similarity >= best_of_theirs[theirs]
    return Matches(ours[kept], visible[theirs[kept]], similarity[kept], len(visible))
