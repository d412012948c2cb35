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
from reloc_core.calibration.prior import PRIOR, Prior
from reloc_core.calibration.support import novelty
from reloc_core.geometry import pose_minus
from reloc_core.interfaces import Dataset
from reloc_core.types import Float64Array, Frame, Localization

_ENOUGH_IS: Mapping[str, float] = {"claimed": 0.0, "distinct": 0.7}
"""By how much less than usual of a support says nothing yet, and more never: the fewer points, the closer a
pose fits them all, and claims what none has; a few landmarks are claimed twice in every image."""
_LEAST_STEP = 1e-6
_STEPS = 5  # from foreign pictures to mapping images
_ENOUGH, _ENOUGH_OWN = 0.5, 0.25  # of that way; for images that are part of the map
_TAIL_LEAST, _TAIL_MOST = 20, 1.5  # images that tell of a tail, and how far it may widen
_NEES_90 = 10.645  # below which nine tenths of the squares of six standard normal numbers are
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


@dataclass(frozen=True)
class Witnesses:
    """What a calibration is learned from.

    Attributes:
        held: held-out mapping images with their true poses, and how they were localized without any
            calibration.
        foreign: the same of foreign pictures.
        mapped: (N, 3, 4) poses of the mapping images.
        depth: of the scene.
        own: nothing was held out, the images are part of the map: their errors are too small, so that the
            covariances get half as wide again as they ask for.
        memorized: such images may be known by heart (`Estimator.memorizes`), so that covariances are never
            narrower than the solver's own. Otherwise their errors are like those of others.
    """

    held: Sequence[tuple[Frame, Localization]]
    foreign: Sequence[Localization]
    mapped: Float64Array
    depth: float
    own: bool = False
    memorized: bool = True


