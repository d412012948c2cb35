"""`landmarks` passes the suite that third parties' estimators are held to."""

from reloc_core.testing import EstimatorConformance


class TestLandmarks(EstimatorConformance):
    component = "landmarks"
    options = {"keypoints": {"kind": "xfeat", "resolution": 240, "mapping": 400, "query": 400}}  # noqa: RUF012
    # A batch goes through the network one by one, but the network rounds differently by load.
    tolerance = 1e-4
    # Without calibration its covariances are made for real images; those of the room have no noise.
    covariance_slack = 400.0
