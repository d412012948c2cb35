"""What the refiner does with good, missing and wrong poses of a film."""

from dataclasses import replace

import numpy as np
import pytest

from reloc_core.errors import ConfigError
from reloc_core.evaluation.metrics import nees
from reloc_core.geometry import adjoint, inverse, pose_plus
from reloc_core.refiners.config import PoseFilterConfig
from reloc_core.refiners.pose_filter import PoseFilter
from reloc_core.testing import RefinerContract
from reloc_core.types import Localization, PosePrior

LOST = Localization.failure("nothing matches")


class TestContract(RefinerContract):
    component = "pose_filter"
    map_from = None


def error(found, data, index):
    return float(np.linalg.norm(found.world_from_cam[:3, 3] - data.pose(index)[:3, 3]))


def std(found):
    return float(np.sqrt(np.trace(found.covariance[3:, 3:])))


def run(data, count, noise=0.01, first=0, tracker=None, **config):
    """A filter after some localized frames, and its last answer."""
    rng = np.random.default_rng(0)
    tracker = tracker or PoseFilter(PoseFilterConfig(resolution=144, **config))
    for i in range(first, first + count):
        found = data.found(i, rng.normal(0, noise, 3), std=max(noise, 1e-3))
        answer = tracker.refine(data.query(i), found, data.evidence(i))
    return tracker, answer


def test_independent_errors_average_along_the_motion(film):
    data, errors, own = film(), [], []
    rng = np.random.default_rng(1)
    tracker = PoseFilter(PoseFilterConfig(resolution=144, shared=1e-3))
    for i in range(40):
        off = rng.normal(0, 0.02, 3)
        answer = tracker.refine(data.query(i), data.found(i, off, std=0.02), data.evidence(i))
        errors.append(error(answer, data, i))
        own.append(np.linalg.norm(off))
    assert np.mean(errors[10:]) < 0.5 * np.mean(own[10:])


def test_black_frames_are_bridged_ever_less_surely(film):
    data = film()
    tracker, before = run(data, 20, noise=0.002)
    black = np.zeros_like(data.query(0).image)
    answers = [tracker.refine(data.query(i, image=black), LOST) for i in range(20, 30)]
    assert all(a.localized for a in answers)
    stds = [std(before), *(std(a) for a in answers)]
    assert np.all(np.diff(stds) > 0)
    assert stds[3] > 1.5 * stds[0]
    for i, answer in enumerate(answers):
        assert nees(answer.world_from_cam, answer.covariance, data.pose(20 + i)) < 20
    assert answers[-1].score < 0.6 * before.score
    # And then it is honest: half a second later nothing is known any more.
    for i in range(30, 45):
        last = tracker.refine(data.query(i, image=black), LOST)
    assert not last.localized
    assert last.reason == "nothing matches"


def test_points_seen_before_are_found_after_black_frames(film):
    data = film()
    tracker, _ = run(data, 20, noise=0.002)
    black = np.zeros_like(data.query(0).image)
    for i in range(20, 25):
        blind = tracker.refine(data.query(i, image=black), LOST)
    seen = tracker.refine(data.query(25), LOST)
    assert seen.localized
    assert std(seen) < std(blind)
    assert error(seen, data, 25) < 0.02


def test_a_single_wrong_pose_moves_little(film):
    data = film()
    tracker, _ = run(data, 20, noise=0.002)
    off = replace(data.found(20, [0.5, 0, 0]), support={"inliers": 1.0})
    answer = tracker.refine(data.query(20), off, data.evidence(20))
    assert error(answer, data, 20) < 0.03
    # A calibration must not judge the kept pose by what supports the wrong one.
    assert not answer.support
    good = replace(data.found(21), support={"inliers": 1.0})
    assert tracker.refine(data.query(21), good, data.evidence(21)).support == {"inliers": 1.0}


