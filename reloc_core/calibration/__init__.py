"""Poses that can be believed: scores that are probabilities, covariances that cover the error.

One service for every estimator, solver and refiner. While a map is made, some mapping images are held
out and localized by the whole pipeline, beside pictures that were never taken there; what their support
and their errors look like is stored in the map (`fit_calibration`). A query's pose is then judged by it at
the end of the pipeline (`Calibration.judge`): its score becomes the probability that the pose is right, its
covariance is scaled, and what is more likely wrong than right is refused.
"""

from reloc_core.calibration.config import CalibrationConfig
from reloc_core.calibration.fitting import Witnesses, fit_calibration, hold_out, scene_scale
from reloc_core.calibration.foreign import foreign_pictures
from reloc_core.calibration.model import Calibration
from reloc_core.calibration.support import support

__all__ = [
    "Calibration",
    "CalibrationConfig",
    "Witnesses",
    "fit_calibration",
    "foreign_pictures",
    "hold_out",
    "scene_scale",
    "support",
]
