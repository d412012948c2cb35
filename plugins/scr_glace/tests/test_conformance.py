"""`scr_glace` passes the suite that third parties' estimators are held to."""

from reloc_core.testing import EstimatorConformance


class TestGlace(EstimatorConformance):
    component = "scr_glace"
    # The preset compact in small.
    options = {  # noqa: RUF012
        "encoder": {"name": "xfeat_keypoints", "keypoints": 600},
        "image": {"resolution": 240, "enlarge": False},
        "global_descriptor": {"dimension": 32, "neighbours": 0.5},
        "points": {"enabled": True, "until": 0.9},
        "head": {"channels": 256, "decoder_clusters": 8},
        "buffer": {"size": 60_000, "samples_per_image": 256},
        "loss": {"depth_min": 0.03, "depth_target": 1.0, "depth_max": 300.0},
        "optimizer": {
            "name": "muon",
            "learning_rate_max": 0.008,
            "learning_rate_min": 1e-5,
            "warmup": 0.1,
        },
        "train": {"iterations": 500, "batch_size": 1024, "checkpoint_seconds": 2.0},
        "redundancy": 8.0,
    }
    # The network is stored in half precision, and rounds differently by load.
    tolerance = 2e-3
