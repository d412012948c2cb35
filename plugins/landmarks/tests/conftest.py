"""For both readouts."""

import numpy as np
import pytest

from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.geometry import lift, transform


@pytest.fixture
def point_errors():
    """Errors in metres of the scene points that an estimator of the room gives to unseen images.

    Oracle: the ray caster's depth.
    """

    def measure(estimator, min_weight=0.0):
        errors = []
        for query in SyntheticDataset(
            SyntheticConfig(split="test", width=320, height=240, train_frames=60, test_frames=6)
        ):
            evidence = estimator.estimate(query)
            x, y = evidence.points2d.round().astype(int).T
            seen = lift(query.camera, evidence.points2d, query.depth[y, x])
            off = evidence.points3d - transform(query.world_from_cam, seen)
            errors.append(np.linalg.norm(off, axis=1)[evidence.weights > min_weight])
        return np.concatenate(errors)

    return measure
