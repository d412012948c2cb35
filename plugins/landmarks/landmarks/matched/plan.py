"""What mapping chooses by looking at its images: features, resolution, pairs, thresholds, map size.

Choices that the configuration makes are kept. The rules were set on held-out mapping images of a room
filmed at 30 Hz, of a street and of a beach photographed from the air; docs/landmarks.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np

from landmarks.config import LandmarkConfig
from reloc_core.mapping import Cover, Tracks
from reloc_core.types import Frame

Number = TypeVar("Number", int, float)
_EVERY_PAIR = 40  # images that are matched each with each
_ENOUGH = 250  # landmarks in view of an image that make strict thresholds affordable
# Views and parallax in degrees. Of photographs, many landmarks from two views are worth more than few
# from three.
_FILM = ((3, 2.0), (3, 1.0), (2, 1.0), (2, 0.5))
_PHOTOS = ((2, 2.0), (2, 1.0), (2, 0.5))


@dataclass(frozen=True)
class Plan:
    """How a scene is mapped.

    Attributes:
        kind: of key points, "xfeat" or "sift".
        resolution: shorter side in pixels of the images as described.
        mapping: key points per mapping image.
        query: key points per query.
        near: see `TriangulationConfig`.
        spread: see `TriangulationConfig`.
        landmarks: see `TriangulationConfig`.
        min_similarity: see `MatchingConfig`.
        window_similarity: see `MatchingConfig`.
        ratio: Lowe's, of matched mapping images.
    """

    kind: str
    resolution: int
    mapping: int
    query: int
    near: int
    spread: int
    landmarks: int
    min_similarity: float
    window_similarity: float
    ratio: float

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


def _short_side(frames: Sequence[Frame]) -> int:
    """Median shorter side in pixels."""
    return int(np.median([min(f.camera.width, f.camera.height) for f in frames]))


def make_plan(config: LandmarkConfig, frames: Sequence[Frame], photographs: bool) -> Plan:
    """Choose by the number of images, their size, and whether they are a film.

    Args:
        config: whose options take precedence.
        frames: the mapping images.
        photographs: rather than a film.
    """
    few = photographs
    kind = config.keypoints.kind
    if kind == "auto":
        kind = "sift" if few else "xfeat"
    sift = kind == "sift"
    short = _short_side(frames)
    resolution = min(short, 1080) if sift else min(short, 768) if few else 480
    mapping = (8192 if len(frames) <= _EVERY_PAIR else 4096) if sift else 2048 if few else 1024
    keypoints, wanted, matching = config.keypoints, config.triangulation, config.matching
    near, spread = (_EVERY_PAIR, 0) if len(frames) <= _EVERY_PAIR else (4, 12) if few else (2, 5)
    return Plan(
        kind=kind,
        resolution=_or(keypoints.resolution, resolution),
        mapping=_or(keypoints.mapping, mapping),
        query=_or(keypoints.query, mapping),
        near=_or(wanted.near, near),
        spread=_or(wanted.spread, spread),
        landmarks=_or(wanted.landmarks, max(8192, 30 * len(frames))),
        min_similarity=_or(matching.min_similarity, 0.75 if sift else 0.7),
        window_similarity=_or(matching.window_similarity, 0.7 if sift else 0.6),
        ratio=0.85 if sift else 1.0,
    )


def _or(given: Number | None, chosen: Number) -> Number:
    return chosen if given is None else given


def choose_thresholds(
    config: LandmarkConfig,
    build: Callable[[int, float], Tracks],
    images: np.ndarray,
    count: int,
    photographs: bool,
) -> tuple[Tracks, int, float]:
    """The strictest thresholds under which half of the images see enough landmarks.

    Args:
        config: whose options take precedence.
        build: tracks of given least views and parallax in degrees.
        images: (M,) image of every key point.
        count: number of images.
        photographs: rather than a film.

    Returns:
        tracks, least views, least parallax.
    """
    wanted = config.triangulation
    steps = list(
        dict.fromkeys(
            (_or(wanted.min_views, views), _or(wanted.min_parallax_deg, angle))
            for views, angle in (_PHOTOS if photographs else _FILM)
        )
    )
    for views, angle in steps:
        tracks = build(views, angle)
        if Cover.of(tracks, images, count).median >= _ENOUGH:
            break
    return tracks, views, angle
