"""Pose errors and their summary.

Three decisions, stated once and used by every table and file:

* A query that was not localized has infinite error. It stays in every median and recall.
* The median is the upper one, element n // 2 of the sorted errors, as in the scripts published with
  DSAC*, ACE and GLACE. Other quantiles follow the same rule, element floor(q n).
* A recall counts queries whose translation *and* rotation errors are strictly below a threshold,
  as a fraction 0..1 of all queries with ground truth.

Queries without ground truth are counted but enter no error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reloc_core.errors import InputError
from reloc_core.geometry import pose_minus, rotation_angle_deg
from reloc_core.types import Float64Array, FloatArray

THRESHOLDS: Mapping[str, tuple[float, float]] = {
    "1cm_1deg": (0.01, 1.0),
    "2cm_2deg": (0.02, 2.0),
    "5cm_5deg": (0.05, 5.0),
    "10cm_5deg": (0.10, 5.0),
    "25cm_2deg": (0.25, 2.0),
    "50cm_5deg": (0.50, 5.0),
    "5m_10deg": (5.0, 10.0),
}
"""Recall thresholds: metres (or scene units) and degrees."""

RELATIVE_THRESHOLDS: Mapping[str, tuple[float, float]] = {
    "0.1%_0.1deg": (0.001, 0.1),
    "0.5%_0.5deg": (0.005, 0.5),
    "1%_1deg": (0.01, 1.0),
    "5%_5deg": (0.05, 5.0),
}
"""Recall thresholds where the unit is arbitrary: share of the scene's depth, and degrees."""

SUCCESS = "5cm_5deg"
"""The threshold that the score is judged by."""

RELATIVE_SUCCESS = "5%_5deg"
"""The same where the unit is arbitrary."""

NEES_DEGREES = 6
NEES_95 = 12.591587
"""0.95 quantile of the chi-square distribution with 6 degrees of freedom."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Localized queries of similar score.

    Attributes:
        score_low: smallest score among them.
        score_high: largest score among them.
        score_mean: mean score, which should be `success`.
        queries: how many.
        success: fraction of them that are right, see `summarize`.
    """

    score_low: float
    score_high: float
    score_mean: float
    queries: int
    success: float


@dataclass(frozen=True)
class RelativeMetrics:
    """Errors over the depth of the scene, which mean something in any unit.

    Attributes:
        depth: median distance of the scene from its cameras, in the unit of the poses.
        median_translation: upper median over `depth`; inf and NaN as in `Metrics`.
        p90_translation: 0.9 quantile over `depth`.
        recall: fraction 0..1 by the keys of `RELATIVE_THRESHOLDS`; NaN without ground truth.
    """

    depth: float
    median_translation: float
    p90_translation: float
    recall: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, translations in percent."""
        return {
            "scene_depth": finite_or_none(self.depth),
            "median_translation_percent": finite_or_none(100 * self.median_translation),
            "p90_translation_percent": finite_or_none(100 * self.p90_translation),
            "recall": {key: finite_or_none(value) for key, value in self.recall.items()},
        }


@dataclass(frozen=True)
class Metrics:
    """Summary of one evaluation.

    Attributes:
        queries: all queries, readable or not.
        localized: queries with a pose.
        with_ground_truth: queries that errors and recalls are computed over.
        median_translation_m: upper median; inf when half of the queries failed, NaN without ground
            truth. Metres, or the scene's unit.
        median_rotation_deg: the same for rotation, in degrees. Sorted separately.
        p90_translation_m: 0.9 quantile.
        p90_rotation_deg: 0.9 quantile.
        recall: fraction 0..1 by the keys of `THRESHOLDS`; NaN without ground truth.
        mean_score: mean score of localized queries, NaN when there is none.
        score_auroc: probability that a localized query within `SUCCESS`, or `RELATIVE_SUCCESS` where
            the unit is arbitrary, scores higher than one outside; 0.5 is chance. NaN unless there are both.
        mean_nees: mean normalised estimation error squared of poses with a covariance; 6 when the
            covariances are right, larger when they are too small. NaN when there is none.
        within_95: fraction of those inside their 95 % confidence region.
        with_covariance: number of those.
        reliability: localized queries in equal groups by score, lowest first.
        calibration_error: mean difference of score and share of right poses over ten such groups
            (expected calibration error, Naeini et al. 2015); NaN when nothing was localized.
    """

    queries: int
    localized: int
    with_ground_truth: int
    median_translation_m: float
    median_rotation_deg: float
    p90_translation_m: float
    p90_rotation_deg: float
    recall: Mapping[str, float]
    mean_score: float
    score_auroc: float
    mean_nees: float
    within_95: float
    with_covariance: int
    reliability: tuple[ReliabilityBin, ...] = ()
    calibration_error: float = math.nan

    @property
    def overconfidence(self) -> str:
        """A warning where the covariances are far too small for the errors; "" where they are not.

        With 30 poses or more, and a mean NEES above 20 or fewer than 70 % in the 95 % region.
        """
        return overconfidence(self.mean_nees, self.within_95, self.with_covariance)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: infinite and undefined numbers become None.

        A median that is None although `with_ground_truth` > 0 is infinite: too many queries failed.
        """
        return {
            "queries": self.queries,
            "localized": self.localized,
            "with_ground_truth": self.with_ground_truth,
            "median_translation_m": finite_or_none(self.median_translation_m),
            "median_rotation_deg": finite_or_none(self.median_rotation_deg),
            "p90_translation_m": finite_or_none(self.p90_translation_m),
            "p90_rotation_deg": finite_or_none(self.p90_rotation_deg),
            "recall": {key: finite_or_none(value) for key, value in self.recall.items()},
            "mean_score": finite_or_none(self.mean_score),
            "calibration": {
                "mean_nees": finite_or_none(self.mean_nees),
                "expected_nees": NEES_DEGREES,
                "within_95": finite_or_none(self.within_95),
                "with_covariance": self.with_covariance,
                "score_auroc": finite_or_none(self.score_auroc),
                "calibration_error": finite_or_none(self.calibration_error),
                "reliability": [
                    {k: round(v, 6) for k, v in vars(group).items()} for group in self.reliability
                ],
            },
        }


