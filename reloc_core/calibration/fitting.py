"""Learning a map's calibration from held-out mapping images and foreign pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reloc_core.calibration.config import RIGHT_DEG, RIGHT_DEPTHS, CalibrationConfig
from reloc_core.calibration.model import ALONE, Calibration, Odds, Spread
from reloc_core.calibration.support import novelty
from reloc_core.geometry import pose_minus
from reloc_core.interfaces import Dataset
from reloc_core.types import Float64Array, Frame, Localization

_PRIOR_WEIGHTS: Mapping[str, float] = {
    "inliers": 1.2,
    "cover": 1.5,
    "distinct": 1.0,
    "ratio": 0.3,
    "chance": 0.3,
    "score": 0.22,
    "claimed": 0.15,
    "spread": 0.15,
    "weight": 0.15,
}
"""What is common to maps: learned from unmapped training frames and foreign pictures of real rooms."""
_ENOUGH_IS: Mapping[str, float] = {"claimed": 0.0, "distinct": 0.7}
"""By how much less than usual of a support says nothing yet, and more never: the fewer points, the closer a
pose fits them all, and claims what none has; a few landmarks are claimed twice in every image."""
_PRIOR_SIGNAL = 0.15
_PRIOR_BIAS = 6.5
_LEAST_STEP = 1e-6
_STEPS = 5  # from foreign pictures to mapping images
_ENOUGH, _ENOUGH_OWN = 0.5, 0.25  # of that way; for images that are part of the map
_PRIOR_STRENGTH = 2.0  # of the weights before the held-out images are seen
_FREE = 0.5  # the same of the bias, and of signals that tell the place apart
_WORTH = 0.35  # of one held-out frame: neighbours in a video share their errors
_MARGIN = 0.1
_FOREIGN_SHARE = 0.2  # of the queries that a map is asked, for what cannot be told apart
_OWN = {"inliers": 0.7, "ratio": 0.7, "chance": 0.5, "claimed": 0.5, "cover": 0.2}
"""By how much mapping images support their own poses better than unseen ones."""
_OWN_WIDER = 1.5
_OWN_GROWTH = 0.002  # the solver's own covariance grows with the distance from triangulated points
_TAIL_LEAST, _TAIL_MOST = 20, 1.5  # images that tell of a tail, and how far it may widen
_NEES_90 = 10.645  # below which nine tenths of the squares of six standard normal numbers are
_NARROWEST = 0.25  # factor on the solver's standard deviations
_CLEAR = 0.9  # probability that no other pose explains an image
_ACCURATE = 0.9  # share of the held-out poses that are right, or the method is coarse


def hold_out(dataset: Dataset, config: CalibrationConfig, seed: int) -> npt.NDArray[np.int64]:
    """Indices of the mapping images that are kept out of the map to learn its calibration from.

    Blocks of consecutive frames of a video, of different lengths: their middles are seen from farther
    away than their ends. Of no sequence more than its share: a block that is a quarter of a room would
    ask for what the map has never seen. Single photographs one by one. None of a small dataset.
    """
    count = len(dataset)
    wanted = min(round(config.fraction * count), config.most)
    if not config.enabled or count < config.least_images or wanted < 2:
        return np.zeros(0, np.int64)
    rng = np.random.default_rng((seed, 76))
    sequences = [frame.sequence for frame in dataset.frames]
    left = {s: math.ceil(config.fraction * n) for s, n in Counter(sequences).items()}
    left[None] = count
    free = np.ones(count, bool)
    chosen: list[int] = []
    length = max(wanted // 2, 1) if any(s is not None for s in sequences) else 1
    while len(chosen) < wanted and length >= 1:
        length = min(length, wanted - len(chosen))
        starts = [
            start
            for start in range(1, count - length)
            if length <= left[sequences[start]]
            and free[max(start - 2, 0) : start + length + 2].all()
            and len(set(sequences[start - 1 : start + length + 1])) == 1
            and (length == 1 or sequences[start] is not None)
        ]
        if not starts:
            if length == 1:
                break
            length //= 2
            continue
        start = int(rng.choice(starts))
        chosen += range(start, start + length)
        free[start : start + length] = False
        left[sequences[start]] -= length
        length = length // 2 or max((wanted - len(chosen)) // 2, 1)
    return np.sort(np.asarray(chosen, np.int64))


def fit_calibration(
    held: Sequence[tuple[Frame, Localization]],
    foreign: Sequence[Localization],
    mapped: Float64Array,
    depth: float,
    config: CalibrationConfig,
    own: bool = False,
    memorized: bool = True,
) -> Calibration:
    """Learn a calibration.

    Args:
        held: held-out mapping images with their true poses, and how they were localized without any
            calibration.
        foreign: the same of foreign pictures.
        mapped: (N, 3, 4) poses of the mapping images.
        depth: of the scene.
        config: options.
        own: nothing was held out, the images are part of the map: their errors are too small, so that the
            covariances get half as wide again as they ask for.
        memorized: such images may be known by heart (`Estimator.memorizes`), so that covariances are never
            narrower than the solver's own. Otherwise their errors are like those of others.
    """
    localized = [(f, loc, _depth(loc, depth)) for f, loc in held if loc.localized]
    # Of two poses that explain an image one is wrong, whatever supports them: no matter of the odds.
    judged = [j for j in localized if j[1].support.get(ALONE, 1.0) > _CLEAR] or localized
    errors = [_error(frame, found) for frame, found, _ in judged]
    usual = _usual(errors, judged)
    right, as_usual = (
        np.array(
            [_within(e, d, *bounds) for e, (_, _, d) in zip(errors, judged, strict=True)], bool
        )
        for bounds in ((RIGHT_DEPTHS, RIGHT_DEG), usual)
    )
    centre = _centre([found for (_, found, _), good in zip(judged, as_usual, strict=True) if good])
    supports = [found.support for _, found, _ in judged]
    if own:
        supports = [{n: v - _OWN.get(n, 0.0) for n, v in s.items()} for s in supports]
        centre = {n: v - _OWN.get(n, 0.0) for n, v in centre.items()}
    strange = sum(f.localized for f in foreign)
    pictures = supports + [f.support for f in foreign if f.localized]
    none = np.zeros(strange, bool)
    enough = _ENOUGH_OWN if own else _ENOUGH
    here = fit_odds(pictures, np.concatenate([as_usual, none]), centre, strange, enough)
    spread = Spread(scale=3.0, floor=0.003, growth=0.02)  # where nothing was right
    used = [
        RightPose(
            error, found.covariance, novelty(_pose(found), mapped, scale), scale,
            here.lack(support, centre),
        )
        for error, (_, found, scale), support, good in zip(
            errors, judged, supports, as_usual, strict=True
        )
        if good
    ]  # fmt: skip
    if used:
        spread = widened(fit_spread(used), used)
        # No evidence of few images says that a solver's errors are many times smaller than it claims.
        spread = replace(spread, scale=max(spread.scale, _NARROWEST))
        if usual != (RIGHT_DEPTHS, RIGHT_DEG) or float(right.mean()) < _ACCURATE:
            # A coarse method regresses poses. Held-out images flatter it, as they lie between mapped
            # neighbours that it learned by heart; they are no reason to trust it more than it does itself.
            spread = replace(spread, scale=max(spread.scale, 1.0))
        if own:
            spread = replace(
                spread, scale=_OWN_WIDER * spread.scale, floor=_OWN_WIDER * spread.floor
            )
            # Images of the map say nothing of the growth: known ones not even of the errors.
            spread = (
                replace(spread, scale=max(spread.scale, 1.0), floor=max(spread.floor, 0.001))
                if memorized
                else replace(spread, growth=_OWN_GROWTH)
            )
    return Calibration(
        centre=centre,
        right=fit_odds(pictures, np.concatenate([right, none]), centre, strange, enough),
        here=here,
        spread=spread,
        depth=depth,
        mapped=mapped[:, :3].reshape(-1, 3, 4),
        min_score=config.min_score,
        held_out=0 if own else len(held),
        details={
            "localized": len(localized),
            "ambiguous": len(localized) - len(judged),
            "right": int(right.sum()),
            "usual_error": {"depths": round(usual[0], 5), "deg": round(usual[1], 3)},
            "foreign": len(foreign),
            "foreign_localized_by_the_solver": sum(f.localized for f in foreign),
        },
    )


def fit_odds(
    supports: Sequence[Mapping[str, float]],
    true: npt.NDArray[np.bool_],
    centre: Mapping[str, float],
    strange: int = 0,
    enough: float = _ENOUGH,
) -> Odds:
    """Logistic regression of a statement on the support, from a prior that holds for every map.

    Weights are not negative: more support never makes a pose less likely.

    Args:
        supports: of poses.
        true: whether the statement holds for each.
        centre: typical support.
        strange: so many of the poses, the last ones, are of foreign pictures. However many were made, they
            count as the share of foreign pictures among queries.
        enough: share of the way from foreign to mapping images that a signal has to go to speak for a pose.
    """
    names = list(centre)
    prior = np.array([_PRIOR_BIAS, *(_PRIOR_WEIGHTS.get(n, _PRIOR_SIGNAL) for n in names)])
    theta, units = prior.copy(), np.ones(len(names))
    ranges: dict[str, tuple[float, float]] = {}
    apart = set()
    if len(supports):
        x = np.array([[1.0, *(s.get(n, centre[n]) for n in names)] for s in supports])
        for column, name in enumerate(names):
            values, usual = x[:, column + 1], centre[name]
            if name.startswith("signal."):
                known, foreign = values[: len(x) - strange], values[len(x) - strange :]
                units[column], ranges[name], separates = _measure(known, foreign, enough)
                apart |= {name} if separates else set()
                values, usual = np.clip(values, *ranges[name]), np.clip(usual, *ranges[name])
            elif name in _ENOUGH_IS:
                ranges[name] = (-math.inf, usual - _ENOUGH_IS[name])
                values, usual = np.minimum(values, ranges[name][1]), ranges[name][1]
            x[:, column + 1] = (values - usual) / units[column]
        y = true.astype(float)
        sample = np.ones(len(y))
        if strange:
            own = max(len(y) - strange, 5)
            sample[-strange:] = min(1.0, _FOREIGN_SHARE * own / strange)
        strength = np.array(
            [
                _FREE,
                *(
                    _FREE if name in apart else _PRIOR_STRENGTH / max(weight, 0.1) ** 0.5
                    for name, weight in zip(names, prior[1:], strict=True)
                ),
            ]
        )
        for _ in range(50):
            p = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
            gradient = x.T @ (sample * (p - y)) + strength * (theta - prior)
            curvature = (x.T * (sample * p * (1 - p))) @ x + np.diag(strength)
            step = np.linalg.solve(curvature, gradient)
            theta = theta - step / max(1.0, float(np.abs(step).max()))
            theta[1:] = np.maximum(theta[1:], 0)
            if float(np.abs(step).max()) < 1e-6:
                break
    weights = theta[1:] / units
    return Odds(float(theta[0]), {n: float(w) for n, w in zip(names, weights, strict=True)}, ranges)


def _measure(
    known: Float64Array, foreign: Float64Array, enough: float
) -> tuple[float, tuple[float, float], bool]:
    """One step of a support whose range is the affair of an estimator, and where it speaks.

    Where foreign pictures have clearly less of it, it tells the place apart. A step is then its spread over
    the mapping images, or a fifth of the way from foreign pictures to them where that is longer; and a part
    of the way is enough: images that are farther from the mapped ones have less of it than those held out,
    and are of the place too. Elsewhere a step is its spread over all pictures. Less than foreign
    pictures have, or than any had, says no more than they do: images that are part of the map may be
    all alike, and a query is never like them.

    Returns:
        the step, the range in which it speaks, and whether it tells the place apart.
    """
    step = float(np.std(known)) if len(known) else 0.0
    if len(foreign) and len(known):
        strange = float(np.median(foreign))
        way = float(np.median(known)) - strange
        if way > max(2 * step, _LEAST_STEP):
            return max(step, way / _STEPS), (strange, strange + enough * way), True
    seen = np.concatenate([known, foreign])
    step = float(np.std(seen)) if len(seen) else 0.0
    low = float(seen.min()) if len(seen) else -math.inf
    return (step if step > _LEAST_STEP else 1.0), (low, math.inf), False


@dataclass(frozen=True)
class RightPose:
    """What `fit_spread` learns from.

    Attributes:
        error: (6,) in the tangent of `reloc_core.types`.
        claimed: (6, 6) covariance by the solver, or None.
        distance: its novelty.
        depth: of the scene.
        lack: of support, see `Odds.lack`.
    """

    error: Float64Array
    claimed: Float64Array | None
    distance: float
    depth: float
    lack: float = 0.0


def fit_spread(used: Sequence[RightPose]) -> Spread:
    """Scale, floor and growth of the covariance under which the errors of right poses are most likely."""
    prior = Spread()
    names = ("scale", "floor", "growth", "turn")
    centre = np.log([getattr(prior, n) for n in names])
    width = np.array([0.8, 1.5, 0.8, 0.5])

    def cost(theta: Float64Array) -> float:
        spread = Spread(*np.exp(theta).tolist())
        total = float((((theta - centre) / width) ** 2).sum()) / 2
        for pose in used:
            covariance = spread.covariance(pose.claimed, pose.distance, pose.depth, pose.lack)
            sign, log_det = np.linalg.slogdet(covariance)
            if sign <= 0:
                return math.inf
            nees = float(pose.error @ np.linalg.solve(covariance, pose.error))
            # Student's t with 8 degrees of freedom: one outlier does not rule.
            total += _WORTH * (7.0 * math.log1p(nees / 8.0) + log_det / 2)
        return total

    theta = descend(cost, centre, np.full(4, 0.5))
    # A little wider than the likeliest: few images know little of the tails.
    theta[:3] += _MARGIN
    return Spread(*np.exp(theta).tolist())


def widened(spread: Spread, used: Sequence[RightPose]) -> Spread:
    """A spread under which the tail of the held-out images is not longer than that of a Gaussian.

    The likeliest one leaves more than a tenth of them outside of the region where nine tenths belong if
    their errors have long tails.
    """
    if len(used) < _TAIL_LEAST:
        return spread
    values = [
        pose.error @ np.linalg.solve(
            spread.covariance(pose.claimed, pose.distance, pose.depth, pose.lack), pose.error
        )
        for pose in used
    ]  # fmt: skip
    factor = math.sqrt(float(np.quantile(values, 0.9)) / _NEES_90)
    factor = min(max(factor, 1.0), _TAIL_MOST)
    return replace(
        spread,
        scale=factor * spread.scale,
        floor=factor * spread.floor,
        growth=factor * spread.growth,
    )


def descend(
    cost: Callable[[Float64Array], float], start: Float64Array, steps: Float64Array
) -> Float64Array:
    """Minimum of a smooth function of few variables by pattern search (Hooke and Jeeves 1961)."""
    best: Float64Array = start.copy()
    lowest, steps = cost(start), steps.copy()
    while steps.max() > 0.02:
        before = best.copy()
        for axis in range(len(best)):
            for sign in (1, -1):
                trial = best.copy()
                trial[axis] += sign * steps[axis]
                value = cost(trial)
                if value < lowest:
                    best, lowest = trial, value
                    break
        if np.array_equal(before, best):
            steps /= 2
            continue
        trial = 2 * best - before
        value = cost(trial)
        if value < lowest:
            best, lowest = trial, value
    return best


def scene_scale(mapped: Float64Array) -> float:
    """A length of the size of the scene's depth from cameras alone: how far they are apart."""
    centres = mapped[:, :3, 3]
    return float(np.linalg.norm(centres.std(0)) * 2) or 1.0


