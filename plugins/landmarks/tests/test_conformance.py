"""`landmarks` passes the suite that third parties' estimators are held to."""

from reloc_core.testing import EstimatorConformance


class TestScrLandmarks(EstimatorConformance):
    component = "landmarks"
    options = {  # noqa: RUF012
        "keypoints": {"resolution": 240, "mapping": 400, "query": 400},
        "decoder": {"iterations": 60},
    }
    # A batch goes through the network one by one, but the network rounds differently by load.
    tolerance = 1e-4
