"""Typed configuration of the estimator `landmarks`. Imports no PyTorch.

Options that are None are chosen by what the mapping images are like; see `landmarks.matched.plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reloc_core.checks import Checks

KINDS = ("auto", "xfeat", "sift")
READOUTS = ("auto", "matching", "softmax")


@dataclass
class KeypointConfig:
    """Key points.

    Attributes:
        kind: "xfeat" (fast), "sift" (better located, surer across wide baselines), or "auto".
        resolution: length of the images' shorter side in pixels when they are described.
        mapping: key points per mapping image.
        query: key points per query; more is surer and slower.
        batch: mapping images described together.
    """

    kind: str = "auto"
    resolution: int | None = None
    mapping: int | None = None
    query: int | None = None
    batch: int = 4


@dataclass
class TriangulationConfig:
    """Scene points from the mapping images' key points and known poses.

    Attributes:
        max_images: at most so many mapping images are used, spread over poses.
        near: images that each image is matched with because they look most similar.
        spread: more images that it is matched with, similar in look and spread in pose.
        max_angle_deg: largest angle between viewing directions of matched images.
        max_epipolar_px: largest epipolar error of a match.
        max_error_px: largest angle between a point and a ray that observes it.
        min_views: images that must observe a point.
        min_parallax_deg: angle that the rays of a point must span.
        landmarks: most landmarks kept; those of every image whose places are best known.
    """

    max_images: int = 1000
    near: int | None = None
    spread: int | None = None
    max_angle_deg: float = 60.0
    max_epipolar_px: float = 2.5
    max_error_px: float = 3.0
    min_views: int | None = None
    min_parallax_deg: float | None = None
    landmarks: int | None = None


@dataclass
class MatchingConfig:
    """Matches of a query with landmarks.

    Attributes:
        retrieved: mapped images whose landmarks a query is matched with: those that look most like it.
        min_similarity: least cosine of a key point and a landmark; None for the one of its kind.
        windows_px: the first pose predicts where landmarks appear; key points are matched again with
            those that fall this near, in pixels of the described image, once per entry. Empty: never.
        window_similarity: least cosine there; None for the one of its kind.
        redundancy: matches that are worth one independent match in the pose's covariance.
        shared: part of the variance of landmarks' positions that is common to those of a query, as the
            mapping images' own errors are.
    """

    retrieved: int = 20
    min_similarity: float | None = None
    windows_px: list[float] = field(default_factory=lambda: [12.0])
    window_similarity: float | None = None
    redundancy: float = 8.0
    shared: float = 0.01


@dataclass
class LandmarkConfig:
    """Options of `LandmarkEstimator`.

    Attributes:
        readout: "matching" (twice, guided by a first pose), "softmax" (keys trained to be told apart), or
            "auto": matching for photographs, softmax for films; other options given are the matching's.
        keypoints: what the images are described by.
        triangulation: how landmarks are made.
        matching: how they are found in a query.
    """

    readout: str = "auto"
    keypoints: KeypointConfig = field(default_factory=KeypointConfig)
    triangulation: TriangulationConfig = field(default_factory=TriangulationConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)


def check(config: LandmarkConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config)
    options.one_of("keypoints.kind", KINDS)
    options.one_of("readout", READOUTS)
    options.at_least(64, "keypoints.resolution")
    options.at_least(16, "keypoints.mapping", "keypoints.query", "triangulation.landmarks")
    options.at_least(1, "keypoints.batch", "matching.retrieved", "matching.redundancy")
    options.at_least(2, "triangulation.max_images", "triangulation.min_views")
    options.not_negative("triangulation.near", "triangulation.spread", "matching.shared")
    options.not_negative("triangulation.min_parallax_deg")
    options.positive("triangulation.max_angle_deg", "triangulation.max_epipolar_px")
    options.positive("triangulation.max_error_px")
    options.require(
        all(w > 0 for w in config.matching.windows_px), "matching.windows_px", "be positive"
    )
