"""A field of the synthetic room, small enough to train in seconds."""

from gsplat_loc.config import GsplatConfig

from reloc_core.interfaces import Runtime

SIZE = {"width": 320, "height": 240, "train_frames": 30, "test_frames": 5}
RUNTIME = Runtime(threads=1, seed=1)


def small_config() -> GsplatConfig:
    config = GsplatConfig()
    config.image.resolution = 120
    config.init.count = 15_000
    config.gaussians.max_gaussians = 18_000
    config.gaussians.sh_degree = 0
    config.train.iterations = 250
    config.densify.start, config.densify.stop, config.densify.interval = 40, 150, 30
    config.features.images = 12
    config.features.resolution = 240
    config.features.min_agreement = 0.4
    config.anchors.keypoints = 800
    config.anchors.resolution = 480
    return config