def fit_calibration(
    witnesses: Witnesses, config: CalibrationConfig, prior: Prior = PRIOR
) -> Calibration:
    """Learn a calibration from what a map said, and from what all maps have in common."""
    held, foreign, mapped = witnesses.held, witnesses.foreign, witnesses.mapped
    depth, own, memorized = witnesses.depth, witnesses.own, witnesses.memorized
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
        supports = [{n: v - prior.own.get(n, 0.0) for n, v in s.items()} for s in supports]
        centre = {n: v - prior.own.get(n, 0.0) for n, v in centre.items()}
    strange = sum(f.localized for f in foreign)
    pictures = supports + [f.support for f in foreign if f.localized]
    none = np.zeros(strange, bool)
    enough = _ENOUGH_OWN if own else _ENOUGH
    here = fit_odds(pictures, np.concatenate([as_usual, none]), centre, strange, enough, prior)
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
        # A coarse method regresses poses. Held-out images flatter it, as they lie between mapped
        # neighbours that it learned by heart; they are no reason to trust it more than it does itself.
        coarse = usual != (RIGHT_DEPTHS, RIGHT_DEG) or float(right.mean()) < _ACCURATE
        spread = map_spread(used, prior, own, coarse or (own and memorized))
    return Calibration(
        centre=centre,
        right=fit_odds(pictures, np.concatenate([right, none]), centre, strange, enough, prior),
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
    prior: Prior = PRIOR,
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
        prior: what holds for every map.
    """
    steps, apart = measured(supports, centre, strange, enough)
    expected = np.array([prior.bias, *(prior.weight(n) for n in centre)])
    theta = expected
    if len(supports):
        sample = np.ones(len(supports))
        if strange:
            own = max(len(supports) - strange, 5)
            sample[-strange:] = min(1.0, prior.foreign * own / strange)
        strength = np.array(
            [
                prior.free,
                *(
                    prior.free if name in apart else prior.strength / max(weight, 0.1) ** 0.5
                    for name, weight in zip(centre, expected[1:], strict=True)
                ),
            ]
        )
        rows = [list(steps.lacks(s, centre).values()) for s in supports]
        theta = regression(np.array(rows), true, sample, expected, strength)
    weights = {
        name: float(value) * steps.weights[name]
        for name, value in zip(centre, theta[1:], strict=True)
    }
    return Odds(float(theta[0]), weights, steps.ranges)


def regression(
    rows: Float64Array,
    true: npt.NDArray[np.bool_],
    sample: Float64Array,
    expected: Float64Array,
    strength: Float64Array,
) -> Float64Array:
    """(1 + K,) bias and weights, which are not negative, of a logistic regression (maximum a posteriori).

    Args:
        rows: (N, K) what speaks for each statement.
        true: (N,) whether it holds.
        sample: (N,) how much each counts.
        expected: (1 + K,) bias and weights by the prior.
        strength: (1 + K,) inverse variances of the prior.
    """
    x = np.column_stack([np.ones(len(rows)), rows])
    y, theta = true.astype(float), expected.copy()
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
        gradient = x.T @ (sample * (p - y)) + strength * (theta - expected)
        curvature = (x.T * (sample * p * (1 - p))) @ x + np.diag(strength)
        # Weights that would become negative stay at zero and leave the others alone.
        free = (theta > 0) | (gradient < 0)
        free[0] = True
        step = np.zeros(len(theta))
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], gradient[free])
        before = theta
        theta = theta - step / max(1.0, float(np.abs(step).max()))
        theta[1:] = np.maximum(theta[1:], 0)
        if float(np.abs(theta - before).max()) < 1e-6:
            break
    return np.asarray(theta, np.float64)


def measured(
    supports: Sequence[Mapping[str, float]],
    centre: Mapping[str, float],
    strange: int,
    enough: float,
) -> tuple[Odds, set[str]]:
    """Odds whose weights are one for a step of each support, and the signals that tell the place apart.

    Arguments are those of `fit_odds`.
    """
    weights: dict[str, float] = dict.fromkeys(centre, 1.0)
    ranges: dict[str, tuple[float, float]] = {}
    apart = set()
    for name, usual in centre.items():
        if name in _ENOUGH_IS:
            ranges[name] = (-math.inf, usual - _ENOUGH_IS[name])
        elif name.startswith("signal.") and supports:
            values = np.array([s.get(name, usual) for s in supports])
            known, foreign = values[: len(values) - strange], values[len(values) - strange :]
            unit, ranges[name], separates = _measure(known, foreign, enough)
            weights[name] = 1 / unit
            apart |= {name} if separates else set()
    return Odds(0.0, weights, ranges), apart


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


@dataclass(frozen=True)
class _Poses:
    """Right poses as arrays."""

    errors: Float64Array
    claimed: Float64Array
    distance: Float64Array
    depth: Float64Array
    lack: Float64Array

    @classmethod
    def of(cls, used: Sequence[RightPose]) -> _Poses:
        none = np.zeros((6, 6))
        return cls(
            np.array([p.error for p in used]).reshape(-1, 6),
            np.array([none if p.claimed is None else p.claimed for p in used]).reshape(-1, 6, 6),
            *(np.array([getattr(p, n) for p in used]) for n in ("distance", "depth", "lack")),
        )

    def squares(self, spread: Spread) -> Float64Array:
        """(N,) normalised squared errors."""
        return self._squares(spread.covariance(self.claimed, self.distance, self.depth, self.lack))

    def surprise(self, spread: Spread) -> float:
        """Minus the log likelihood of the errors, up to a constant."""
        stated = spread.covariance(self.claimed, self.distance, self.depth, self.lack)
        sign, log_det = np.linalg.slogdet(stated)
        if (sign <= 0).any():
            return math.inf
        # Student's t with 8 degrees of freedom: one outlier does not rule.
        return float((7.0 * np.log1p(self._squares(stated) / 8.0) + log_det / 2).sum())

    def _squares(self, stated: Float64Array) -> Float64Array:
        solved = np.linalg.solve(stated, self.errors[..., None])[..., 0]
        return np.asarray(np.einsum("ni,ni->n", self.errors, solved), np.float64)


def map_spread(used: Sequence[RightPose], prior: Prior, own: bool, flattered: bool) -> Spread:
    """The spread of a map's poses.

    Args:
        used: right poses of its held-out images.
        prior: what holds for every map.
        own: they are images of the map, which say nothing of how errors grow.
        flattered: the method may know them by heart: no reason to trust it more than it does itself.
    """
    spread = widened(fit_spread(used, prior), used)
    if own:
        wider = prior.own_wider
        spread = replace(spread, scale=wider * spread.scale, floor=wider * spread.floor)
        if not flattered:
            # What was triangulated knows by itself how it grows: the solver's own covariance does.
            return replace(spread, growth=0.0)
        spread = replace(spread, floor=max(spread.floor, 0.001))
    return replace(spread, scale=max(spread.scale, 1.0)) if flattered else spread


def fit_spread(used: Sequence[RightPose], prior: Prior = PRIOR) -> Spread:
    """Scale, floor and growth of the covariance under which the errors of right poses are most likely."""
    names = ("scale", "floor", "growth", "turn")
    centre = np.log([getattr(prior.spread, n) for n in names])
    poses = _Poses.of(used)

    def cost(theta: Float64Array) -> float:
        total = float((((theta - centre) / prior.widths) ** 2).sum()) / 2
        spread = replace(prior.spread, **dict(zip(names, np.exp(theta), strict=True)))
        return total + prior.worth * poses.surprise(spread)

    theta = descend(cost, centre, np.full(4, 0.5))
    theta[:3] += prior.margin
    return replace(prior.spread, **dict(zip(names, np.exp(theta).tolist(), strict=True)))


def widened(spread: Spread, used: Sequence[RightPose]) -> Spread:
    """A spread under which the tail of the held-out images is not longer than that of a Gaussian.

    The likeliest one leaves more than a tenth of them outside of the region where nine tenths belong if
    their errors have long tails.
    """
    if len(used) < _TAIL_LEAST:
        return spread
    values = _Poses.of(used).squares(spread)
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
