import numpy as np
import pytest

from reloc_core.geometry import pose_minus as minus
from reloc_core.geometry import pose_plus as plus
from reloc_core.refiners.config import PoseFilterConfig
from reloc_core.refiners.pose_belief import Belief, PoseBelief

RATE = 30.0


def pose(seed, size=0.5):
    return plus(np.eye(4), np.random.default_rng(seed).normal(0, size, 6))


def move(found, motion, covariance=1e-8):
    found.move(motion, np.eye(6) * covariance, 1 / RATE)


def config(**values):
    return PoseFilterConfig(**{"floor": 1e-9, "floor_rotation": 1e-9, "drift": 0.0,
                               "drift_rotation": 0.0, "shared": 3e-4, **values})  # fmt: skip


def test_repeated_measurements_average():
    """Of n equal ones with independent errors, the variance is one nth."""
    rng, truth = np.random.default_rng(0), pose(4)
    found = PoseBelief(config(threshold=1e9))
    sigma, errors = 1e-3, rng.normal(0, 1e-3, (40, 6))
    for error in errors:
        move(found, np.eye(4), 0.0)
        found.correct(Belief(plus(truth, error), np.eye(6) * sigma**2))
    np.testing.assert_allclose(minus(found.belief.world_from_cam, truth), errors.mean(0), atol=2e-5)
    # Lasting and fleeting errors of every frame, neither of which lasts here.
    np.testing.assert_allclose(np.diag(found.belief.covariance), 1.1 * sigma**2 / 40, rtol=0.02)


def test_errors_that_last_count_less():
    truth = pose(4)
    sure = {}
    for shared in (3e-4, 0.33):
        found = PoseBelief(config(shared=shared))
        for _ in range(20):
            move(found, np.eye(4), 0.0)
            found.correct(Belief(truth, np.eye(6) * 1e-4))
        sure[shared] = np.trace(found.belief.covariance)
    assert sure[0.33] > 5 * sure[3e-4]


def test_the_covariance_is_that_of_errors_that_last():
    """Against the errors of many simulated runs of the model that the filter assumes."""
    rng, sigma, shared = np.random.default_rng(0), 1e-2, 5 / RATE
    kept, squares, claimed = np.exp(-1 / 5), [], 0.0
    for _ in range(150):
        found, lasting = PoseBelief(config(shared=shared, threshold=1e9)), rng.normal(0, sigma, 6)
        for _ in range(25):
            lasting = kept * lasting + np.sqrt(1 - kept**2) * rng.normal(0, sigma, 6)
            fleeting = np.sqrt(0.1) * rng.normal(0, sigma, 6)
            move(found, np.eye(4), 0.0)
            found.correct(Belief(plus(np.eye(4), lasting + fleeting), np.eye(6) * sigma**2))
        squares.append(minus(found.belief.world_from_cam, np.eye(4)) ** 2)
        claimed = np.diag(found.belief.covariance).mean()
    assert np.mean(squares) == pytest.approx(claimed, rel=0.15)


def test_one_outlier_moves_little_and_several_are_followed():
    truth, off = np.eye(4), np.eye(4)
    off[0, 3] = 1.0
    found = PoseBelief(config(confirm=3))
    for _ in range(10):
        move(found, np.eye(4))
        found.correct(Belief(truth, np.eye(6) * 1e-4))
    move(found, np.eye(4))
    found.correct(Belief(off, np.eye(6) * 1e-4))
    assert abs(found.belief.world_from_cam[0, 3]) < 0.02
    for _ in range(2):
        move(found, np.eye(4))
        found.correct(Belief(off, np.eye(6) * 1e-4))
    assert found.belief.world_from_cam[0, 3] == pytest.approx(1.0, abs=1e-6)


def test_outliers_that_contradict_each_other_are_not_followed():
    found = PoseBelief(config(confirm=2))
    found.correct(Belief(np.eye(4), np.eye(6) * 1e-6))
    for shift in (1.0, -2.0, 3.0, -4.0, 5.0):
        off = np.eye(4)
        off[0, 3] = shift
        move(found, np.eye(4))
        found.correct(Belief(off, np.eye(6) * 1e-4))
    # The first contradiction has no second that agrees.
    assert abs(found.belief.world_from_cam[0, 3]) < 0.1


