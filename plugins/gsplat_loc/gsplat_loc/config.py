"""Typed configuration of the estimator and the refiner `gsplat_loc`. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from reloc_core.checks import Checks
from reloc_core.errors import ConfigError, did_you_mean

SOURCES = ("auto", "depth", "sfm", "points", "triangulate", "random", "ply")
FEATURES = ("average", "blend", "none")
TARGETS = ("anchors", "gaussians", "all")
STAGES = ("photometric", "keypoints", "features", "warp")


@dataclass
class ImageConfig:
    """What training sees.

    Attributes:
        resolution: shorter side of the training images in pixels; 0 leaves them as they are.
        max_images: at most so many mapping images are used, evenly spread.
        cache_mb: images are kept in memory up to this size and read again beyond it.
    """

    resolution: int = 240
    max_images: int = 1000
    cache_mb: int = 1500


@dataclass
class InitConfig:
    """Where the first Gaussians come from.

    Attributes:
        source: "depth" (RGB-D), "points" (COLMAP model or point cloud), "triangulate" (key points
            matched between the mapping images), "random", "ply" (a trained 3DGS file); "sfm": points
            beside the images, else triangulated; "auto": depth, else as "sfm".
        path: of the COLMAP model folder, or the PLY file; "" looks beside the images.
        count: at most so many Gaussians to start with.
        opacity: initial opacity.
        frames: images whose depth is lifted, evenly spread.
        min_points: fewer points than this are refused.
        random_depth: nearest and farthest depth of random Gaussians along the viewing rays, scene
            units; both 0 takes multiples of the spread of the cameras.
    """

    source: str = "auto"
    path: str = ""
    count: int = 60_000
    opacity: float = 0.5
    frames: int = 200
    min_points: int = 100
    random_depth: list[float] = field(default_factory=lambda: [0.0, 0.0])


@dataclass
class GaussianConfig:
    """Form of the field.

    Attributes:
        sh_degree: of the spherical harmonics of colour, 0..3.
        sh_interval: iterations after which the degree in use rises by one.
        max_gaussians: densification stops at this number; 0 for no limit.
        white_background: render over white instead of black.
    """

    sh_degree: int = 1
    sh_interval: int = 300
    max_gaussians: int = 100_000
    white_background: bool = False


@dataclass
class TrainConfig:
    """Training of geometry and colour.

    Attributes:
        iterations: optimizer steps, one image each.
        per_image: no more steps than this for each image; the whole schedule shrinks with it. 0 for no
            such limit.
        half_resolution: share of the iterations, from the start, at half the resolution.
        lambda_dssim: weight of 1 - SSIM; that of L1 is 1 minus it.
        lambda_depth: weight of the relative depth error where depth is measured.
        position_lr_init: learning rate of positions, times the scene's extent.
        position_lr_final: the same at the end of the schedule.
        position_lr_max_steps: length of the schedule; 0 for `iterations`.
        feature_lr: of the constant colour coefficients; the others get a twentieth.
        opacity_lr: of opacity logits.
        scaling_lr: of logarithmic scales.
        rotation_lr: of quaternions.
        checkpoint_seconds: wall time between checkpoints.
        validation: images held out for the reported PSNR: every n-th; 0 for none.
        log_every: iterations between log entries.
    """

    iterations: int = 2000
    per_image: int = 50
    half_resolution: float = 0.5
    lambda_dssim: float = 0.2
    lambda_depth: float = 0.1
    position_lr_init: float = 1.6e-4
    position_lr_final: float = 1.6e-6
    position_lr_max_steps: int = 0
    feature_lr: float = 2.5e-3
    opacity_lr: float = 0.05
    scaling_lr: float = 5e-3
    rotation_lr: float = 1e-3
    checkpoint_seconds: float = 30.0
    validation: int = 0
    log_every: int = 100


@dataclass
class DensifyConfig:
    """Adaptive density control (Kerbl et al., 3D Gaussian Splatting, 2023).

    Attributes:
        interval: iterations between rounds; 0 switches it off.
        start: no round before this iteration.
        stop: none from this iteration on.
        grad_threshold: mean norm of the gradient of the image position, in units of half the image.
        percent_dense: larger Gaussians than this share of the extent are split, others cloned.
        opacity_reset_interval: iterations between resets of the opacity to 0.01; 0 for none.
        min_opacity: fainter Gaussians are removed.
        max_scale: larger ones than this share of the extent are removed; 0 for no limit.
        scale_pruning_start: iteration from which `max_scale` holds.
    """

    interval: int = 100
    start: int = 300
    stop: int = 1500
    grad_threshold: float = 2e-4
    percent_dense: float = 0.01
    opacity_reset_interval: int = 0
    min_opacity: float = 0.005
    max_scale: float = 0.1
    scale_pruning_start: int = 1000


@dataclass
class FeatureConfig:
    """Descriptors of the Gaussians.

    Attributes:
        mode: "average" gives every Gaussian the mean of the XFeat descriptors it was seen with,
            weighted by its share in each pixel; "blend" trains them by rendering, as published;
            "none" leaves them out (then only anchors can be matched).
        images: images that are described, evenly spread.
        resolution: shorter side of the images XFeat sees.
        cache_mb: "blend" keeps descriptor maps up to this size and computes them again beyond it.
        iterations: steps of "blend".
        learning_rate: of "blend" (the published semantic_feature_lr).
        min_views: Gaussians seen in fewer images carry no trusted descriptor.
        min_agreement: least length of the mean of the unit descriptors, 1 where all views agree.
        min_opacity: fainter Gaussians are not matched.
        max_scale: larger Gaussians than this share of the extent are not matched.
        selected: most Gaussians that are matched; the best by views and agreement.
    """

    mode: str = "average"
    images: int = 150
    resolution: int = 480
    cache_mb: int = 500
    iterations: int = 500
    learning_rate: float = 1e-3
    min_views: int = 3
    min_agreement: float = 0.6
    min_opacity: float = 0.3
    max_scale: float = 0.02
    selected: int = 20_000


@dataclass
class AnchorConfig:
    """Key points of the mapping images, triangulated and tied to the surface that the field shows.

    Attributes:
        images: mapping images whose key points are taken, evenly spread.
        resolution: shorter side of the images that the detector sees, of queries too; 0 for 480, and up
            to 768 where there are fewer than a hundred images.
        keypoints: per image; 0 for 768, and 2048 where there are few images.
        min_similarity: least cosine of matched descriptors.
        min_views: images that must observe an anchor; 0 for three where such points abound, else two.
        min_parallax_deg: angle that the rays of a triangulated point must span.
        max_error_px: largest error of an anchor's observations.
        depth_noise: least standard deviation of the rendered depth, relative, as which it counts in
            triangulation; the field's own is measured against the points that are known best.
        max_depth_noise: rendered depth that is less certain than this is left out.
        count: most anchors kept.
    """

    images: int = 250
    resolution: int = 0
    keypoints: int = 0
    min_similarity: float = 0.75
    min_views: int = 0
    min_parallax_deg: float = 1.0
    max_error_px: float = 2.0
    depth_noise: float = 0.01
    max_depth_noise: float = 0.04
    count: int = 20_000


@dataclass
class MatchConfig:
    """Matching a query with the map.

    Attributes:
        target: "anchors", "gaussians" (those with trusted descriptors) or "all" (every Gaussian, as
            published).
        keypoints: of a query (the published top_k: 1000); 0 for 1000, or as many as a mapping image
            gave where that is more.
        min_similarity: least cosine; -1 for none.
        mutual: keep only mutual nearest neighbours.
        sharing: a match whose best similarity is not exceeded by more than this from the landmark's
            side counts as mutual.
        chunk: similarities computed at once, rows of the map.
        redundancy: matches worth one independent one in the pose's covariance.
    """

    target: str = "anchors"
    keypoints: int = 0
    min_similarity: float = 0.8
    mutual: bool = True
    sharing: float = 0.0
    chunk: int = 8192
    redundancy: float = 14.0


@dataclass
class GsplatConfig:
    """Configuration of the estimator `gsplat_loc`."""

    image: ImageConfig = field(default_factory=ImageConfig)
    init: InitConfig = field(default_factory=InitConfig)
    gaussians: GaussianConfig = field(default_factory=GaussianConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    densify: DensifyConfig = field(default_factory=DensifyConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    match: MatchConfig = field(default_factory=MatchConfig)


@dataclass
class RefineConfig:
    """Configuration of the refiner `gsplat_loc`.

    Attributes:
        mode: stages in order, joined by "+"; "none" returns the pose. "photometric" aligns colours by
            robust Gauss-Newton, "keypoints" key points of the query with those of the rendering;
            "features" matches them with rendered descriptors and solves anew, "warp" is the published
            refinement as released. "warp" alone is the published Base, "features+warp" its Fine.
        resolution: shorter side of the renderings.
        levels: pyramid levels, each of half the size of the next.
        renderings: times the field is rendered anew at the improved pose.
        steps: most Gauss-Newton steps per level and rendering.
        min_alpha: pixels with less opacity are left out.
        depth_edge: pixels whose depth differs more than this, relatively, from their neighbours'.
        min_pixels: least share of the image that must remain.
        redundancy: pixels worth one independent one.
        map_error: standard deviation of the map's own error, which neighbouring pixels share, in
            pixels of an image whose shorter side has 480; it adds to the covariance. At least: what was
            measured when the map was made counts where it is more. It is that of a view full of the
            map, and grows by the power 1.5 of what a view has less.
        use_prior: weigh the alignment against the given pose by the covariances of both.
        keypoints: of query and rendering.
        min_similarity: of their matches.
        keypoint_px: standard deviation of a match in pixels of the rendering.
        rounds: of "features" (published: 5).
        feature_cell: pixels per rendered descriptor, of the images that the field's descriptors are from.
        temperature: of the softmax over the query's and over the rendered descriptors.
        min_confidence: least product of both, of a match.
        feature_redundancy: of these matches, see `MatchConfig.redundancy`.
        warp_lr: step of Adam in "warp" (published: 5e-4, in the paper 1e-3).
        warp_iters: its number of steps.
        warp_safe: return the given pose where the warp does not lower the residual; the released
            program does not look.
    """

    mode: str = "photometric"
    resolution: int = 240
    levels: int = 3
    renderings: int = 2
    steps: int = 10
    min_alpha: float = 0.5
    depth_edge: float = 0.05
    min_pixels: float = 0.05
    redundancy: float = 100.0
    map_error: float = 1.5
    use_prior: bool = True
    keypoints: int = 768
    min_similarity: float = 0.7
    keypoint_px: float = 1.0
    rounds: int = 5
    feature_cell: int = 4
    temperature: float = 0.1
    min_confidence: float = 0.0
    feature_redundancy: float = 14.0
    warp_lr: float = 5e-4
    warp_iters: int = 251
    warp_safe: bool = True

    @property
    def stages(self) -> list[str]:
        """Names of the stages in order."""
        return [] if self.mode == "none" else self.mode.split("+")


_POSITIVE = (
    "image.max_images", "image.cache_mb", "init.count", "init.frames", "init.min_points",
    "gaussians.sh_interval", "train.log_every", "features.images", "features.learning_rate",
    "anchors.images", "anchors.max_error_px", "anchors.depth_noise", "anchors.count", "match.chunk",
    "features.selected",
)  # fmt: skip
_NOT_NEGATIVE = (
    "image.resolution", "gaussians.max_gaussians", "train.iterations", "train.per_image",
    "train.lambda_depth",
    "train.position_lr_init", "train.position_lr_final", "train.position_lr_max_steps",
    "train.feature_lr", "train.opacity_lr", "train.scaling_lr", "train.rotation_lr",
    "train.checkpoint_seconds", "train.validation", "densify.interval", "densify.start",
    "densify.stop", "densify.opacity_reset_interval", "densify.min_opacity", "densify.max_scale",
    "features.iterations", "features.cache_mb", "features.max_scale", "match.sharing",
    "anchors.resolution", "anchors.keypoints", "anchors.min_views", "anchors.max_depth_noise",
    "match.keypoints",
)  # fmt: skip
_SHARES = (
    "init.opacity", "train.half_resolution", "train.lambda_dssim", "densify.percent_dense",
    "features.min_agreement", "features.min_opacity",
)  # fmt: skip


def check(config: GsplatConfig) -> None:
    """Refuse values that make no sense.

    Raises:
        ConfigError: names the option and what it may be.
    """
    options = Checks(config)
    options.one_of("init.source", SOURCES)
    options.one_of("features.mode", FEATURES)
    options.one_of("match.target", TARGETS)
    options.positive(*_POSITIVE)
    options.not_negative(*_NOT_NEGATIVE)
    options.share(*_SHARES)
    if not 0 < config.init.opacity < 1:
        raise ConfigError("estimator.init.opacity must lie strictly between 0 and 1.")
    if not 0 <= config.gaussians.sh_degree <= 3:
        raise ConfigError(
            f"estimator.gaussians.sh_degree must be 0..3, got {config.gaussians.sh_degree}."
        )
    if 0 < config.image.resolution < 32:
        raise ConfigError("estimator.image.resolution must be 0 (unchanged) or at least 32.")
    options.at_least(2, "features.min_views")
    options.require(config.anchors.min_views != 1, "anchors.min_views", "be 0 or at least 2")
    options.at_least(1, "match.redundancy")
    if config.features.mode == "none" and config.match.target != "anchors":
        raise ConfigError(
            "estimator.features.mode=none leaves Gaussians without descriptors: match "
            "estimator.match.target=anchors, or choose another mode."
        )
    near_far = config.init.random_depth
    if len(near_far) != 2 or near_far[0] < 0 or near_far[1] < near_far[0]:
        raise ConfigError("estimator.init.random_depth takes two numbers: nearest, farthest.")
    if config.init.source == "ply" and not config.init.path:
        raise ConfigError("estimator.init.source=ply needs estimator.init.path=FILE.ply.")
    if config.init.path and not Path(config.init.path).exists():
        raise ConfigError(f"estimator.init.path: there is no {config.init.path}.")


def check_refine(config: RefineConfig) -> None:
    """Refuse values of the refiner that make no sense.

    Raises:
        ConfigError: names the option.
    """
    options = Checks(config, "gsplat_loc.")
    for name in config.stages:
        if name not in STAGES:
            raise ConfigError(
                f"gsplat_loc.mode: '{name}' is no stage; join {', '.join(STAGES)} by '+', or 'none'."
                f"{did_you_mean(name, STAGES)}"
            )
    options.positive("levels", "renderings", "steps", "keypoints", "keypoint_px", "warp_lr",
                     "rounds", "temperature")  # fmt: skip
    options.at_least(32, "resolution")
    options.at_least(1, "redundancy", "feature_redundancy", "feature_cell")
    options.not_negative("warp_iters", "map_error", "min_confidence")
    options.share("min_alpha", "min_pixels", whole=False)