def _depth(found: Localization, depth: float) -> float:
    return found.support.get("depth", depth)


def _pose(found: Localization) -> Float64Array:
    assert found.world_from_cam is not None
    return found.world_from_cam


def _error(frame: Frame, found: Localization) -> Float64Array:
    """(6,) rotation in rad and translation of the truth seen from the estimate."""
    assert frame.world_from_cam is not None
    return pose_minus(frame.world_from_cam, _pose(found))


def _within(error: Float64Array, depth: float, depths: float, degrees: float) -> bool:
    return bool(
        np.linalg.norm(error[3:]) <= depths * depth
        and np.linalg.norm(error[:3]) <= math.radians(degrees)
    )


def _usual(
    errors: Sequence[Float64Array], judged: Sequence[tuple[Frame, Localization, float]]
) -> tuple[float, float]:
    """Share of the depth and degrees within which this method's poses usually are; at least "right"."""
    if not errors:
        return RIGHT_DEPTHS, RIGHT_DEG
    depths = [float(np.linalg.norm(e[3:])) / d for e, (_, _, d) in zip(errors, judged, strict=True)]
    turns = [math.degrees(float(np.linalg.norm(e[:3]))) for e in errors]
    return (
        max(RIGHT_DEPTHS, 3 * float(np.median(depths))),
        max(RIGHT_DEG, 3 * float(np.median(turns))),
    )


def _centre(found: Sequence[Localization]) -> dict[str, float]:
    """Median support of the right ones, by name; what fewer than half of them have is left out."""
    names = {n for f in found for n in f.support if n not in ("depth", ALONE)}
    values = {n: [f.support[n] for f in found if n in f.support] for n in sorted(names)}
    return {n: float(np.median(v)) for n, v in values.items() if 2 * len(v) >= len(found)}
