"""`nefes_regressor` passes the suite that third parties' estimators are held to.

The refiner needs a field that is trained for minutes before it improves a pose; the other tests of this
folder hold it to that on an exact scene.
"""

from reloc_core.testing import EstimatorConformance


class TestNefesRegressor(EstimatorConformance):
    component = "nefes_regressor"
    options = {  # noqa: RUF012
        "field": {
            "levels": 6, "log2_entries": 14, "finest_resolution": 128, "occupancy": 24,
            "samples": 16, "coarse_samples": 32,
        },
        "training": {
            "colour_steps": 80, "feature_steps": 150, "fusion_steps": 10, "rays": 512,
            "patches": 2, "patch_size": 8,
        },
        "regressor": {"synthetic_views": 1.0, "epochs": 30, "batch": 16},
    }  # fmt: skip
    # A regressor trained for seconds knows the part of the room; the suite is about everything else.
    max_median_cm = 120.0
    max_median_deg = 45.0
    tolerance = 1e-4
