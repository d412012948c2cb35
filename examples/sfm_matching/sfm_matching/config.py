"""Options of the estimator. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from reloc_core.checks import Checks


@dataclass
class MatchingConfig:
    """Options of `MatchingEstimator`.

    Attributes:
        resolution: length of the images' shorter side in pixels when they are described.
        images: most images that are kept in the map, spread evenly over the dataset.
        keypoints: of each map image.
        query_keypoints: of a query.
        partners: other map images that each map image is matched with to triangulate its keypoints.
        min_similarity: least cosine of matched descriptors.
        min_views: images that must agree about a point.
        min_parallax_deg: angle that a point's viewing rays must span.
        retrieved: map images that a query is matched with.
    """

    resolution: int = 480
    images: int = 700
    keypoints: int = 1024
    query_keypoints: int = 2048
    partners: int = 12
    min_similarity: float = 0.8
    min_views: int = 3
    min_parallax_deg: float = 1.5
    retrieved: int = 16


def check(config: MatchingConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config)
    options.at_least(64, "resolution")
    options.at_least(16, "keypoints", "query_keypoints")
    options.at_least(3, "images")
    options.at_least(2, "partners", "min_views")
    options.at_least(1, "retrieved")
    options.positive("min_parallax_deg")
    options.require(-1 <= config.min_similarity < 1, "min_similarity", "be a cosine")
