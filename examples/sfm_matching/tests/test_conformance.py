"""What reloc expects of every estimator."""

from reloc_core.testing import EstimatorConformance


class TestSfmMatching(EstimatorConformance):
    component = "sfm_matching"
    options = {"resolution": 240, "keypoints": 400, "query_keypoints": 400}  # noqa: RUF012
    max_median_cm = 3.0
    max_median_deg = 1.0
