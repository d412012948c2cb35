"""Typed configuration of the estimator `gnn_published`. Imports no PyTorch.

The defaults are those of the 7-Scenes release.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gnn_relpose.shared.config import GraphConfig, RetrievalConfig, checks_of
from reloc_core.errors import ConfigError


@dataclass
class PublishedNetworkConfig:
    """The network.

    Attributes:
        channels: width of node and edge vectors: 2048 ("R3") or 1024 ("R2").
        recursions: 3 (7-Scenes) or 2 (Cambridge).
        neighbours: edges from the k nearest nodes in feature space (Cambridge: 4); 0 uses all pairs.
        dropout: before the heads.
        test_dropout: leave dropout on at test time, as the published code does; results then vary.
        weights: official checkpoint (`.pth.tar`) to localize with or to continue from.
        node_weights: ImageNet weights of torchvision's ResNet-34 to start training from.
        scatter: "auto" (torch_scatter where installed), "native" or "torch_scatter".
    """

    channels: int = 2048
    recursions: int = 3
    neighbours: int = 0
    dropout: float = 0.5
    test_dropout: bool = False
    weights: str = ""
    node_weights: str = ""
    scatter: str = "auto"


@dataclass
class PublishedTrainConfig:
    """Training.

    Attributes:
        regime: "joint" (0), "leave_one_out" (1) or "single" (2), see `TrainConfig.regime`.
        epochs: over the training images; 0 with `network.weights` only indexes the scene.
        batch_size: graphs per step.
        learning_rate: of Adam.
        decay_step: epochs after which the learning rate is multiplied by `decay`.
        decay: see `decay_step`.
        weight_decay: of Adam, on everything.
        translation_weight: initial s_t of the loss.
        rotation_weight: initial s_q (`--srq`).
        edge_dropout: chance that a pair of nodes is left out of a step; the released script draws it
            without effect (0), the paper's text says 0.5.
        color_jitter: brightness, contrast and saturation factors uniform in 1 +- this, hue shifted by
            up to 0.4 of it (Cambridge: 0.5).
        checkpoint_seconds: wall time between checkpoints.
        log_every: steps between log entries.
    """

    regime: str = "joint"
    epochs: int = 41
    batch_size: int = 8
    learning_rate: float = 5e-5
    decay_step: int = 20
    decay: float = 0.1
    weight_decay: float = 5e-4
    translation_weight: float = 0.0
    rotation_weight: float = -3.0
    edge_dropout: float = 0.0
    color_jitter: float = 0.0
    checkpoint_seconds: float = 300.0
    log_every: int = 50


def _published_graph() -> GraphConfig:
    return GraphConfig(neighbours=7, period=5, dropout=0.5, random_start=True, spacing=0.0)


@dataclass
class PublishedConfig:
    """Configuration of the estimator `gnn_published`.

    Attributes:
        constants: what the released checkpoints expect: "7scenes/SCENE" (colour statistics of that
            scene; poses in metres) or "cambridge" (fixed colours; normalised world-to-camera
            translations). "" for metric poses and the colours of the mapped images.
        height: length of the shorter side of images in pixels.
        resolution: of the images that retrieval describes.
        retrieval_weights: `netvlad_vgg16.tar`, to rank images as published; "" for NetVLAD on XFeat.
        cross_connect: connect training images only with references of other blocks of ten images.
    """

    constants: str = ""
    height: int = 256
    resolution: int = 320
    retrieval_weights: str = ""
    cross_connect: bool = False
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    graph: GraphConfig = field(default_factory=_published_graph)
    network: PublishedNetworkConfig = field(default_factory=PublishedNetworkConfig)
    train: PublishedTrainConfig = field(default_factory=PublishedTrainConfig)


def check(config: PublishedConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option and what it may be.
    """
    options = checks_of(config)
    options.at_least(1, "train.decay_step")
    options.at_least(0, "network.neighbours", "train.epochs", "train.color_jitter")
    options.at_least(32, "height", "resolution")
    options.share("train.edge_dropout", whole=False)
    if config.train.epochs == 0 and not config.network.weights:
        raise ConfigError(
            "estimator.train.epochs=0 trains nothing: give estimator.network.weights=FILE too."
        )
