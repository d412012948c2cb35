from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from reloc_core.errors import InputError
from reloc_core.evaluation import THRESHOLDS, nees, pose_errors, summarize
from reloc_core.evaluation.metrics import upper_quantile

INF, NAN = math.inf, math.nan


def random_pose(rng: np.random.Generator, angle_deg: float | None = None) -> np.ndarray:
    pose = np.eye(4)
    if angle_deg is None:
        pose[:3, :3] = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
    else:
        axis = rng.normal(size=3)
        axis *= np.radians(angle_deg) / np.linalg.norm(axis)
        pose[:3, :3] = Rotation.from_rotvec(axis).as_matrix()
    pose[:3, 3] = rng.normal(size=3)
    return pose


@pytest.mark.parametrize("angle", [None, 1e-6, 1e-3, 0.5, 90.0, 179.9, 180.0])
def test_pose_errors_agree_with_scipy(angle):
    rng = np.random.default_rng(3)
    for _ in range(20):
        truth = random_pose(rng)
        estimate = random_pose(rng) if angle is None else truth @ random_pose(rng, angle)
        translation, rotation = pose_errors(estimate, truth)
        oracle = Rotation.from_matrix(estimate[:3, :3]) * Rotation.from_matrix(truth[:3, :3]).inv()
        assert rotation == pytest.approx(np.degrees(oracle.magnitude()), abs=1e-9, rel=1e-7)
        assert translation == pytest.approx(math.dist(estimate[:3, 3], truth[:3, 3]), rel=1e-12)


def test_translation_error_is_between_camera_centres_not_between_inverse_translations():
    truth = np.eye(4)
    truth[:3, 3] = [10, 0, 0]
    turned = truth.copy()
    turned[:3, :3] = Rotation.from_euler("y", 30, degrees=True).as_matrix()
    assert pose_errors(turned, truth) == (0.0, pytest.approx(30))


@pytest.mark.parametrize("bad", [np.eye(3), np.full((4, 4), np.nan)])
def test_pose_errors_refuse_what_is_no_pose(bad):
    with pytest.raises(InputError, match="finite 4x4"):
        pose_errors(bad, np.eye(4))


def test_medians_are_upper_and_count_failures_as_infinite():
    # The published scripts: sort, take element n // 2.
    assert summarize([3, 1, 2, 4], [3, 1, 2, 4]).median_translation_m == 3
    assert summarize([1, 2, INF], [1, 2, INF]).median_rotation_deg == 2
    half_failed = summarize([1, INF, 2, INF], [1, INF, 2, INF])
    assert half_failed.median_translation_m == INF
    assert half_failed.as_dict()["median_translation_m"] is None
    assert half_failed.localized == 2


def test_translation_and_rotation_are_sorted_separately():
    metrics = summarize([0.01, 0.02, 0.03], [3.0, 2.0, 1.0])
    assert (metrics.median_translation_m, metrics.median_rotation_deg) == (0.02, 2.0)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 101])
@pytest.mark.parametrize("q", [0.0, 0.5, 0.9, 0.95, 1.0])
def test_upper_quantile_against_its_definition(n, q):
    values = np.random.default_rng(n).exponential(size=n)
    assert upper_quantile(values, q) == sorted(values)[min(math.floor(q * n), n - 1)]


@pytest.mark.parametrize("key", THRESHOLDS)
def test_recalls_are_strict_in_both_parts(key):
    metres, degrees = THRESHOLDS[key]
    below = (np.nextafter(metres, 0), np.nextafter(degrees, 0))
    assert summarize([below[0]], [below[1]]).recall[key] == 1
    assert summarize([metres], [below[1]]).recall[key] == 0
    assert summarize([below[0]], [degrees]).recall[key] == 0


def test_recalls_are_fractions_of_all_queries_with_truth():
    translation = [0.005, 0.015, 0.04, 0.09, 0.2, 0.4, 4.0, INF, NAN]
    metrics = summarize(translation, [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, INF, NAN])
    assert metrics.queries == 9
    assert metrics.with_ground_truth == 8
    assert list(metrics.recall.values()) == [i / 8 for i in range(1, 8)]


def test_recall_keys_are_the_contract():
    keys = ["1cm_1deg", "2cm_2deg", "5cm_5deg", "10cm_5deg", "25cm_2deg", "50cm_5deg", "5m_10deg"]
    assert list(THRESHOLDS) == keys
    for key, (metres, degrees) in THRESHOLDS.items():
        length, angle = key.removesuffix("deg").split("_")
        value = float(length.removesuffix("m").removesuffix("c"))
        assert metres == pytest.approx(value / 100 if length.endswith("cm") else value)
        assert degrees == float(angle)


