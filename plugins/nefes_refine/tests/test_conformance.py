"""`nefes_regressor` and `nefes_refine` pass the suites that third parties' are held to."""

from reloc_core.testing import EstimatorConformance, RefinerConformance

SMALL = {
    "field": {
        "levels": 6, "log2_entries": 14, "finest_resolution": 128, "occupancy": 24, "samples": 16,
        "coarse_samples": 32,
    },
    "training": {
        "colour_steps": 80, "feature_steps": 150, "fusion_steps": 10, "rays": 512, "patches": 2,
        "patch_size": 8,
    },
    "regressor": {"synthetic_views": 1.0, "epochs": 30, "batch": 16},
}  # fmt: skip


class TestNefesRegressor(EstimatorConformance):
    component = "nefes_regressor"
    options = SMALL
    # A regressor knows where it is roughly; finding the pose is the refiner's part.
    max_median_cm = 60.0
    max_median_deg = 30.0
    tolerance = 1e-4


class TestNefesRefine(RefinerConformance):
    component = "nefes_refine"
    map_from = "nefes_regressor"
    estimator_options = SMALL
    tolerance = 1e-4