def overconfidence(mean_nees: float, within_95: float, with_covariance: int) -> str:
    """A warning where covariances are far too small for the errors; "" where they are not.

    Args:
        mean_nees: as in `Metrics`, and so are the others.
        within_95: fraction in the 95 % region.
        with_covariance: poses that these are of.
    """
    if with_covariance < 30 or not (mean_nees > 20 or within_95 < 0.7):
        return ""
    return (
        f"The poses are overconfident: {100 * within_95:.0f} % of {with_covariance} lie in "
        f"the 95 % region of their covariance, the mean squared normalised error is "
        f"{mean_nees:.3g} where {NEES_DEGREES} is right. Do not rely on score and covariance here."
    )


def finite_or_none(value: float | None, digits: int = 6) -> float | None:
    """The value rounded for JSON, or None where JSON has no such number."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def pose_errors(estimated: FloatArray, truth: FloatArray) -> tuple[float, float]:
    """Errors of one pose.

    Args:
        estimated: `world_from_cam` (4, 4).
        truth: `world_from_cam` (4, 4).

    Returns:
        distance of the camera centres in the unit of the poses (metres), and the angle between the
        orientations in degrees, 0..180.

    Raises:
        InputError: wrong shape, or not finite.
    """
    for label, pose in (("estimated", estimated), ("true", truth)):
        if np.shape(pose) != (4, 4) or not np.all(np.isfinite(pose)):
            raise InputError(f"The {label} pose must be a finite 4x4 matrix.")
    translation = float(np.linalg.norm(np.subtract(estimated[:3, 3], truth[:3, 3])))
    return translation, float(rotation_angle_deg(estimated[:3, :3], truth[:3, :3]))


def nees(estimated: FloatArray, covariance: FloatArray, truth: FloatArray) -> float:
    """Normalised estimation error squared: xi^T covariance^-1 xi.

    Args:
        estimated: `world_from_cam` (4, 4).
        covariance: (6, 6), rotation first, in camera axes at the estimate (see `reloc_core.types`).
        truth: `world_from_cam` (4, 4).

    Returns:
        chi-square distributed with 6 degrees of freedom (mean 6) when the covariance is right; NaN
        when it is not positive definite.

    Source: Bar-Shalom, Li, Kirubarajan, "Estimation with Applications to Tracking and Navigation",
    2001, section 5.4.
    """
    xi = pose_minus(truth, estimated)
    try:
        whitened = np.linalg.solve(np.linalg.cholesky(np.asarray(covariance, np.float64)), xi)
    except np.linalg.LinAlgError:
        return math.nan
    return float(whitened @ whitened)


def upper_quantile(values: npt.ArrayLike, q: float) -> float:
    """Element floor(q n) of the sorted values; q = 0.5 is the upper median. NaN for no values."""
    ordered = np.sort(np.asarray(values, np.float64))
    if not len(ordered):
        return math.nan
    return float(ordered[min(int(q * len(ordered)), len(ordered) - 1)])


def relative_metrics(
    translation: npt.ArrayLike, rotation_deg: npt.ArrayLike, depth: float
) -> RelativeMetrics:
    """Summarize errors over the depth of the scene.

    Args:
        translation: (N,) errors in the unit of `depth`; inf and NaN as in `summarize`.
        rotation_deg: (N,) errors in degrees.
        depth: of the scene.

    Raises:
        InputError: the depth is not positive.
    """
    if not 0 < depth < math.inf:
        raise InputError(f"The scene's depth must be positive, got {depth}.")
    share = np.asarray(translation, np.float64) / depth
    rotation = np.asarray(rotation_deg, np.float64)
    known = ~np.isnan(share)
    return RelativeMetrics(
        depth,
        upper_quantile(share[known], 0.5),
        upper_quantile(share[known], 0.9),
        _recall(share[known], rotation[known], RELATIVE_THRESHOLDS),
    )


def _recall(
    translation: Float64Array, rotation: Float64Array, limits: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Fraction of queries below each limit; NaN for no queries."""
    return {
        key: float(np.mean((translation < length) & (rotation < degrees)))
        if len(translation)
        else math.nan
        for key, (length, degrees) in limits.items()
    }


