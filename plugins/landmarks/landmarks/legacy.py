"""Maps of `scr_landmarks`, as the estimator was called while it shared a plugin with GLACE."""

from __future__ import annotations

import numpy as np
import torch

from landmarks.config import LandmarkConfig, LegacyConfig
from landmarks.estimator import LandmarkEstimator
from landmarks.plan import Plan
from landmarks.scene import LandmarkMap
from reloc_core.errors import MapError
from reloc_core.interfaces import Runtime
from reloc_core.maps import Map


class LegacyLandmarks(LandmarkEstimator):
    """Localizes in maps that have landmarks with keys, but do not know which images saw them."""

    def __init__(self, config: LegacyConfig) -> None:
        super().__init__(LandmarkConfig())
        self.legacy = config

    def load(self, scene_map: Map, runtime: Runtime) -> None:
        """See `Estimator.load`; maps that `fit` makes are of the present kind.

        Raises:
            MapError: something is missing.
        """
        tensors, metadata = scene_map.tensors("landmarks")
        if "seen" in tensors:
            super().load(scene_map, runtime)
            return
        try:
            keys, positions, origin = (tensors[n] for n in ("keys", "positions", "origin"))
        except KeyError as error:
            raise MapError(f"{scene_map.path} lacks {error}. Train it again.") from error
        count, query = len(keys), int(self.legacy.keypoints.get("query", 768))
        self.scene = LandmarkMap(
            keys.float().numpy(),
            positions.double().numpy() + origin.double().numpy(),
            np.zeros((count, 6), np.float32),
            np.zeros((count, 3), np.float32),  # seen from nowhere: no second, guided pass
            np.ones(count, np.float32),
            [np.arange(count)],
            torch.zeros(1, 1),
            torch.zeros(1, 1),
        )
        plan = Plan("xfeat", int(metadata["resolution"]), query, query, 0, 0, count, 0.7, 0.6, 1.0)
        self._begin(plan, runtime)
