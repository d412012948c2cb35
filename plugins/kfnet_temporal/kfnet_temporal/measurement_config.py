"""Typed configurations of the measurements: estimators of single frames. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

from reloc_core.checks import Checks

SOURCES = ("auto", "depth", "stereo", "files")


@dataclass
class LabelConfig:
    """Where the scene coordinates come from that everything is learned from.

    Attributes:
        source: "auto" (depth where there is some, else "stereo"), "depth", "stereo" (the mapping
            images and their poses alone) or "files" (`label_list.txt`).
        folder: holds `image_list.txt` and `label_list.txt` ("files").
        resolution: shorter side in pixels of the images that are compared ("stereo").
        assumed_distance: metres; where everything is put when the camera moves too little to tell
            ("stereo").
    """

    source: str = "auto"
    folder: str = ""
    resolution: int = 360
    assumed_distance: float = 3.0


@dataclass
class MemoryConfig:
    """Options of `MemoryEstimator`, the per-frame measurement of the compact preset.

    Attributes:
        resolution: length of the images' shorter side in pixels when they are described.
        keyframes: mapping images kept, spread evenly over all; more where that is less than one in
            `keyframe_every`.
        keyframe_every: see there.
        keys: cells kept per key frame, those on a regular pattern first; 0 for all.
        retrieve: key frames that a query is matched with.
        sharpness: factor from cosine to logit.
        mode_radius: metres; candidates nearer than this to the best supported one are averaged.
        hidden: width of the network that predicts the standard deviation.
        iterations: training steps of that network.
        train_frames: mapping images that it learns from.
        learning_rate: of Adam, falling to zero.
        exclusion: mapping images nearer than this in the sequence are no key frames of a training
            image, so that it learns from errors as they are on unseen images.
        min_std: metres; smallest standard deviation.
        redundancy: cells that are worth one independent one in the pose's covariance.
        labels: where the key frames' scene coordinates come from.
    """

    resolution: int = 360
    keyframes: int = 140
    keyframe_every: int = 10
    keys: int = 900
    retrieve: int = 6
    sharpness: float = 30.0
    mode_radius: float = 0.15
    hidden: int = 32
    iterations: int = 400
    train_frames: int = 100
    learning_rate: float = 0.01
    exclusion: int = 40
    min_std: float = 0.01
    redundancy: float = 10.0
    labels: LabelConfig = field(default_factory=LabelConfig)


@dataclass
class NarrowConfig:
    """Options of `NarrowEstimator`, the measurement of the compact preset; stage 1 of its training.

    Attributes:
        resolution: length of the images' shorter side in pixels.
        channels: width of the network.
        blocks: residual pairs of layers.
        iterations: training steps.
        batch: cells per step.
        learning_rate: of AdamW, falling to zero.
        weight_decay: of all parameters.
        augment: learn from one turned, zoomed and recoloured copy of each image too.
        redundancy: cells that are worth one independent one in the pose's covariance.
        labels: where the scene coordinates come from.
    """

    resolution: int = 360
    channels: int = 256
    blocks: int = 2
    iterations: int = 1500
    batch: int = 768
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    augment: bool = False
    redundancy: float = 10.0
    labels: LabelConfig = field(default_factory=LabelConfig)


@dataclass
class ScoordnetConfig:
    """Options of `ScoordnetEstimator`, the published measurement; stage 1 of the training.

    Attributes:
        resolution: length of the images' shorter side in pixels.
        weights: prefix of a TensorFlow checkpoint to start from; "" for random ones.
        transform: `transform.txt` of the normalised scene frame; "" for the principal axes of the
            labels. Needed with published weights.
        iterations: training steps.
        batch: images per step.
        learning_rate: of Adam.
        halve_every: steps after which the learning rate is halved, continuously.
        weight_decay: of all parameters.
        augment: turn, zoom and recolour the images.
        labels: where the scene coordinates come from.
    """

    resolution: int = 480
    weights: str = ""
    transform: str = ""
    iterations: int = 500_000
    batch: int = 4
    learning_rate: float = 1e-4
    halve_every: int = 100_000
    weight_decay: float = 1e-4
    augment: bool = True
    labels: LabelConfig = field(default_factory=LabelConfig)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return self.learning_rate * 0.5 ** (step / self.halve_every)


def check_memory(config: MemoryConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config)
    options.at_least(64, "resolution")
    options.at_least(2, "keyframes")
    options.at_least(1, "keyframe_every", "retrieve", "hidden", "train_frames", "redundancy")
    options.not_negative("keys", "iterations", "exclusion")
    options.positive("sharpness", "mode_radius", "learning_rate", "min_std")
    check_labels(options, config.labels)


def check_narrow(config: NarrowConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config)
    options.at_least(64, "resolution")
    options.at_least(1, "channels", "batch", "redundancy")
    options.not_negative("blocks", "iterations", "weight_decay")
    options.positive("learning_rate")
    check_labels(options, config.labels)


def check_scoordnet(config: ScoordnetConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config)
    options.at_least(32, "resolution")
    options.at_least(1, "batch", "halve_every")
    options.not_negative("iterations", "weight_decay")
    options.positive("learning_rate")
    check_labels(options, config.labels)


def check_labels(options: Checks, config: LabelConfig) -> None:
    """Refuse values of `labels` that make no sense; see `check_memory`."""
    options.one_of("labels.source", SOURCES)
    options.at_least(64, "labels.resolution")
    options.positive("labels.assumed_distance")
    options.require(
        config.source != "files" or bool(config.folder),
        "labels.folder",
        "name the folder of label_list.txt when labels.source is files",
    )