def summarize(
    translation_m: npt.ArrayLike,
    rotation_deg: npt.ArrayLike,
    localized: npt.ArrayLike | None = None,
    scores: npt.ArrayLike | None = None,
    nees_values: npt.ArrayLike | None = None,
    right: npt.ArrayLike | None = None,
    groups: int = 5,
    limit: tuple[float, float] = THRESHOLDS[SUCCESS],
) -> Metrics:
    """Summarize errors.

    Args:
        translation_m: (N,) errors; inf where not localized, NaN where there is no ground truth.
        rotation_deg: (N,) errors in degrees, inf and NaN as above.
        localized: (N,) whether there is a pose; by default wherever the error is finite.
        scores: (N,) in 0..1; zeros by default.
        nees_values: (N,) from `nees`, NaN where unknown.
        right: (N,) whether a pose is what the score promises; by default whether it is within `limit`.
        groups: number of groups of `Metrics.reliability`.
        limit: translation and degrees below which a query succeeds.

    Returns:
        the summary; see the module docstring for what is counted how.

    Raises:
        InputError: arrays of different lengths, or errors that are negative or known only in part.
    """
    translation = np.asarray(translation_m, np.float64)
    rotation = np.asarray(rotation_deg, np.float64)
    n = len(translation)
    found = np.isfinite(translation) if localized is None else np.asarray(localized, bool)
    score = np.zeros(n) if scores is None else np.asarray(scores, np.float64)
    nees_array = np.full(n, np.nan) if nees_values is None else np.asarray(nees_values, np.float64)
    for label, array in (
        ("rotation errors", rotation),
        ("localized flags", found),
        ("scores", score),
        ("NEES values", nees_array),
    ):
        if array.shape != (n,):
            raise InputError(f"There are {n} translation errors but {label} of {array.shape}.")
    known = ~np.isnan(translation)
    if np.any(known != ~np.isnan(rotation)) or np.any(translation < 0) or np.any(rotation < 0):
        raise InputError("Errors must not be negative, and known for both parts of a pose or none.")

    translation_known, rotation_known = translation[known], rotation[known]
    recall = _recall(translation_known, rotation_known, THRESHOLDS)
    length, degrees = limit
    judged = known & found
    success = (translation < length) & (rotation < degrees)
    promised = success if right is None else np.asarray(right, bool)
    nees_known = nees_array[~np.isnan(nees_array)]
    tenths = _reliability(score[judged], promised[judged], 10)
    return Metrics(
        queries=n,
        localized=int(found.sum()),
        with_ground_truth=int(known.sum()),
        median_translation_m=upper_quantile(translation_known, 0.5),
        median_rotation_deg=upper_quantile(rotation_known, 0.5),
        p90_translation_m=upper_quantile(translation_known, 0.9),
        p90_rotation_deg=upper_quantile(rotation_known, 0.9),
        recall=recall,
        mean_score=float(score[found].mean()) if found.any() else math.nan,
        score_auroc=_auroc(score[judged & success], score[judged & ~success]),
        mean_nees=float(nees_known.mean()) if len(nees_known) else math.nan,
        within_95=float((nees_known < NEES_95).mean()) if len(nees_known) else math.nan,
        with_covariance=len(nees_known),
        reliability=_reliability(score[judged], promised[judged], groups),
        calibration_error=_calibration_error(tenths),
    )


def _auroc(positive: Float64Array, negative: Float64Array) -> float:
    """Probability that a positive exceeds a negative, ties counted half."""
    if not len(positive) or not len(negative):
        return math.nan
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    not_above = np.searchsorted(ordered, positive, "right")
    return float((below + not_above).mean() / (2 * len(negative)))


def _calibration_error(groups: Sequence[ReliabilityBin]) -> float:
    count = sum(g.queries for g in groups)
    if not count:
        return math.nan
    return sum(g.queries * abs(g.score_mean - g.success) for g in groups) / count


def _reliability(
    score: Float64Array, success: npt.NDArray[np.bool_], groups: int
) -> tuple[ReliabilityBin, ...]:
    order = np.argsort(score, kind="stable")
    return tuple(
        ReliabilityBin(
            float(score[part[0]]),
            float(score[part[-1]]),
            float(score[part].mean()),
            len(part),
            float(success[part].mean()),
        )
        for part in np.array_split(order, min(groups, max(len(order), 1)))
        if len(part)
    )
