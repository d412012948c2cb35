"""`scr_glace` passes the suite that third parties' estimators are held to."""

from reloc_core.testing import EstimatorConformance


class TestScrGlace(EstimatorConformance):
    component = "scr_glace"
    # A head trained for seconds finds the queries to 16 cm and 2.4 degrees in the median. With half the
    # steps it finds them to 27 cm, and four to six of six, depending on the processor.
    max_median_cm = 25.0
    max_median_deg = 5.0
    options = {  # noqa: RUF012
        "encoder": {"name": "xfeat_keypoints", "keypoints": 400},
        "image": {"resolution": 240},
        "global_descriptor": {
            "name": "vlad",
            "neighbours": 0.5,
            "scale": 3.0,
            "noise_std": 0.03,
        },
        "points": {"enabled": True, "until": 0.9},
        "head": {"channels": 192, "decoder_clusters": 8},
        "buffer": {"size": 60_000, "samples_per_image": 256, "max_visits": 4},
        "loss": {"depth_min": 0.03, "depth_target": 1.0, "depth_max": 300.0},
        "optimizer": {"name": "muon", "learning_rate_max": 0.008, "learning_rate_min": 1e-5},
        "train": {"iterations": 600, "batch_size": 1024},
    }
