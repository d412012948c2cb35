"""What a prior lets a query see, against points placed by hand."""

import numpy as np
import pytest

from reloc_core.geometry import so3_exp
from reloc_core.mapping import expected_in_view
from reloc_core.types import Camera, PosePrior

CAMERA = Camera.pinhole(100.0, 200, 100)


def prior(degrees=1.0, metres=0.02):
    pose = np.eye(4)
    pose[:3, :3] = so3_exp(np.array([0, np.pi / 2, 0]))  # looks along x
    pose[:3, 3] = [1.0, 2.0, 3.0]
    return PosePrior(pose, np.diag([np.radians(degrees)] * 3 + [metres] * 3) ** 2)


def scene(extra):
    """Sixty points in the middle of the view, two metres ahead, and the others."""
    middle = np.array([3.0, 2.0, 3.0]) + np.random.default_rng(0).uniform(-0.1, 0.1, (60, 3))
    return np.concatenate([middle, extra])


def test_points_behind_and_far_outside_are_left_out():
    # Camera x is world -z; half the width is 100 px, which is 2 m there.
    extra = [[-1.0, 2, 3], [3.0, 2, 3 - 1.9], [3.0, 2, 3 - 2.1], [3.0, 2, 3 - 4.0], [3.0, 5.0, 3]]
    seen = expected_in_view(prior(), CAMERA, scene(np.array(extra)))
    assert seen[:60].all()
    assert seen[60:].tolist() == [False, True, True, False, False]


def test_less_sure_priors_see_more():
    points = scene(np.random.default_rng(1).uniform(-6, 6, (3000, 3)))
    counts = [expected_in_view(prior(d), CAMERA, points).sum() for d in (0.1, 3.0, 9.0)]
    assert counts[0] < counts[1] < counts[2] < len(points)


@pytest.mark.parametrize(
    "unsure",
    [None, PosePrior(np.eye(4)), prior(degrees=40), prior(metres=2.0)],
    ids=["none", "no covariance", "turned", "moved"],
)
def test_unsure_priors_tell_nothing(unsure):
    assert expected_in_view(unsure, CAMERA, scene(np.zeros((0, 3)))) is None


def test_a_prior_that_sees_next_to_nothing_tells_nothing():
    behind = np.random.default_rng(0).uniform([-9, 1, 2], [0, 3, 4], (500, 3))
    assert expected_in_view(prior(), CAMERA, behind) is None