@pytest.mark.parametrize("score", [0.9, 0.3])
def test_it_does_not_insist_after_a_cut(film, score):
    """At once where the new pose is sure, after some frames that agree otherwise."""
    data, other = film(), film(phase=33.0)
    tracker, _ = run(data, 20, noise=0.002)
    errors = []
    for i in range(20, 30):
        there = other.query(i)
        answer = tracker.refine(there, other.found(i, score=score), other.evidence(i))
        errors.append(error(answer, other, i))
    assert error(run(data, 1)[1], other, 20) > 0.2  # it is another place
    assert max(errors[0 if score > 0.7 else 6 :]) < 0.02


def test_it_claims_nothing_of_a_new_view_that_is_not_localized(film):
    data = film()
    tracker, _ = run(data, 20, noise=0.002)
    noise = np.random.default_rng(0).integers(0, 256, data.query(0).image.shape, np.uint8)
    answer = tracker.refine(data.query(20, image=noise), LOST)
    assert not answer.localized
    assert "view has changed" in answer.reason


@pytest.mark.parametrize("timestamp", [100.0, 0.1, None])
def test_starts_anew_after_a_gap_or_a_step_back(film, timestamp):
    data = film()
    tracker, _ = run(data, 20, noise=0.002)
    query = data.query(20, timestamp=timestamp)
    answer = tracker.refine(query, LOST)
    if timestamp is None:  # in order, so it follows
        assert answer.localized
    else:
        assert answer is LOST


def test_copies_of_a_picture_are_held_and_then_coasted_over(film):
    data = film()
    tracker, before = run(data, 20, noise=0.002)
    frozen = data.query(19).image
    answers = [
        tracker.refine(data.query(i, image=frozen), data.found(19), data.evidence(19))
        for i in range(20, 26)
    ]
    np.testing.assert_array_equal(answers[1].world_from_cam, before.world_from_cam)
    assert error(answers[5], data, 25) < error(before, data, 25)
    assert std(answers[5]) > std(before)


def test_a_copy_of_a_new_view_is_as_unknown(film):
    data = film()
    tracker, _ = run(data, 20, noise=0.002)
    noise = np.random.default_rng(0).integers(0, 256, data.query(0).image.shape, np.uint8)
    answers = [tracker.refine(data.query(i, image=noise), LOST) for i in (20, 21, 22)]
    assert not any(answer.localized for answer in answers)


@pytest.mark.parametrize("late", [1, 3, 8])
def test_a_pose_that_comes_late_is_worth_what_it_would_have_been(film, late):
    data = film()
    tracker, _ = run(data, 10, noise=0.01)
    in_time, other = tracker.fork(), tracker.fork()
    exact = data.found(10, std=5e-3)
    in_time.refine(data.query(10), exact, data.evidence(10))
    tracker.refine(data.query(10), LOST)
    other.refine(data.query(10), LOST)
    mark = tracker.mark()
    for i in range(11, 10 + late):
        for each in (in_time, tracker, other):
            each.refine(data.query(i), LOST)
    assert tracker.correct_later(mark, data.camera, exact, data.evidence(10))
    expected, found, without = (
        each.refine(data.query(10 + late), LOST) for each in (in_time, tracker, other)
    )
    np.testing.assert_allclose(found.world_from_cam, expected.world_from_cam, atol=2e-3)
    np.testing.assert_allclose(std(found), std(expected), rtol=0.35)
    assert error(without, data, 10 + late) > error(found, data, 10 + late) + 1.5e-3
    other.tracks.reset()
    assert not other.correct_later(mark, data.camera, exact, data.evidence(10))


def test_odometry_carries_where_nothing_is_seen(film):
    """In a world of its own."""
    data = film()
    other_from_world = pose_plus(np.eye(4), np.array([0.3, -0.2, 0.5, 4.0, 5.0, 6.0]))
    tracker = PoseFilter(PoseFilterConfig(tracks=0, prior="odometry"))
    black = np.zeros_like(data.query(0).image)
    for i in range(60):
        odometry = PosePrior(other_from_world @ data.pose(i))
        image = data.query(i).image if i < 10 else black + np.uint8(i)
        found = data.found(i, std=0.002) if i < 10 else LOST
        answer = tracker.refine(data.query(i, prior=odometry, image=image), found)
    assert answer.localized
    assert error(answer, data, 59) < 0.01


