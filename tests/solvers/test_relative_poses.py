"""Poses from relative poses against analytic truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reloc_core.errors import ConfigError, InputError
from reloc_core.geometry import inverse, rotation_angle_deg, so3_exp
from reloc_core.interfaces import Runtime
from reloc_core.solvers.config import AveragingConfig, SingleReferenceConfig
from reloc_core.solvers.relative_poses import AveragingSolver, SingleReferenceSolver
from reloc_core.types import Camera, RelativePoses

CAMERA = Camera.pinhole(525.0, 640, 480)


def pose(rng, spread=1.0):
    result = np.eye(4)
    result[:3, :3] = so3_exp(rng.normal(0, 0.4, 3))
    result[:3, 3] = rng.normal(0, spread, 3)
    return result


def noisy(truth, rng, angle, away):
    result = truth.copy()
    result[:3, :3] = truth[:3, :3] @ so3_exp(rng.normal(0, angle, 3))
    result[:3, 3] += truth[:3, :3] @ rng.normal(0, away, 3)
    return result


def evidence(rng, n=7, angle=0.0, away=0.0, wrong=0, directions=False, **more):
    truth = pose(rng)
    references = np.stack([pose(rng) for _ in range(n)])
    relative = np.stack([inverse(r) @ noisy(truth, rng, angle, away) for r in references])
    for k in range(wrong):
        relative[k] = pose(rng)
    if directions:
        relative[:, :3, 3] /= np.linalg.norm(relative[:, :3, 3], axis=1, keepdims=True)
    return truth, RelativePoses(references, relative, scale_known=not directions, **more)


def solve(given, **options):
    return AveragingSolver(AveragingConfig(**options)).solve(given, CAMERA, Runtime())


def errors(result, truth):
    away = np.linalg.norm(result.world_from_cam[:3, 3] - truth[:3, 3])
    return away, rotation_angle_deg(result.world_from_cam[:3, :3], truth[:3, :3])


@pytest.mark.parametrize("directions", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_exact_relative_poses_give_the_exact_pose(seed, directions):
    truth, given = evidence(np.random.default_rng(seed), directions=directions)
    result = solve(given)
    assert result.localized
    assert result.inliers.all()
    assert max(errors(result, truth)) < 1e-6


@pytest.mark.parametrize("directions", [False, True])
def test_wrong_references_are_left_out(directions):
    for seed in range(10):
        truth, given = evidence(np.random.default_rng(seed), 7, wrong=2, directions=directions)
        result = solve(given)
        assert result.localized
        assert not result.inliers[:2].any()
        away, angle = errors(result, truth)
        assert away < 5e-3
        assert angle < 0.2


def test_averaging_beats_a_single_reference():
    many, one = [], []
    single = SingleReferenceSolver(SingleReferenceConfig())
    for seed in range(60):
        truth, given = evidence(np.random.default_rng(seed), 8, 0.02, 0.05)
        many.append(errors(solve(given, motion_exponent=0), truth)[0])
        one.append(errors(single.solve(given, CAMERA, Runtime()), truth)[0])
    # The mean of eight independent errors is sqrt(8) smaller.
    assert np.median(many) < 0.5 * np.median(one)


def test_covariances_decide_whom_to_believe():
    rng = np.random.default_rng(0)
    truth, given = evidence(rng, 2)
    relative = given.ref_from_cam.copy()
    relative[1, :3, 3] += [0.3, 0, 0]
    unit = np.eye(6)
    covariances = np.stack([1e-4 * unit, 1e-2 * unit])
    given = RelativePoses(given.world_from_ref, relative, covariances=covariances)
    result = solve(given, motion_exponent=0)
    # Least squares with weights 100 : 1, robust weights aside.
    assert errors(result, truth)[0] < 0.3 / 50


def test_nearer_references_count_more():
    """Errors that grow with the motion: weighting by it beats equal weights."""
    weighted, equal = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = pose(rng)
        moves = [pose(rng, s) for s in (0.1, 0.5, 1, 1, 2)]
        references = np.stack([truth @ inverse(m) for m in moves])
        sizes = [np.linalg.norm(m[:3, 3]) for m in moves]
        relative = np.stack(
            [noisy(m, rng, 0.02 * s, 0.05 * s) for m, s in zip(moves, sizes, strict=True)]
        )
        given = RelativePoses(references, relative)
        weighted.append(errors(solve(given), truth)[0])
        equal.append(errors(solve(given, motion_exponent=0), truth)[0])
    assert np.median(weighted) < 0.8 * np.median(equal)


def test_covariance_covers_the_error():
    """With shared errors the honest covariance is that of one reference, not of their mean."""
    angle, away = 0.02, 0.05
    covariance = np.diag([angle**2] * 3 + [away**2] * 3)
    squares = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        truth = pose(rng)
        seen = noisy(truth, rng, angle, away)
        references = np.stack([pose(rng) for _ in range(5)])
        given = RelativePoses(
            references, inverse(references) @ seen, covariances=np.repeat(covariance[None], 5, 0)
        )
        result = solve(given, motion_exponent=0)
        off = result.world_from_cam[:3, :3].T @ (truth[:3, 3] - result.world_from_cam[:3, 3])
        squares.append(off @ np.linalg.solve(result.covariance[3:, 3:], off))
    assert 2.3 < np.mean(squares) < 3.8  # three degrees of freedom


def test_correlation_says_how_information_adds_up():
    """Independent errors: the mean of five has a fifth of the variance, and the covariance says so."""
    angle, away = 0.01, 0.03
    covariance = np.diag([angle**2] * 3 + [away**2] * 3)
    squares = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        truth = pose(rng)
        references = np.stack([pose(rng) for _ in range(5)])
        relative = inverse(references) @ np.stack(
            [noisy(truth, rng, angle, away) for _ in range(5)]
        )
        given = RelativePoses(
            references, relative, covariances=np.repeat(covariance[None], 5, 0), correlation=0.0
        )
        result = solve(given, motion_exponent=0)
        off = result.world_from_cam[:3, :3].T @ (truth[:3, 3] - result.world_from_cam[:3, 3])
        squares.append(off @ np.linalg.solve(result.covariance[3:, 3:], off))
    shared = solve(replace(given, correlation=1.0), motion_exponent=0)
    assert shared.covariance[5, 5] == pytest.approx(5 * result.covariance[5, 5], rel=0.25)
    # Three numbers; the robust weights cost a little.
    assert 2.3 < np.mean(squares) < 4.0
    with pytest.raises(InputError, match="correlation"):
        replace(given, correlation=1.5)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (RelativePoses(np.zeros((0, 4, 4)), np.zeros((0, 4, 4)), reason="too dark"), "too dark"),
        (RelativePoses(np.zeros((0, 4, 4)), np.zeros((0, 4, 4))), "no references"),
        (evidence(np.random.default_rng(1), 1, directions=True)[1], "two references"),
        (evidence(np.random.default_rng(2), 3, confidences=np.full(3, 0.01))[1], "resembles"),
        (evidence(np.random.default_rng(3), 6, wrong=6)[1], "agree"),
    ],
)
def test_says_why_not(given, reason):
    result = solve(given)
    assert not result.localized
    assert reason in result.reason


def test_parallel_directions_are_not_localized():
    rng = np.random.default_rng(5)
    truth = pose(rng)
    references = np.repeat(np.eye(4)[None], 4, 0)
    references[:, :3, 3] = truth[:3, 3] + np.array([1.0, 0, 0]) * np.arange(1, 5)[:, None]
    relative = inverse(references) @ truth
    relative[:, :3, 3] /= np.linalg.norm(relative[:, :3, 3], axis=1, keepdims=True)
    result = solve(RelativePoses(references, relative, scale_known=False))
    assert not result.localized
    assert "parallel" in result.reason


def test_not_finite_references_are_ignored_and_one_is_enough_when_there_is_but_one():
    truth, given = evidence(np.random.default_rng(6), 4)
    given.ref_from_cam[1] = np.nan
    result = solve(given)
    assert max(errors(result, truth)) < 1e-6
    assert not result.inliers[1]
    truth, given = evidence(np.random.default_rng(7), 1)
    assert max(errors(solve(given), truth)) < 1e-6


def test_single_reference_is_the_chosen_one():
    truth, given = evidence(np.random.default_rng(8), 3, wrong=1)
    for reference, right in ((0, False), (1, True), (2, True)):
        solver = SingleReferenceSolver(SingleReferenceConfig(reference))
        result = solver.solve(given, CAMERA, Runtime())
        assert (errors(result, truth)[0] < 1e-9) == right
    absent = SingleReferenceSolver(SingleReferenceConfig(3)).solve(given, CAMERA, Runtime())
    assert not absent.localized
    directions = evidence(np.random.default_rng(9), directions=True)[1]
    solver = SingleReferenceSolver(SingleReferenceConfig())
    with pytest.raises(ConfigError, match="averaging"):
        solver.solve(directions, CAMERA, Runtime())


def test_bad_options():
    with pytest.raises(ConfigError):
        AveragingSolver(AveragingConfig(gate=0))
    with pytest.raises(ConfigError):
        AveragingSolver(AveragingConfig(min_inliers=0))
    with pytest.raises(ConfigError):
        SingleReferenceSolver(SingleReferenceConfig(-1))
