"""Typed configuration of the estimator `gnn_regressor`. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from gnn_relpose.shared.config import (
    GraphConfig,
    RetrievalConfig,
    TrainConfig,
    check_iterations,
    checks_of,
)


@dataclass
class NetworkConfig:
    """The graph network.

    Attributes:
        channels: width of node and edge vectors, a multiple of 8.
        recursions: rounds of message passing (published: 3 indoors, 2 outdoors).
        message_passing: off, every edge is on its own; for comparison.
        dropout: before the heads, in training.
        scatter: "auto" (torch_scatter where installed), "native" or "torch_scatter".
    """

    channels: int = 128
    recursions: int = 3
    message_passing: bool = True
    dropout: float = 0.1
    scatter: str = "auto"


@dataclass
class AugmentConfig:
    """Augmentation of training images.

    Attributes:
        views: turned copies of every image: what the camera would have seen, exactly.
        tilt_deg: turns about the horizontal and vertical axis, uniform in +- this.
        roll_deg: the same about the optical axis.
        noise: deviation of the noise on features.
        blank: share of images in which a rectangle is blanked.
        most: feature maps that are kept in memory at most; large datasets get fewer copies.
    """

    views: int = 2
    tilt_deg: float = 12.0
    roll_deg: float = 10.0
    noise: float = 0.05
    blank: float = 0.3
    most: int = 12_000


@dataclass
class CompactTrainConfig(TrainConfig):
    """The training loop.

    Attributes:
        validation: share of the mapped images, in blocks of their sequence, that are not trained on; they
            tell how far the network is to be believed.
    """

    validation: float = 0.1


def _graph() -> GraphConfig:
    return GraphConfig(neighbours=7, spacing=0.06)


@dataclass
class CompactConfig:
    """Configuration of the estimator `gnn_regressor`.

    Attributes:
        resolution: length of the shorter side of described images in pixels.
    """

    resolution: int = 240
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    graph: GraphConfig = field(default_factory=_graph)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: CompactTrainConfig = field(default_factory=CompactTrainConfig)


def check(config: CompactConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option and what it may be.
    """
    options = checks_of(config)
    options.at_least(64, "resolution")
    options.at_least(1, "augment.most")
    options.at_least(
        0, "augment.views", "augment.tilt_deg", "augment.roll_deg", "augment.noise"
    )  # fmt: skip
    options.share("augment.blank", "train.validation", whole=False)
    check_iterations(options, config.train)
