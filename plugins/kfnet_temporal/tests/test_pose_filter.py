import numpy as np
import pytest
from kfnet_temporal.config import PoseConfig
from kfnet_temporal.pose_filter import Belief, PoseFilter
from kfnet_temporal.tangent import adjoint, minus, plus
from kfnet_temporal.tracks import Relative


def pose(seed, size=0.5):
    return plus(np.eye(4), np.random.default_rng(seed).normal(0, size, 6))


def moved(motion, covariance=1e-8):
    return Relative(motion, np.eye(6) * covariance, motion, np.zeros((0, 2)), np.zeros((0, 3)))


def config(**values):
    return PoseConfig(**{"floor": 1e-9, "floor_rotation": 1e-9, "drift": 0.0, "drift_rotation": 0.0,
                         "redundancy": 1.0, "shared": 0.01, **values})  # fmt: skip


def test_plus_and_minus_are_inverse():
    a, step = pose(1), np.array([0.1, -0.2, 0.3, 0.4, 0.5, -0.6])
    np.testing.assert_allclose(minus(plus(a, step), a), step, atol=1e-12)


def test_adjoint_by_finite_differences():
    start, motion, h = pose(2), pose(3), 1e-6
    numeric = np.stack(
        [minus(plus(start, h * e) @ motion, start @ motion) / h for e in np.eye(6)], 1
    )
    np.testing.assert_allclose(adjoint(motion), numeric, atol=1e-5)


def test_repeated_measurements_average():
    """Of n equal ones with independent errors, the variance is one nth."""
    rng, truth = np.random.default_rng(0), pose(4)
    found = PoseFilter(config(threshold=1e9))
    sigma, errors = 1e-3, rng.normal(0, 1e-3, (40, 6))
    for error in errors:
        found.predict(moved(np.eye(4), 0.0))
        found.update(Belief(plus(truth, error), np.eye(6) * sigma**2))
    np.testing.assert_allclose(minus(found.belief.world_from_cam, truth), errors.mean(0), atol=2e-5)
    # Lasting and fleeting errors of every frame, neither of which lasts here.
    np.testing.assert_allclose(np.diag(found.belief.covariance), 1.1 * sigma**2 / 40, rtol=0.02)


def test_errors_that_last_count_less():
    truth = pose(4)
    sure = {}
    for shared in (0.01, 10.0):
        found = PoseFilter(config(shared=shared))
        for _ in range(20):
            found.predict(moved(np.eye(4), 0.0))
            found.update(Belief(truth, np.eye(6) * 1e-4))
        sure[shared] = np.trace(found.belief.covariance)
    assert sure[10.0] > 5 * sure[0.01]


def test_the_covariance_is_that_of_errors_that_last():
    """Against the errors of many simulated runs of the model that the filter assumes."""
    rng, sigma, shared = np.random.default_rng(0), 1e-2, 5.0
    kept, squares, claimed = np.exp(-1 / shared), [], 0.0
    for _ in range(150):
        found, lasting = PoseFilter(config(shared=shared, threshold=1e9)), rng.normal(0, sigma, 6)
        for _ in range(25):
            lasting = kept * lasting + np.sqrt(1 - kept**2) * rng.normal(0, sigma, 6)
            fleeting = np.sqrt(0.1) * rng.normal(0, sigma, 6)
            found.predict(moved(np.eye(4), 0.0))
            found.update(Belief(plus(np.eye(4), lasting + fleeting), np.eye(6) * sigma**2))
        squares.append(minus(found.belief.world_from_cam, np.eye(4)) ** 2)
        claimed = np.diag(found.belief.covariance).mean()
    assert np.mean(squares) == pytest.approx(claimed, rel=0.15)


def test_one_outlier_moves_little_and_several_are_followed():
    truth, off = np.eye(4), np.eye(4)
    off[0, 3] = 1.0
    found = PoseFilter(config(confirm=3))
    for _ in range(10):
        found.predict(moved(np.eye(4)))
        found.update(Belief(truth, np.eye(6) * 1e-4))
    found.predict(moved(np.eye(4)))
    found.update(Belief(off, np.eye(6) * 1e-4))
    assert abs(found.belief.world_from_cam[0, 3]) < 0.02
    for _ in range(2):
        found.predict(moved(np.eye(4)))
        found.update(Belief(off, np.eye(6) * 1e-4))
    assert found.belief.world_from_cam[0, 3] == pytest.approx(1.0, abs=1e-6)


def test_outliers_that_contradict_each_other_are_not_followed():
    found = PoseFilter(config(confirm=2))
    found.update(Belief(np.eye(4), np.eye(6) * 1e-6))
    for shift in (1.0, -2.0, 3.0, -4.0, 5.0):
        off = np.eye(4)
        off[0, 3] = shift
        found.predict(moved(np.eye(4)))
        found.update(Belief(off, np.eye(6) * 1e-4))
    # The first contradiction has no second that agrees.
    assert abs(found.belief.world_from_cam[0, 3]) < 0.1


def test_a_sure_measurement_is_followed_at_once():
    off = np.eye(4)
    off[0, 3] = 1.0
    found = PoseFilter(config())
    found.update(Belief(np.eye(4), np.eye(6) * 1e-6))
    found.predict(None)
    found.update(Belief(off, np.eye(6) * 1e-6), sure=True)
    assert found.belief.world_from_cam[0, 3] == 1.0


def test_without_motion_the_velocity_stays_for_a_while():
    step = np.eye(4)
    step[2, 3] = 0.01
    found = PoseFilter(config(coast=5))
    found.update(Belief(np.eye(4), np.eye(6) * 1e-6))
    for _ in range(40):
        found.predict(moved(step))
    before = found.belief
    assert found.ahead(3).world_from_cam[2, 3] == pytest.approx(
        before.world_from_cam[2, 3] + 0.03, abs=1e-4
    )
    for _ in range(5):
        found.predict(None)
    assert found.belief.world_from_cam[2, 3] == pytest.approx(0.45, abs=1e-3)
    assert np.trace(found.belief.covariance) > np.trace(before.covariance)
    found.predict(None)
    assert found.belief is None
