"""Typed configuration of `SoftmaxLandmarks`. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from reloc_core.checks import Checks


@dataclass
class KeypointConfig:
    """XFeat key points.

    Attributes:
        resolution: length of the images' shorter side in pixels when they are described.
        mapping: key points per mapping image.
        query: key points per query; more is surer and slower.
        batch: mapping images described together.
    """

    resolution: int = 480
    mapping: int = 768
    query: int = 768
    batch: int = 4


@dataclass
class TriangulationConfig:
    """Scene points from the mapping images' key points and known poses.

    Attributes:
        max_images: at most so many mapping images are used, spread over poses.
        near: images that each image is matched with because they look most similar.
        spread: more images that it is matched with, similar in look and spread in pose.
        max_angle_deg: largest angle between viewing directions of matched images.
        reach: largest distance of their cameras, in depths of the scene; 0 for any.
        min_similarity: least cosine of matched descriptors.
        max_epipolar_px: largest epipolar error of a match.
        max_error_px: largest angle between a point and a ray that observes it.
        min_views: images that must observe a point.
        min_parallax_deg: angle that the rays of a point must span.
    """

    max_images: int = 10_000
    near: int = 2
    spread: int = 6
    max_angle_deg: float = 50.0
    reach: float = 1.5
    min_similarity: float = 0.75
    max_epipolar_px: float = 2.5
    max_error_px: float = 3.0
    min_views: int = 3
    min_parallax_deg: float = 2.0


@dataclass
class DecoderConfig:
    """The position decoder: scene point = sum over landmarks of softmax(logits) * position.

    Attributes:
        landmarks: most landmarks kept, the best observed ones of every image; 0 for 16,384, or 25 per
            image if that is more.
        candidates: a query is compared with the landmarks of the places most like it that have so many
            in all; 0 for the whole map.
        sharpness: factor from cosine to logit.
        top: landmarks that take part in the softmax of a key point.
        mode_radius: landmarks nearer to the best one than this share of their distance to the
            mapping cameras are averaged with it; the others count against its confidence.
        iterations: steps of training the landmarks' keys to be told apart; 0 keeps the means of
            their descriptors.
        batch_size: key points per step.
        negatives: other landmarks per step.
        learning_rate: of Adam, falling to zero.
        redundancy: matches that are worth one independent match in the pose's covariance, as their
            errors are shared (neighbours see the same landmarks). Set between what held-out frames
            of a real room (9, its ground truth's own error included) and the synthetic room (4)
            ask for.
        noise_std: norm of the noise added to descriptors in training, relative to theirs.
    """

    landmarks: int = 0
    candidates: int = 4096
    sharpness: float = 40.0
    top: int = 8
    mode_radius: float = 0.025
    iterations: int = 300
    batch_size: int = 1024
    negatives: int = 3072
    learning_rate: float = 0.004
    redundancy: float = 8.0
    noise_std: float = 0.0


@dataclass
class SoftmaxConfig:
    """Options of `SoftmaxLandmarks`."""

    keypoints: KeypointConfig = field(default_factory=KeypointConfig)
    triangulation: TriangulationConfig = field(default_factory=TriangulationConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


def check(config: SoftmaxConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config)
    options.positive(
        "keypoints.resolution", "keypoints.mapping", "keypoints.query", "keypoints.batch",
        "triangulation.max_error_px", "triangulation.max_epipolar_px", "decoder.sharpness",
        "decoder.top", "decoder.batch_size",
    )  # fmt: skip
    options.at_least(3, "triangulation.max_images")
    options.at_least(2, "triangulation.min_views")
    options.at_least(1, "decoder.redundancy")
    options.not_negative(
        "triangulation.near", "triangulation.spread", "triangulation.reach", "decoder.landmarks",
        "decoder.candidates", "decoder.iterations", "decoder.negatives", "decoder.noise_std",
        "decoder.mode_radius",
    )  # fmt: skip
