"""Typed configuration of the estimator `gnn_regressor`. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from gnn_relpose.shared.config import (
    INDEX_KINDS,
    REGIMES,
    SCATTER,
    GraphConfig,
    RetrievalConfig,
    check_channels,
)
from reloc_core.checks import Checks
from reloc_core.errors import ConfigError


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
class TrainConfig:
    """The training loop.

    Attributes:
        regime: "joint" (the mapped scene and `extra_datasets`), "leave_one_out" (only
            `extra_datasets`; the mapped scene is only indexed) or "single" (only the mapped scene).
        warm_start: map directory of this method whose network training starts from.
        iterations: optimizer steps; 0 with `warm_start` only indexes the scene.
        batch_size: graphs per step.
        learning_rate: peak of Adam's one-cycle schedule.
        weight_decay: of Adam.
        translation_weight: initial s_t of the loss exp(-s_t) |dt| + s_t + exp(-s_q) |dq| + s_q.
        rotation_weight: initial s_q.
        validation: share of the mapped images, in blocks of their sequence, that are not trained on; they
            tell how far the network is to be believed.
        checkpoint_seconds: wall time between checkpoints.
        log_every: iterations between log entries.
    """

    regime: str = "joint"
    warm_start: str = ""
    iterations: int = 2000
    batch_size: int = 8
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-3
    translation_weight: float = -1.0
    rotation_weight: float = -2.0
    validation: float = 0.1
    checkpoint_seconds: float = 30.0
    log_every: int = 50


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
    train: TrainConfig = field(default_factory=TrainConfig)


def check(config: CompactConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option and what it may be.
    """
    options = Checks(config)
    options.one_of("train.regime", REGIMES)
    options.one_of("retrieval.index", INDEX_KINDS)
    options.one_of("network.scatter", SCATTER)
    options.at_least(64, "resolution")
    options.at_least(
        1, "retrieval.clusters", "retrieval.pool", "graph.neighbours", "graph.period",
        "network.recursions", "train.batch_size", "train.log_every", "augment.most",
    )  # fmt: skip
    options.at_least(
        0, "graph.spacing", "augment.views", "augment.tilt_deg", "augment.roll_deg", "augment.noise",
        "train.iterations", "train.weight_decay", "train.checkpoint_seconds",
    )  # fmt: skip
    options.share(
        "graph.dropout", "network.dropout", "augment.blank", "train.validation", whole=False
    )
    options.positive("train.learning_rate")
    check_channels(config.network.channels)
    if config.train.iterations == 0 and not config.train.warm_start:
        raise ConfigError(
            "estimator.train.iterations=0 trains nothing: give estimator.train.warm_start=MAP too."
        )
