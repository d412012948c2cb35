"""The chain after key points: pairs, matches, tracks; and all of it in one call."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from reloc_core.errors import DataError
from reloc_core.interfaces import Dataset, Run
from reloc_core.mapping.features import Detector, Features, describe
from reloc_core.mapping.matching import match_pairs, typical_depth
from reloc_core.mapping.observations import Observations
from reloc_core.mapping.pairs import choose_pairs
from reloc_core.mapping.pieces import Pieces
from reloc_core.mapping.tracks import Tracks, build_tracks
from reloc_core.types import FloatArray, ImageArray

_PIECE = 256  # pairs of images


@dataclass(frozen=True)
class ReconstructionOptions:
    """How points are made of posed images.

    Attributes:
        keypoints: per image.
        near: see `choose_pairs`.
        spread: see `choose_pairs`.
        max_angle_deg: see `choose_pairs`.
        min_baseline: see `choose_pairs`.
        reach: largest distance of matched images' cameras, in depths of the scene; 0 for any. Farther ones
            are rather of another room that looks alike.
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
    reach: float = 1.5
    min_similarity: float = 0.75
    ratio: float = 1.0
    max_epipolar_px: float = 2.5
    min_views: int = 2
    max_error_px: float = 2.5
    min_parallax_deg: float = 1.5
    depth_noise: float = 0.0

    @classmethod
    def of(cls, config: object, **changes: Any) -> ReconstructionOptions:
        """What a config has of the same names; None there leaves the default, `changes` come first."""
        given = {f.name: getattr(config, f.name, None) for f in fields(cls)}
        return cls(**{k: v for k, v in given.items() if v is not None} | changes)


@dataclass(frozen=True)
class Matches:
    """Key points of posed images that match and agree with the poses.

    Attributes:
        features: of the images.
        observations: the key points as rays.
        pairs: (P, 2) images that were matched.
        first: (K,) matched key points' rows.
        second: (K,) those that they match.
    """

    features: Features
    observations: Observations
    pairs: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def tracks(self, options: ReconstructionOptions, run: Run) -> Tracks:
        """Triangulated points; see `build_tracks`."""
        with run.progress("Triangulating", 1) as progress:
            tracks = build_tracks(
                self.observations, self.first, self.second, min_views=options.min_views,
                max_error_px=options.max_error_px, min_parallax_deg=options.min_parallax_deg,
            )  # fmt: skip
            progress.advance(1, points=str(len(tracks)))
        return tracks


@dataclass(frozen=True)
class Reconstruction:
    """Scene points and what they were made of."""

    features: Features
    observations: Observations
    tracks: Tracks

    @property
    def colors(self) -> ImageArray:
        """(L, 3) uint8: each point's mean colour over the images that observe it."""
        return mean_colors(self.tracks, self.features)


def mean_colors(tracks: Tracks, features: Features) -> ImageArray:
    """(L, 3) uint8: each track's mean colour over the images that observe it."""
    seen, views = features.colors[tracks.rows], np.maximum(tracks.views, 1)
    mean = [np.bincount(tracks.labels, seen[:, k], len(tracks)) / views for k in range(3)]
    return np.asarray(np.rint(np.stack(mean, 1)), np.uint8)


def match_images(
    features: Features,
    run: Run,
    options: ReconstructionOptions,
    looks: FloatArray | None = None,
    threads: int = 1,
    resumable: bool = True,
) -> Matches:
    """Match images that are worth it.

    Args:
        features: their key points.
        run: progress.
        options: thresholds.
        looks: see `choose_pairs`.
        threads: see `match_pairs`.
        resumable: see `describe`.

    Raises:
        ShareDone: this process does a share of it, and the other shares are not done.
    """
    features.release()
    observations = features.observations(options.depth_noise)
    depth = None
    if options.reach:
        depth = typical_depth(
            features.descriptors, observations, features.world_from_cam,
            min_similarity=options.min_similarity, max_epipolar_px=options.max_epipolar_px,
        )  # fmt: skip
    pairs = choose_pairs(
        features.world_from_cam, looks, near=options.near, spread=options.spread,
        max_angle_deg=options.max_angle_deg, min_baseline=options.min_baseline,
        reach=math.inf if depth is None else options.reach * depth, depth=depth,
    )  # fmt: skip
    of = (len(features), options, pairs.tolist())
    pieces = Pieces(run, "matched", len(pairs), _PIECE, of, resumable)
    with run.progress("Matching images", pieces.expected) as progress:
        progress.advance(pieces.done)
        for piece in pieces.todo:
            first, second = match_pairs(
                features.descriptors, observations, pairs[piece.start : piece.stop],
                min_similarity=options.min_similarity, ratio=options.ratio,
                max_epipolar_px=options.max_epipolar_px, progress=progress, threads=threads,
            )  # fmt: skip
            pieces.write(piece, {"first": first, "second": second})
            features.release()
    pieces.finish(last=True)
    features.release()
    parts = [pieces[i] for i in range(len(pieces))]
    none = np.zeros(0, np.int64)
    first, second = (np.concatenate([none, *(p[k] for p in parts)]) for k in ("first", "second"))
    return Matches(features, observations, pairs, first, second)


class TooFewPointsError(DataError):
    """Images share too little for what was asked of their points."""


def require_points(found: int, least: int, dataset: Dataset, images: int) -> None:
    """Refuse to make a map of too little.

    Raises:
        TooFewPointsError: fewer points than `least` came of so many images.
    """
    if found < least:
        raise TooFewPointsError(
            f"Only {found} scene points could be triangulated from {images} images of {dataset.name}: "
            "they overlap too little, or their poses or focal lengths are wrong. 'reloc data check' "
            "tells which."
        )


def reconstruct(
    dataset: Dataset,
    frames: np.ndarray,
    detector: Detector,
    run: Run,
    options: ReconstructionOptions | None = None,
    resumable: bool = False,
) -> Reconstruction:
    """Points of posed images.

    Args:
        dataset: posed.
        frames: (N,) indices; `evenly(len(dataset), most)` or `farthest_points` choose some.
        detector: of key points.
        run: progress, checkpoints.
        options: thresholds.
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
    matches = match_images(features, run, options, resumable=resumable)
    return Reconstruction(features, matches.observations, matches.tracks(options, run))
