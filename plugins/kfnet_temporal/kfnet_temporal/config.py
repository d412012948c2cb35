"""Typed configuration of the filter over a sequence. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kfnet_temporal.measurement_config import LabelConfig, check_labels
from reloc_core.checks import Checks

POLICIES = ("likelier", "keep_prior", "use_measurement", "invalidate", "off")
PROCESSES = ("narrow", "xfeat", "oflownet")


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
        name: "xfeat", a cost volume on frozen XFeat features; "oflownet", the published network; or
            "narrow", the same on XFeat features and with all widths divided by `divide`.
        resolution: length of the images' shorter side in pixels when they are described.
        divide: see there.
        radius: cells that the flow can reach along an axis ("xfeat").
        refine: refine the flow on the images by dense inverse search ("xfeat").
        min_std: metres; smallest process noise.
        iterations: training steps of stage 2; pairs of consecutive frames.
        learning_rate: of Adam.
        halve_every: steps after which the learning rate is halved, continuously.
        smooth_weight: of the edge-aware smoothness of the prior.
        loss_clamp: largest loss of a cell; larger ones give no gradient.
        noise: noise added to the true state in training: standard deviations from this interval.
        photometric_weight: of the difference of the images along the flow ("oflownet").
        weight_decay: of all parameters ("oflownet").
        augment: turn and recolour the images ("oflownet").
        weights: prefix of a TensorFlow checkpoint to start from ("oflownet"); "" for random ones.
    """

    name: str = "xfeat"
    resolution: int = 360
    divide: int = 2
    radius: int = 4
    refine: bool = True
    min_std: float = 0.002
    iterations: int = 120
    learning_rate: float = 0.02
    halve_every: int = 40
    smooth_weight: float = 0.0
    loss_clamp: float = -1.0
    noise: list[float] = field(default_factory=lambda: [0.005, 0.01])
    photometric_weight: float = 0.0
    weight_decay: float = 0.0
    augment: bool = False
    weights: str = ""

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return self.learning_rate * 0.5 ** (step / self.halve_every)


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
        learning_rate: of Adam.
        halve_every: steps after which it is halved, continuously; 0 lets it fall to zero instead.
        smooth_weight: of the edge-aware smoothness of each of the three (published networks).
        fix_process: train the measurement alone (published networks).
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
    halve_every: int = 0
    smooth_weight: float = 0.0
    fix_process: bool = False
    held_out: float = 0.15

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if self.halve_every:
            return self.learning_rate * 0.5 ** (step / self.halve_every)
        return self.learning_rate * (1 - step / max(self.iterations, 1))


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
    """Options of `TemporalEstimator`.

    Attributes:
        published_scene: scene of 7-Scenes whose published step counts take the place of those of the
            measurement and of `joint`; "" for none.
        export: folder for coordinate and flow maps of every localized frame; "" writes none.
    """

    measurement: MeasurementConfig = field(default_factory=MeasurementConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    published_scene: str = ""
    export: str = ""


def check_temporal(config: TemporalConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config)
    options.positive("measurement.default_std")
    _check_process(options, config.process)
    _check_joint(options, config.joint)
    _check_filter(options)
    check_labels(options, config.labels)


def _check_process(options: Checks, config: ProcessConfig) -> None:
    options.one_of("process.name", PROCESSES)
    options.at_least(32, "process.resolution")
    options.at_least(1, "process.radius", "process.halve_every")
    options.require(config.divide in (1, 2, 4, 8), "process.divide", "be 1, 2, 4 or 8")
    options.not_negative(
        "process.iterations",
        "process.smooth_weight",
        "process.photometric_weight",
        "process.weight_decay",
    )
    options.positive("process.min_std", "process.learning_rate")
    noise = config.noise
    options.require(
        len(noise) == 2 and 0 <= noise[0] <= noise[1],
        "process.noise",
        "be two standard deviations, smaller first",
    )


def _check_joint(options: Checks, config: JointConfig) -> None:
    options.at_least(4, "joint.frames")
    options.at_least(2, "joint.window")
    options.at_least(1, "joint.stretches")
    options.not_negative("joint.iterations", "joint.halve_every", "joint.smooth_weight")
    options.positive("joint.learning_rate")
    options.require(
        0 < config.held_out < 0.9, "joint.held_out", "lie between 0 and 0.9, both excluded"
    )
    options.require(
        len(config.weights) == 3 and min(config.weights) >= 0,
        "joint.weights",
        "be three numbers that are not negative",
    )


def _check_filter(options: Checks) -> None:
    options.one_of("filter.policy", POLICIES)
    options.at_least(1, "filter.rejected_growth", "filter.fading")
    options.not_negative("filter.floor", "filter.patience")
    options.share(
        "filter.common_gain", "filter.contest", "filter.lost_share", "filter.memory",
        "filter.min_overlap",
    )  # fmt: skip
    options.positive(
        "filter.threshold", "filter.lost_share", "filter.max_gap", "filter.max_support",
        "filter.process_factor", "filter.target_nis",
    )  # fmt: skip
