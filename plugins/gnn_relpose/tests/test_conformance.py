"""`gnn_relpose` passes the suite that third parties' estimators are held to."""

from reloc_core.testing import EstimatorConformance


class TestGnnRelpose(EstimatorConformance):
    component = "gnn_relpose"
    options = {  # noqa: RUF012
        "image": {"resolution": 240},
        "network": {"channels": 32},
        "train": {"iterations": 60, "batch_size": 8},
    }