def test_odometry_that_drifts_says_so(film):
    data = film()
    black = np.zeros_like(data.query(0).image)

    def last(spread):
        """The answer after 20 black frames with odometry whose covariances are `spread` of the frame."""
        tracker = PoseFilter(PoseFilterConfig(tracks=0, prior="odometry"))
        for i in range(30):
            odometry = PosePrior(data.pose(i), spread(i))
            image = data.query(i).image if i < 10 else black + np.uint8(i)
            found = data.found(i, std=0.002) if i < 10 else LOST
            answer = tracker.refine(data.query(i, prior=odometry, image=image), found)
        return answer

    carried = [np.zeros((6, 6))]
    step = np.diag([0, 0, 0, *[1e-4] * 3])
    for i in range(1, 30):
        turned = adjoint(inverse(data.pose(i - 1)) @ data.pose(i))
        carried.append(turned @ carried[-1] @ turned.T + step)
    without, drifting = last(lambda i: None), last(lambda i: carried[i])
    grown = np.trace(drifting.covariance[3:, 3:]) - np.trace(without.covariance[3:, 3:])
    assert grown == pytest.approx(20 * 3e-4, rel=0.1)
    # A covariance that shrinks is that of no sum of motions.
    shrinking = last(lambda i: np.eye(6) / (i + 1))
    np.testing.assert_allclose(shrinking.covariance, without.covariance)


def test_a_prior_pose_is_one_more_measurement(film):
    data = film()
    tracker, before = run(data, 20, noise=0.002)
    black = np.zeros_like(data.query(0).image)
    prior = PosePrior(data.pose(25), np.eye(6) * 1e-6)
    for i in range(20, 26):
        query = data.query(i, image=black, prior=prior if i == 25 else None)
        answer = tracker.refine(query, LOST)
    assert error(answer, data, 25) < 0.003
    assert std(answer) < std(before)


def test_works_without_evidence_and_without_covariance(film):
    data = film()
    tracker = PoseFilter(PoseFilterConfig())
    for i in range(20):
        answer = tracker.refine(data.query(i), replace(data.found(i), covariance=None))
    assert answer.covariance is not None
    assert error(answer, data, 19) < 0.02


def test_lengths_scale_with_the_scene(film):
    """The same film in other units gives the same answer in these."""
    data, answers = film(), []
    for scale in (1.0, 100.0):
        tracker = PoseFilter(PoseFilterConfig(resolution=144))
        units = np.diag([1, 1, 1, scale, scale, scale])
        for i in range(15):
            found, seen = data.found(i, [0.003 * (-1) ** i, 0, 0]), data.evidence(i)
            pose = found.world_from_cam.copy()
            pose[:3, 3] *= scale
            found = replace(found, world_from_cam=pose, covariance=units @ found.covariance @ units)
            answer = tracker.refine(
                data.query(i), found, replace(seen, points3d=seen.points3d * scale)
            )
        answers.append(
            (answer.world_from_cam, np.linalg.inv(units) @ answer.covariance @ np.linalg.inv(units))
        )
    (pose, covariance), (large, large_covariance) = answers
    np.testing.assert_allclose(inverse(large)[:3, 3] / 100, inverse(pose)[:3, 3], atol=2e-4)
    np.testing.assert_allclose(large_covariance, covariance, rtol=0.2, atol=1e-7)


def test_nonsense_options_are_refused():
    with pytest.raises(ConfigError, match=r"refiner\.prior"):
        PoseFilter(PoseFilterConfig(prior="guess"))
    with pytest.raises(ConfigError, match=r"refiner\.shared"):
        PoseFilter(PoseFilterConfig(shared=0))
