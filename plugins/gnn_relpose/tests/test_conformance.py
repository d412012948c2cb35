"""The estimators pass the suite that third parties' estimators are held to."""

from reloc_core.testing import EstimatorConformance


class TestGnnMatched(EstimatorConformance):
    component = "gnn_matched"
    options = {  # noqa: RUF012
        "image": {"resolution": 240},
        "network": {"channels": 32},
        "train": {"iterations": 30, "batch_size": 8},
    }


class TestGnnRegressor(EstimatorConformance):
    component = "gnn_regressor"
    options = {  # noqa: RUF012
        "resolution": 120,
        "network": {"channels": 64},
        "augment": {"views": 2},
        "train": {"iterations": 300, "batch_size": 6},
    }
    # The network knows the part of the room; the best answer that looks at no image has 100 cm, 70 degrees.
    max_median_cm = 95.0
    max_median_deg = 40.0
    tolerance = 1e-3
