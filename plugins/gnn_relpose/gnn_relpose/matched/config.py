"""Typed configuration of the estimator `gnn_matched`. Imports no PyTorch."""

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
class ImageConfig:
    """How images are described.

    Attributes:
        resolution: length of the shorter side in pixels.
        cells: cells of a reference that are matched, spread evenly over it.
    """

    resolution: int = 320
    cells: int = 300


@dataclass
class DepthConfig:
    """Triangulation of the references' cells from each other.

    Attributes:
        views: other references that each one is triangulated with.
        pool: best-ranked references that they are chosen from, far apart from each other.
        max_angle_deg: larger angles between the views are not used.
    """

    views: int = 8
    pool: int = 40
    max_angle_deg: float = 45.0


@dataclass
class NetworkConfig:
    """The graph network.

    Attributes:
        channels: width of node and edge vectors, a multiple of 8.
        recursions: rounds of message passing (published: 3 indoors, 2 outdoors).
        message_passing: off, every edge is on its own; for comparison.
        alignment_steps: steps of the weighted alignment that ends every round; 0 leaves the pose
            that the edge vector gives.
        dropout: on edge vectors, in training.
        scatter: "auto" (torch_scatter where installed), "native" or "torch_scatter".
    """

    channels: int = 96
    recursions: int = 2
    message_passing: bool = True
    alignment_steps: int = 3
    dropout: float = 0.1
    scatter: str = "auto"


@dataclass
class AugmentConfig:
    """Augmentation of training graphs.

    Attributes:
        roll_deg: rotation of the query about its optical axis, uniform in +- this.
        tilt_deg: the same about its other axes.
        mirror: mirror half of the graphs.
        cell_dropout: cells of an edge that are hidden, uniform in 0 .. this.
        edge_dropout: chance that a pair of nodes exchanges no messages (published: 0.5).
        negatives: share of edges whose matches are shuffled, so that bad edges are recognised.
    """

    roll_deg: float = 20.0
    tilt_deg: float = 10.0
    mirror: bool = True
    cell_dropout: float = 0.5
    edge_dropout: float = 0.2
    negatives: float = 0.1


@dataclass
class MatchedTrainConfig(TrainConfig):
    """The training loop.

    Attributes:
        candidates: references per training query that graphs are drawn from.
    """

    iterations: int = 300
    batch_size: int = 12
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    translation_weight: float = -2.0
    rotation_weight: float = -3.0
    candidates: int = 14


@dataclass
class MatchedConfig:
    """Configuration of the estimator `gnn_matched`.

    Attributes:
        min_similarity: a query whose best reference is less similar than this share of what is usual
            among the references has no good neighbour; 0 accepts all.
    """

    image: ImageConfig = field(default_factory=ImageConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: MatchedTrainConfig = field(default_factory=MatchedTrainConfig)
    min_similarity: float = 0.3


def check(config: MatchedConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option and what it may be.
    """
    options = checks_of(config)
    options.at_least(1, "image.cells", "depth.views", "depth.pool", "train.candidates")
    options.at_least(64, "image.resolution")
    options.at_least(
        0, "network.alignment_steps", "augment.roll_deg", "augment.tilt_deg", "min_similarity"
    )
    options.share("augment.cell_dropout", "augment.edge_dropout", "augment.negatives", whole=False)
    check_iterations(options, config.train)
