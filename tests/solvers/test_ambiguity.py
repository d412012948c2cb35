"""Evidence that two poses explain: the answer must not be sure of one of them."""

import dataclasses

import numpy as np
import pytest

from reloc_core import Camera, Correspondences, Runtime
from reloc_core.evaluation import nees
from reloc_core.geometry import inverse, pose_plus, project, transform
from reloc_core.solvers import pnp as module
from reloc_core.solvers.absolute import estimate_absolute_pose
from reloc_core.solvers.ambiguity import reconciled, samples_for_rival
from reloc_core.solvers.pnp import PnpConfig, PnpSolver

CAMERA = Camera.pinhole(500.0, 640, 480)


def two_poses(share=0.4, count=400, seed=0):
    """Pixels and points of which `share` fit one pose, as many another one 20 cm away, and the rest none."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-2, -1.5, 3], [2, 1.5, 6], (count, 3))
    poses = [np.eye(4), pose_plus(np.eye(4), np.array([0.0, 0.05, 0.0, 0.2, 0.0, 0.02]))]
    pixels = rng.uniform([0, 0], [640, 480], (count, 2))
    which = rng.permutation(
        np.repeat([0, 1, 2], [int(share * count)] * 2 + [count - 2 * int(share * count)])
    )
    for number, pose in enumerate(poses):
        seen, _ = project(CAMERA, transform(inverse(pose), points))
        mine = which == number
        pixels[mine] = seen[mine] + rng.normal(0, 0.7, (mine.sum(), 2))
    return pixels, points, poses, which


def estimates(pixels, points, which):
    return [
        estimate_absolute_pose(pixels, points, CAMERA, weights=(which == n).astype(float) + 1e-9)
        for n in (0, 1)
    ]


def test_the_covariance_covers_both_poses():
    pixels, points, poses, which = two_poses()
    first, second = estimates(pixels, points, which)
    for found, pose in ((first, poses[0]), (second, poses[1])):
        assert nees(found.world_from_cam, found.covariance, pose) < 25
    assert nees(first.world_from_cam, first.covariance, poses[1]) > 1000
    same = dataclasses.replace(second, num_inliers=first.num_inliers)
    both = reconciled(first, same)
    # A mixture of two equally likely poses: each is within about two of its standard deviations.
    for pose in poses:
        assert nees(both.world_from_cam, both.covariance, pose) < 25
    better = dataclasses.replace(second, num_inliers=2 * first.num_inliers)
    found = reconciled(first, better)
    assert np.array_equal(found.world_from_cam, second.world_from_cam)
    assert nees(found.world_from_cam, found.covariance, poses[0]) > 1000


def test_two_searches_that_agree_change_nothing():
    pixels, points, _, which = two_poses()
    first, _ = estimates(pixels, points, which)
    again = estimate_absolute_pose(
        pixels, points, CAMERA, weights=(which == 0).astype(float) + 1e-9
    )
    assert reconciled(first, again) is first
    failed = dataclasses.replace(again, success=False)
    assert reconciled(first, failed) is first
    assert reconciled(failed, first) is failed


@pytest.mark.parametrize("look_again", [True, False])
def test_a_search_that_ended_in_the_worse_pose_is_corrected(look_again, monkeypatch):
    """The first search is made to end there; the second one is real."""
    pixels, points, poses, which = two_poses(share=0.3)
    extra = (which == 2) & (np.arange(len(which)) % 2 == 0)
    seen, _ = project(CAMERA, transform(inverse(poses[1]), points))
    pixels[extra] = seen[extra] + np.random.default_rng(1).normal(0, 0.7, (extra.sum(), 2))
    worse = estimates(pixels, points, which)[0]
    real, calls = module.estimate_absolute_pose, []

    def search(*arguments, **options):
        calls.append(options["options"].seed)
        return worse if len(calls) == 1 else real(*arguments, **options)

    monkeypatch.setattr(module, "estimate_absolute_pose", search)
    evidence = Correspondences(pixels, points, kind="sparse")
    found = PnpSolver(PnpConfig(look_again=look_again)).solve(evidence, CAMERA, Runtime(seed=5))
    # The first search, four more, and one in what their pose does not explain.
    assert calls == ([*range(5, 10), 5] if look_again else [5])
    right = np.linalg.norm(found.world_from_cam[:3, 3] - poses[1][:3, 3]) < 0.02
    assert right == look_again


def test_clear_evidence_is_searched_once(monkeypatch):
    pixels, points, _, _ = two_poses(share=0.5)
    monkeypatch.setattr(module, "reconciled", lambda *_: pytest.fail("searched twice"))
    seen, _ = project(CAMERA, points)
    pixels[:300] = seen[:300]
    for kind in ("sparse", "dense"):
        solver = PnpSolver(PnpConfig())
        assert solver.solve(Correspondences(pixels, points, kind=kind), CAMERA, Runtime()).localized


def test_one_by_one_and_in_a_batch_are_the_same():
    problems = [Correspondences(*two_poses(0.35, seed=s)[:2], kind="sparse") for s in range(4)]
    solver, runtime = PnpSolver(PnpConfig()), Runtime()
    batch = solver.solve_batch(problems, [CAMERA] * 4, runtime)
    for evidence, found in zip(problems, batch, strict=True):
        alone = solver.solve(evidence, CAMERA, runtime)
        np.testing.assert_array_equal(alone.world_from_cam, found.world_from_cam)
        np.testing.assert_array_equal(alone.covariance, found.covariance)


def twins(first=120, second=120, junk=160, seed=0):
    """Evidence of a query that sees a room of which the map has two: 50 m apart, points and poses alike."""
    rng = np.random.default_rng(seed)
    pixels, points = [], []
    for count, shift in ((first, 0.0), (second, 50.0)):
        own = rng.uniform([-2, -1.5, 3], [2, 1.5, 6], (count, 3))
        pixels.append(project(CAMERA, own)[0] + rng.normal(0, 0.7, (count, 2)))
        points.append(own + np.array([shift, 0, 0]))
    pixels.append(rng.uniform([0, 0], [640, 480], (junk, 2)))
    points.append(rng.uniform([-2, -1.5, 3], [52, 1.5, 6], (junk, 3)))
    return Correspondences(np.concatenate(pixels), np.concatenate(points), kind="sparse")


@pytest.mark.parametrize("seed", range(5))
def test_of_two_rooms_that_explain_a_query_none_is_believed(seed):
    found = PnpSolver(PnpConfig()).solve(twins(seed=seed), CAMERA, Runtime(seed=seed))
    assert found.support["alone"] <= 0.55
    assert found.score <= 0.55


@pytest.mark.parametrize("seed", range(5))
def test_a_room_that_explains_most_is_believed_beside_one_that_explains_little(seed):
    evidence = twins(160, 30, seed=seed)
    found = PnpSolver(PnpConfig()).solve(evidence, CAMERA, Runtime(seed=seed))
    assert found.support["alone"] > 0.99
    assert np.linalg.norm(found.world_from_cam[:3, 3]) < 0.05


def test_a_rival_that_is_found_at_once_is_still_searched_for():
    """So few samples would do that the solver's least number of them is taken."""
    pixels, points, _, which = two_poses(share=0.3)
    keep = np.concatenate([np.flatnonzero(which == 0), np.flatnonzero(which == 1)[:3]])
    estimate = estimate_absolute_pose(pixels[keep], points[keep], CAMERA)
    assert samples_for_rival(estimate, 16, 1000) == 16
    estimate = dataclasses.replace(estimate, num_inliers=6)
    assert 16 <= samples_for_rival(estimate, 16, 20) <= 20
