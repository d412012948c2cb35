"""Typed configurations of the plugin's estimators. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reloc_core.errors import ConfigError, did_you_mean

POLICIES = ("likelier", "keep_prior", "use_measurement", "invalidate", "off")
PROCESSES = ("xfeat",)


@dataclass
class MemoryConfig:
    """Options of `MemoryEstimator`, the per-frame measurement of the compact preset.

    Attributes:
        resolution: length of the images' shorter side in pixels when they are described.
        keyframes: mapping images kept, spread over poses.
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
    """

    resolution: int = 360
    keyframes: int = 140
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


@dataclass
class MeasurementConfig:
    """Which estimator measures scene coordinates in single frames.

    Attributes:
        name: a registered estimator whose evidence is dense scene coordinates on a grid.
        options: its options.
        default_std: metres; standard deviation where its evidence has no variances.
    """

    name: str = "kfnet_memory"
    options: dict[str, Any] = field(default_factory=dict)
    default_std: float = 0.1


@dataclass
class ProcessConfig:
    """How scene coordinates move from one frame to the next.

    Attributes:
        name: "xfeat", a cost volume on frozen XFeat features.
        resolution: length of the images' shorter side in pixels when they are described.
        radius: cells that the flow can reach along an axis ("xfeat").
        refine: refine the flow on the images by dense inverse search ("xfeat").
        min_std: metres; smallest process noise.
        iterations: training steps of stage 2; pairs of consecutive frames.
        learning_rate: of Adam.
        halve_every: steps after which the learning rate is halved, continuously.
        smooth_weight: of the edge-aware smoothness of the prior.
        loss_clamp: largest loss of a cell; larger ones give no gradient.
        noise: noise added to the true state in training: standard deviations from this interval.
    """

    name: str = "xfeat"
    resolution: int = 360
    radius: int = 4
    refine: bool = True
    min_std: float = 0.002
    iterations: int = 120
    learning_rate: float = 0.02
    halve_every: int = 40
    smooth_weight: float = 0.0
    loss_clamp: float = -1.0
    noise: list[float] = field(default_factory=lambda: [0.005, 0.01])


@dataclass
class JointConfig:
    """Stage 3: measurement and process noise trained through the unrolled filter.

    Attributes:
        iterations: training steps.
        window: consecutive frames that the filter is unrolled over.
        frames: mapping images in stretches that training and calibration use.
        stretches: number of stretches.
        weights: of the losses of measurement, prior and posterior.
        loss_clamp: largest loss of a cell.
        learning_rate: of Adam, falling to zero.
        held_out: share of the mapping images kept from a measurement that cannot leave images out
            by itself, for calibration.
    """

    iterations: int = 100
    window: int = 12
    frames: int = 240
    stretches: int = 4
    weights: list[float] = field(default_factory=lambda: [0.2, 0.2, 0.6])
    loss_clamp: float = -4.0
    learning_rate: float = 0.01
    held_out: float = 0.15


@dataclass
class FilterConfig:
    """The Kalman filter.

    Attributes:
        enabled: False for the measurement alone.
        policy: what happens to a cell whose innovation fails the chi-square test: "likelier" (prior
            or measurement, whichever has more support), "keep_prior" (the
            prior stays, its variance grows), "use_measurement", "invalidate" (no information), "off".
        threshold: of the normalised innovation squared; 7.815 is the 5 % point of chi-square with
            three degrees of freedom.
        rejected_growth: factor on the variance of a prior that was kept against a measurement.
        memory: factor on a cell's support per frame ("likelier").
        contest: share of the loser's support that the winner of a disagreement loses ("likelier").
        max_support: largest support of a cell ("likelier").
        process_factor: factor on the learned process noise: errors of the flow last for several
            frames, which the filter takes for independent.
        target_nis: mean normalised innovation squared of accepted cells that training calibrates to.
        common_gain: share of the error that all cells share which is corrected per frame.
        fading: factor on the prior's variance, at least 1; keeps old errors from being trusted.
        floor: smallest posterior variance as a share of the measurement's.
        min_overlap: smallest share of cells that must be found again in the last frame; with less
            the filter starts anew, as after a cut.
        lost_share: when more of the tested cells fail than this, the whole measurement is doubted.
        patience: frames for which a doubted measurement is ignored before the filter starts anew.
        max_gap: seconds between frames beyond which the filter starts anew.
    """

    enabled: bool = True
    policy: str = "likelier"
    threshold: float = 7.815
    rejected_growth: float = 1.3
    memory: float = 0.95
    contest: float = 0.5
    max_support: float = 30.0
    process_factor: float = 3.0
    target_nis: float = 2.3
    common_gain: float = 0.3
    fading: float = 1.02
    floor: float = 0.0
    min_overlap: float = 0.5
    lost_share: float = 0.8
    patience: int = 2
    max_gap: float = 0.5


@dataclass
class TemporalConfig:
    """Options of `TemporalEstimator`."""

    measurement: MeasurementConfig = field(default_factory=MeasurementConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)


def check_memory(config: MemoryConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    _at_least("estimator", config, {
        "resolution": 64, "keyframes": 2, "keys": 0, "retrieve": 1, "hidden": 1, "iterations": 0,
        "train_frames": 1, "exclusion": 0, "redundancy": 1,
    })  # fmt: skip
    _positive("estimator", config, ("sharpness", "mode_radius", "learning_rate", "min_std"))


def check_temporal(config: TemporalConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    _choice("estimator.process.name", config.process.name, PROCESSES)
    _choice("estimator.filter.policy", config.filter.policy, POLICIES)
    _at_least("estimator.process", config.process, {
        "resolution": 64, "radius": 1, "iterations": 0, "halve_every": 1,
        "smooth_weight": 0,
    })  # fmt: skip
    _at_least("estimator.joint", config.joint, {
        "iterations": 0, "window": 2, "frames": 4, "stretches": 1,
    })  # fmt: skip
    _at_least("estimator.filter", config.filter, {
        "rejected_growth": 1, "fading": 1, "floor": 0, "min_overlap": 0, "patience": 0,
    })  # fmt: skip
    _positive("estimator.measurement", config.measurement, ("default_std",))
    _positive("estimator.process", config.process, ("min_std", "learning_rate"))
    _positive("estimator.joint", config.joint, ("learning_rate",))
    _positive(
        "estimator.filter",
        config.filter,
        ("threshold", "lost_share", "max_gap", "process_factor", "target_nis"),
    )
    if not 0 < config.joint.held_out < 0.9:
        raise ConfigError("estimator.joint.held_out must be between 0 and 0.9.")
    if len(config.joint.weights) != 3 or min(config.joint.weights) < 0:
        raise ConfigError("estimator.joint.weights takes three numbers that are not negative.")
    if (
        len(config.process.noise) != 2
        or not 0 <= config.process.noise[0] <= config.process.noise[1]
    ):
        raise ConfigError("estimator.process.noise takes two standard deviations, smaller first.")


def _at_least(where: str, config: Any, least: dict[str, float]) -> None:
    for name, bound in least.items():
        value = getattr(config, name)
        if not value >= bound:
            raise ConfigError(f"{where}.{name} must be at least {bound}, got {value}.")


def _positive(where: str, config: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise ConfigError(f"{where}.{name} must be positive, got {value}.")


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is '{value}'.{did_you_mean(value, known)}")