def test_without_ground_truth_nothing_is_claimed():
    metrics = summarize([NAN, NAN], [NAN, NAN], localized=[True, False], scores=[0.7, 0.0])
    content = metrics.as_dict()
    assert (content["queries"], content["localized"], content["with_ground_truth"]) == (2, 1, 0)
    assert content["median_translation_m"] is None
    assert set(content["recall"].values()) == {None}
    assert content["mean_score"] == 0.7


def test_no_queries_at_all():
    content = summarize([], []).as_dict()
    assert content["queries"] == 0
    assert content["calibration"]["reliability"] == []


@pytest.mark.parametrize(
    ("translation", "rotation"), [([1, 2], [1]), ([-1], [1]), ([NAN], [1]), ([1], [NAN])]
)
def test_inconsistent_errors_are_refused(translation, rotation):
    with pytest.raises(InputError):
        summarize(translation, rotation)


def test_nees_follows_chi_square_when_the_covariance_is_right():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6)) * np.array([[0.01] * 3 + [0.05] * 3]).T
    covariance = root @ root.T
    values = []
    for _ in range(3000):
        estimate = random_pose(rng)
        xi = rng.multivariate_normal(np.zeros(6), covariance)
        truth = np.eye(4)
        # The convention of reloc_core.types: R_true = R Exp(w), t_true = t + R v.
        truth[:3, :3] = estimate[:3, :3] @ Rotation.from_rotvec(xi[:3]).as_matrix()
        truth[:3, 3] = estimate[:3, 3] + estimate[:3, :3] @ xi[3:]
        values.append(nees(estimate, covariance, truth))
        assert values[-1] == pytest.approx(xi @ np.linalg.solve(covariance, xi), rel=1e-6)
    metrics = summarize([0.01] * 3000, [0.1] * 3000, nees_values=values)
    assert metrics.mean_nees == pytest.approx(6, abs=0.2)
    assert metrics.within_95 == pytest.approx(0.95, abs=0.015)
    assert metrics.within_95 == np.mean(np.asarray(values) < chi2.ppf(0.95, 6))


def test_nees_of_a_singular_covariance_is_unknown():
    assert math.isnan(nees(np.eye(4), np.zeros((6, 6)), np.eye(4)))


def test_score_auroc_against_all_pairs():
    rng = np.random.default_rng(1)
    score = rng.integers(0, 10, 60) / 10
    error = np.where(rng.random(60) < score, 0.01, 0.2)
    good, bad = score[error < 0.05], score[error >= 0.05]
    pairs = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
    metrics = summarize(error, np.ones(60), scores=score)
    assert metrics.score_auroc == pytest.approx(np.mean(pairs))


def test_reliability_groups_localized_queries_by_score():
    error = [0.2, 0.2, 0.01, 0.01, INF, NAN]
    metrics = summarize(
        error,
        error,
        localized=[True] * 4 + [False, True],
        scores=[0.1, 0.2, 0.8, 0.9, 0.0, 0.5],
        groups=2,
    )
    low, high = metrics.reliability
    assert (low.score_low, low.score_high, low.queries, low.success) == (0.1, 0.2, 2, 0.0)
    assert (high.score_low, high.score_high, high.queries, high.success) == (0.8, 0.9, 2, 1.0)
    assert (low.score_mean, high.score_mean) == pytest.approx((0.15, 0.85))


def test_calibration_error_of_scores_that_are_probabilities_and_of_some_that_are_not():
    """Oracle: Bernoulli draws whose probability the score is, or is not."""
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.05, 0.95, 20_000)
    right = rng.random(20_000) < chance
    error = np.where(right, 0.001, 9.0)
    for score, expected in ((chance, 0.0), ((1 + chance) / 2, (1 - chance).mean() / 2)):
        found = summarize(error, error, scores=score, right=right).calibration_error
        assert found == pytest.approx(expected, abs=0.012)
    # Judged by what the score promises, not by five centimetres.
    promised = summarize(np.full(4, 0.2), np.ones(4), scores=np.full(4, 0.9), right=[True] * 4)
    assert promised.calibration_error == pytest.approx(0.1)
    assert math.isnan(summarize([INF], [INF]).calibration_error)
