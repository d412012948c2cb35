"""Options of the estimator. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from reloc_core.errors import ConfigError


@dataclass
class MatchingConfig:
    """Options of `MatchingEstimator`.

    Attributes:
        resolution: length of the images' shorter side in pixels when they are described.
        images: most images that are kept in the map, spread evenly over the dataset.
        keypoints: of each map image.
        query_keypoints: of a query.
        partners: other map images that each map image is matched with to triangulate its keypoints.
        max_angle_deg: largest angle between viewing directions of matched map images.
        min_similarity: least cosine of matched descriptors.
        max_epipolar_px: largest distance of a match of two map images from its epipolar line.
        max_error_px: largest reprojection error of a triangulated point.
        min_views: images that must agree about a point.
        min_parallax_deg: angle that a point's viewing rays must span.
        retrieved: map images that a query is matched with.
    """

    resolution: int = 480
    images: int = 700
    keypoints: int = 1024
    query_keypoints: int = 2048
    partners: int = 12
    max_angle_deg: float = 45.0
    min_similarity: float = 0.8
    max_epipolar_px: float = 2.5
    max_error_px: float = 2.5
    min_views: int = 3
    min_parallax_deg: float = 1.5
    retrieved: int = 16


def check(config: MatchingConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    for name, least in (
        ("resolution", 64),
        ("images", 3),
        ("keypoints", 16),
        ("query_keypoints", 16),
        ("partners", 2),
        ("min_views", 2),
        ("retrieved", 1),
    ):
        if getattr(config, name) < least:
            raise ConfigError(
                f"estimator.{name} must be at least {least}, got {getattr(config, name)}."
            )
    for name in ("max_angle_deg", "max_epipolar_px", "max_error_px", "min_parallax_deg"):
        if not getattr(config, name) > 0:
            raise ConfigError(f"estimator.{name} must be positive, got {getattr(config, name)}.")
    if not -1 <= config.min_similarity < 1:
        raise ConfigError(
            f"estimator.min_similarity must be a cosine, got {config.min_similarity}."
        )