def test_a_sure_measurement_is_followed_at_once():
    off = np.eye(4)
    off[0, 3] = 1.0
    found = PoseBelief(config())
    found.correct(Belief(np.eye(4), np.eye(6) * 1e-6))
    found.coast(1 / RATE)
    assert found.correct(Belief(off, np.eye(6) * 1e-6), sure=True)
    assert found.belief.world_from_cam[0, 3] == 1.0


def test_without_motion_the_velocity_stays():
    step = np.eye(4)
    step[2, 3] = 0.01
    found = PoseBelief(config())
    found.correct(Belief(np.eye(4), np.eye(6) * 1e-6))
    for _ in range(40):
        move(found, step)
    assert found.ahead(3 / RATE).world_from_cam[2, 3] == pytest.approx(0.43, abs=1e-4)
    assert found.belief.world_from_cam[2, 3] == pytest.approx(0.40, abs=1e-9)
    found.coast(5 / RATE)
    assert found.belief.world_from_cam[2, 3] == pytest.approx(0.45, abs=1e-4)


def test_unseen_motion_is_as_uncertain_as_random_accelerations_make_it():
    """Simulated runs of the model; normalised squares are right at every horizon."""
    rng, density, steps = np.random.default_rng(0), 0.2, 10
    h = 1 / (RATE * steps)
    squares = {0.1: [], 0.5: []}
    for _ in range(150):
        found = PoseBelief(config(acceleration=density / 2, acceleration_rotation=1e-6))
        velocity = np.cumsum(rng.normal(0, density * np.sqrt(h), (600, 3)), 0)
        path = np.cumsum(velocity * h, 0)
        found.correct(Belief(np.eye(4), np.eye(6) * 1e-10))
        for i in range(0, 300, steps):
            motion = np.eye(4)
            motion[:3, 3] = path[i + steps] - path[i]
            move(found, motion, 1e-10)
        for horizon, values in squares.items():
            ahead = found.ahead(horizon)
            error = path[300 + round(horizon / h)] - path[0] - ahead.world_from_cam[:3, 3]
            values.append(error @ np.linalg.solve(ahead.covariance[3:, 3:], error))
    for values in squares.values():
        assert np.mean(values) == pytest.approx(3, rel=0.25)


def test_the_velocity_is_learned_from_poses_alone():
    found, step = PoseBelief(config(shared=0.1)), np.eye(4)
    step[0, 3] = 0.02
    pose = np.eye(4)
    for _ in range(30):
        found.correct(Belief(pose, np.eye(6) * 1e-6))
        found.coast(1 / RATE)
        pose = pose @ step
    assert found.belief.world_from_cam[0, 3] == pytest.approx(pose[0, 3], abs=1e-3)


def test_the_covariance_grows_without_evidence():
    found = PoseBelief(PoseFilterConfig())
    found.correct(Belief(np.eye(4), np.eye(6) * 1e-4))
    stds = [np.sqrt(found.ahead(t).covariance[3, 3]) for t in np.arange(0, 0.5, 0.05)]
    assert np.all(np.diff(stds) > 0)
    assert stds[-1] > 3 * stds[0]


def test_an_independent_prior_helps_and_one_that_contradicts_does_not():
    found = PoseBelief(config())
    for _ in range(5):
        move(found, np.eye(4))
        found.correct(Belief(np.eye(4), np.eye(6) * 1e-4))
    before = found.belief
    near = plus(np.eye(4), np.full(6, 0.005))
    assert found.inform(Belief(near, np.eye(6) * 1e-4))
    assert np.trace(found.belief.covariance) < np.trace(before.covariance)
    assert 0 < found.belief.world_from_cam[0, 3] < 0.005
    held = found.belief
    assert not found.inform(Belief(plus(np.eye(4), np.full(6, 1.0)), np.eye(6) * 1e-4))
    np.testing.assert_array_equal(found.belief.world_from_cam, held.world_from_cam)
