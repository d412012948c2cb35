"""`gsplat_loc` passes the suites that third parties' components are held to."""

from reloc_core.testing import EstimatorConformance, RefinerConformance

SMALL = {
    "image": {"resolution": 120},
    "init": {"count": 15_000},
    "gaussians": {"max_gaussians": 18_000, "sh_degree": 0},
    "train": {"iterations": 250},
    "densify": {"start": 40, "stop": 150, "interval": 30},
    "features": {"images": 12, "resolution": 240, "min_agreement": 0.4},
    "anchors": {"keypoints": 400},
}


class TestGsplatLoc(EstimatorConformance):
    component = "gsplat_loc"
    options = SMALL
    train_frames = 30


class TestGsplatRefiner(RefinerConformance):
    component = "gsplat_loc"
    map_from = "gsplat_loc"
    estimator_options = SMALL
    options = {"resolution": 120, "levels": 2}  # noqa: RUF012
    train_frames = 30
