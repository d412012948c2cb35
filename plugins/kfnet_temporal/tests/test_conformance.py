"""The estimators pass the suite that third parties' estimators are held to."""

from reloc_core.testing import EstimatorConformance

MEMORY = {
    "resolution": 240, "keyframes": 40, "retrieve": 4, "train_frames": 12, "iterations": 60,
    "exclusion": 2,
}  # fmt: skip


class TestKfnetMemory(EstimatorConformance):
    component = "kfnet_memory"
    options = MEMORY


class TestKfnetTemporal(EstimatorConformance):
    component = "kfnet_temporal"
    consecutive = True
    # Two trainings of the filter agree to a millimetre or so, not to the last bit.
    tolerance = 3e-3
    options = {  # noqa: RUF012
        "process": {"resolution": 240, "iterations": 15},
        "joint": {"iterations": 5, "frames": 24, "stretches": 2, "window": 6},
        "measurement": {"options": MEMORY},
    }
