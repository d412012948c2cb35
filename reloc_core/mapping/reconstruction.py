"""The whole chain in one call: posed images to scene points with tracks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reloc_core.errors import DataError
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping.features import Detector, Features, describe
from reloc_core.mapping.matching import match_pairs
from reloc_core.mapping.observations import Observations
from reloc_core.mapping.pairs import choose_pairs
from reloc_core.mapping.tracks import Tracks, build_tracks
from reloc_core.types import FloatArray, ImageArray


@dataclass(frozen=True)
class ReconstructionOptions:
    """How points are made of posed images.

    Attributes:
        keypoints: per image.
        near: see `choose_pairs`.
        spread: see `choose_pairs`.
        max_angle_deg: see `choose_pairs`.
        min_baseline: see `choose_pairs`.
        min_similarity: see `match_pairs`.
        ratio: see `match_pairs`.
        max_epipolar_px: see `match_pairs`.
        min_views: see `star_points`.
        max_error_px: see `star_points`.
        min_parallax_deg: see `star_points`.
        depth_noise: relative noise of measured depth that takes part; 0 leaves depth out.
    """

    keypoints: int = 1024
    near: int = 2
    spread: int = 6
    max_angle_deg: float = 50.0
    min_baseline: float = 0.0
    min_similarity: float = 0.75
    ratio: float = 1.0
    max_epipolar_px: float = 2.5
    min_views: int = 2
    max_error_px: float = 2.5
    min_parallax_deg: float = 1.5
    depth_noise: float = 0.0


@dataclass(frozen=True)
class Reconstruction:
    """Scene points and what they were made of."""

    features: Features
    observations: Observations
    tracks: Tracks

    @property
    def colors(self) -> ImageArray:
        """(L, 3) uint8: each point's mean colour over the images that observe it."""
        labels, seen = self.tracks.labels, self.features.colors[self.tracks.rows]
        views = np.maximum(self.tracks.views, 1)
        mean = [np.bincount(labels, seen[:, k], len(self.tracks)) / views for k in range(3)]
        return np.asarray(np.rint(np.stack(mean, 1)), np.uint8)


def reconstruct(
    dataset: Dataset,
    frames: np.ndarray,
    detector: Detector,
    run: Run,
    options: ReconstructionOptions | None = None,
    looks: FloatArray | None = None,
    resumable: bool = False,
) -> Reconstruction:
    """Points of posed images.

    Args:
        dataset: posed.
        frames: (N,) indices; `evenly(len(dataset), most)` or `farthest_points` choose some.
        detector: of key points.
        run: progress, checkpoints.
        options: thresholds.
        looks: see `choose_pairs`.
        resumable: see `describe`.

    Raises:
        DataError: fewer than two images, or one without a pose.
    """
    options = options or ReconstructionOptions()
    if len(frames) < max(options.min_views, 2):
        raise DataError(
            f"{dataset.name} has {len(frames)} image{'s' * (len(frames) != 1)}; triangulation needs at "
            f"least {max(options.min_views, 2)}, from different places."
        )
    features = describe(dataset, frames, detector, options.keypoints, run, resumable=resumable)
    observations = features.observations(options.depth_noise)
    pairs = choose_pairs(
        features.world_from_cam, looks, near=options.near, spread=options.spread,
        max_angle_deg=options.max_angle_deg, min_baseline=options.min_baseline,
    )  # fmt: skip
    with run.progress("Matching images", len(pairs)) as progress:
        first, second = match_pairs(
            features.descriptors, observations, pairs, min_similarity=options.min_similarity,
            ratio=options.ratio, max_epipolar_px=options.max_epipolar_px, progress=progress,
        )  # fmt: skip
    with run.progress("Triangulating", 1) as progress:
        tracks = build_tracks(
            observations, first, second, min_views=options.min_views,
            max_error_px=options.max_error_px, min_parallax_deg=options.min_parallax_deg,
        )  # fmt: skip
        progress.advance(1, points=str(len(tracks)))
    return Reconstruction(features, observations, tracks)
