"""Typed configuration of the plugin's components. Imports no PyTorch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from reloc_core.checks import Checks
from reloc_core.errors import ConfigError

FIELDS = ("hashgrid", "mlp")
FEATURES = ("xfeat", "dfnet")
REGRESSORS = ("posenet", "dfnet")
GRIDS = ("cells", "published")
MODES = ("align", "pose", "weights")


@dataclass
class ViewConfig:
    """How images are brought to the size at which everything works.

    Attributes:
        resolution: length of the shorter side in pixels.
        stride: pixels per rendered ray along each axis; 8 is XFeat's cell.
        grid: "cells" (rays through the centres of squares of pixels) or "published" (the resampling of
            NeFeS, which its weights need; see `nefes_refine.field.views`). Maps keep it.
        focal: published: of all rays, pixels of the working image; None: as published for
            `scene.constants`, else each camera's own.
    """

    resolution: int = 480
    stride: int = 8
    grid: str = "cells"
    focal: float | None = None


@dataclass
class FieldConfig:
    """The field that renders colour, features and depth.

    Attributes:
        name: "hashgrid" (multi-resolution hash grid with occupancy-guided samples) or "mlp" (the
            published coarse and fine networks).
        levels: hash grid: number of resolutions.
        channels: hash grid: values per entry.
        log2_entries: hash grid: most entries per level, as a power of two.
        base_resolution: hash grid: cells along the longest axis of the scene at the coarsest level.
        finest_resolution: hash grid: the same at the finest level.
        hidden: hash grid: width of the networks.
        colour_channels: hash grid: composited channels that the colour is decoded from.
        feature_channels: hash grid: composited channels that the features are decoded from.
        occupancy: hash grid: cells of the occupancy grid along the longest axis.
        coarse_samples: samples that look for surfaces: of the occupancy grid or the coarse network.
        samples: samples that are composited; with "mlp" in addition to the coarse ones.
        width: mlp: hidden channels.
        histogram_bins: bins of the query's luminance histogram, which sets the exposure.
        histogram_of_image: take it from the pixels of the working image, as published, and not from the
            means of the cells, which lack the darkest and the brightest values.
        transient_at_test: mlp: render the transient part when localizing, as published.
    """

    name: str = "hashgrid"
    levels: int = 6
    channels: int = 4
    log2_entries: int = 17
    base_resolution: int = 16
    finest_resolution: int = 256
    hidden: int = 48
    colour_channels: int = 16
    feature_channels: int = 32
    occupancy: int = 64
    coarse_samples: int = 64
    samples: int = 24
    width: int = 128
    histogram_bins: int = 10
    histogram_of_image: bool = False
    transient_at_test: bool = True


@dataclass
class SceneConfig:
    """The volume that the field covers.

    Attributes:
        constants: published scene whose frames and depth range are used, such as "7scenes_sfm/chess",
            "7scenes_dslam/heads" or "cambridge/ShopFacade"; official weights need those of their
            scene. "" for the files below or to measure the volume.
        world_setup: path of a published `world_setup.json`; "" to measure the volume.
        pose_average: path of the `pose_avg_stats.txt` that belongs to it.
        sfm_frame: whether these two are of the SfM ground truth (no mirroring of the world).
        margin: growth of the measured volume on each side, as a share of its longest side.
    """

    constants: str = ""
    world_setup: str = ""
    pose_average: str = ""
    sfm_frame: bool = False
    margin: float = 0.03


@dataclass
class TrainingConfig:
    """The three stages of the field's training.

    Attributes:
        max_images: train on at most so many images, evenly spread.
        frame_step: train on every so-many-th image of a sequence; None: as published for
            `scene.constants`, else all.
        leave_out: positions, in the list of mapping images sorted by name, of images not to train on;
            None: the bad images of the published scene `scene.constants`, where the list is complete.
        validation_every: every so-many-th image is held out to measure PSNR and feature similarity.
        epochs: the three counts that follow are passes over the images, `images_per_step` at a time,
            as published, and not steps.
        colour_steps: steps of the first stage: colour (and depth).
        feature_steps: steps of the second stage: colour and features.
        fusion_steps: steps of the third stage: colour, features and fusion, on patches of rays.
        rays: rays per step of the first two stages.
        images_per_step: images that the rays of a step come from, equally many of each and none twice,
            as published; 0 draws every ray from any image.
        patches: patches per step of the third stage; with `images_per_step` per image, at places that
            the images share, as published (the fusion network normalises over all of them).
        patch_size: side of a patch in rays.
        learning_rate: at the start of each stage's schedule.
        decay: factor of the learning rate at the end of a schedule.
        restart_schedule: begin learning rate and Adam's moments anew with the second stage, as published.
        feature_weight: of the features' loss in the second stage; the third splits it in halves.
        depth_weight: of the loss on measured depth; 0 ignores depth.
        transient_weight: mlp: of the mean transient density.
        masks: folder of masks named like the images (255 static, 0 dynamic); "" for none.
        checkpoint_seconds: how often an interrupted training can resume from.
    """

    max_images: int = 400
    frame_step: int | None = None
    leave_out: list[int] | None = None
    validation_every: int = 40
    epochs: bool = False
    colour_steps: int = 600
    feature_steps: int = 900
    fusion_steps: int = 200
    rays: int = 2048
    images_per_step: int = 0
    patches: int = 8
    patch_size: int = 16
    learning_rate: float = 1e-2
    decay: float = 0.05
    restart_schedule: bool = False
    feature_weight: float = 0.1
    depth_weight: float = 0.1
    transient_weight: float = 0.01
    masks: str = ""
    checkpoint_seconds: float = 60.0


@dataclass
class RegressorConfig:
    """The absolute pose regressor.

    Attributes:
        name: "posenet" (small network on the frozen features) or "dfnet" (VGG-16 with taps).
        weights: dfnet: path of a published `checkpoint-*.pt` of DFNet that is used as it is; "" trains.
        vgg_weights: dfnet: path of torchvision's `vgg16-*.pth` (ImageNet); "" starts untrained.
        synthetic_views: random views rendered from the field per training image.
        refresh_every: dfnet: epochs after which the random views are drawn anew.
        translation: random views: largest shift per axis, scene units; None: 0.15 of the median depth.
        rotation_deg: random views: largest rotation about each axis.
        box_margin: random views stay within the training positions' box grown by this, scene units;
            None: 0.1 of the median depth.
        frame_step: dfnet: as in `TrainingConfig`.
        epochs: passes over the real and synthetic images, at most.
        patience: dfnet: epochs without a better loss on held-out images after which the learning rate
            is multiplied by 0.95.
        stop_patience: dfnet: the same after which training ends.
        batch: images per step.
        learning_rate: of Adam.
        triplet_margin: dfnet: of the features' triplet loss; a weight of 0 switches it off.
        triplet_weight: dfnet: of the features' triplet loss.
    """

    name: str = "posenet"
    weights: str = ""
    vgg_weights: str = ""
    synthetic_views: float = 4.0
    refresh_every: int = 20
    translation: float | None = None
    rotation_deg: float = 15.0
    box_margin: float | None = None
    frame_step: int | None = None
    epochs: int = 25
    patience: int = 50
    stop_patience: int = 200
    batch: int = 32
    learning_rate: float = 1e-3
    triplet_margin: float = 1.0
    triplet_weight: float = 1.0


@dataclass
class NefesConfig:
    """Options of the estimator `nefes_regressor`, which trains field and regressor.

    Attributes:
        features: network whose features the field learns, "xfeat" or "dfnet".
        feature_weights: dfnet: `checkpoint-*.pt` of another DFNet than the regressor, or a map of this
            estimator that holds one, whose features the field learns; "" for the regressor's own. The
            published numbers of 7-Scenes with SfM poses take that of the original poses.
    """

    features: str = "xfeat"
    feature_weights: str = ""
    view: ViewConfig = dataclasses.field(default_factory=ViewConfig)
    scene: SceneConfig = dataclasses.field(default_factory=SceneConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    regressor: RegressorConfig = dataclasses.field(default_factory=RegressorConfig)


@dataclass
class RefineConfig:
    """Options of the refiner `nefes_refine`.

    Attributes:
        mode: "align" (matching and se(3) feature alignment on rendered depth), "pose" (published:
            Adam on six pose parameters through the field) or "weights" (published: Adam on a copy
            of the regressor's weights).
        iterations: renderings at most.
        match: align: start with matches between rendered and query features.
        starts: align: where the given pose leads to no cost that true poses have, begin from up to so
            many mapped images as well, those most like the query that the pose's covariance admits.
        min_gain: align: a pose is taken only if it lowers the cost by more than this share.
        learning_rate: weights: of Adam.
        learning_rate_rotation: pose: of Adam, radians.
        learning_rate_translation: pose: of Adam, metres.
        verify: pose, weights: keep the best pose seen, and the initial one where PSNR, SSIM or the
            feature cost of the rendering would get worse. "align" always compares its cost.
        verify_ends: verify as published: the answer is the pose after the last update, unless the last
            rendering has a lower PSNR or SSIM than the first, which gives the initial pose.
    """

    mode: str = "align"
    iterations: int = 6
    match: bool = True
    starts: int = 4
    min_gain: float = 0.01
    learning_rate: float = 1e-5
    learning_rate_rotation: float = 0.0087
    learning_rate_translation: float = 0.01
    verify: bool = True
    verify_ends: bool = False


def check(config: NefesConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config)
    options.one_of("features", FEATURES)
    options.one_of("view.grid", GRIDS)
    options.one_of("field.name", FIELDS)
    options.one_of("regressor.name", REGRESSORS)
    if (config.features == "dfnet") != (config.regressor.name == "dfnet"):
        raise ConfigError(
            "estimator.features=dfnet and estimator.regressor.name=dfnet are one network: choose both "
            "or neither."
        )
    if config.features == "xfeat" and config.view.stride != 8:
        raise ConfigError("estimator.view.stride must be 8 with XFeat's features.")
    if config.features == "xfeat" and config.view.grid != "cells":
        raise ConfigError("estimator.view.grid must be cells with XFeat's features.")
    options.positive("view.focal")
    options.at_least(
        1, "view.resolution", "view.stride", "field.levels", "field.channels", "field.log2_entries",
        "field.samples", "field.coarse_samples", "field.occupancy", "regressor.batch",
    )  # fmt: skip
    options.positive("training.max_images", "training.rays", "training.patches",
                     "training.patch_size", "training.learning_rate", "training.decay")  # fmt: skip
    options.at_least(1, "training.frame_step", "regressor.frame_step")
    options.at_least(
        0, "training.colour_steps", "training.feature_steps", "training.fusion_steps",
        "training.depth_weight", "training.feature_weight", "regressor.synthetic_views",
        "regressor.translation", "regressor.rotation_deg", "regressor.box_margin", "regressor.epochs",
    )  # fmt: skip
    if config.training.epochs and not config.training.images_per_step:
        raise ConfigError(
            "estimator.training.epochs=true needs estimator.training.images_per_step of 1 or more."
        )
    if config.feature_weights and config.features != "dfnet":
        raise ConfigError(
            "estimator.feature_weights are of a DFNet: set estimator.features=dfnet too."
        )
    if config.scene.constants and config.scene.world_setup:
        raise ConfigError(
            "estimator.scene.constants and estimator.scene.world_setup say the same: give one of them."
        )
    if bool(config.scene.world_setup) != bool(config.scene.pose_average):
        raise ConfigError(
            "estimator.scene.world_setup and estimator.scene.pose_average belong together: give both."
        )


def check_refiner(config: RefineConfig) -> None:
    """Refuse values of the refiner's options that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config, "nefes_refine.")
    options.one_of("mode", MODES)
    options.at_least(1, "iterations")
    options.at_least(0, "min_gain", "starts")
    options.positive("learning_rate", "learning_rate_rotation", "learning_rate_translation")
