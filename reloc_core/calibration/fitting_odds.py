"""Learning the odds that a pose is right from what supports it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from reloc_core.calibration.model import Odds
from reloc_core.calibration.prior import PRIOR, Prior
from reloc_core.types import Float64Array

_ENOUGH_IS: Mapping[str, float] = {"claimed": 0.0, "distinct": 0.7}
"""By how much less than usual of a support says nothing yet, and more never: the fewer points, the closer a
pose fits them all, and claims what none has; a few landmarks are claimed twice in every image."""
_LEAST_STEP = 1e-6
_STEPS = 5  # from foreign pictures to mapping images
ENOUGH = 0.5  # of that way, to speak for a pose


def fit_odds(
    supports: Sequence[Mapping[str, float]],
    true: npt.NDArray[np.bool_],
    centre: Mapping[str, float],
    strange: int = 0,
    enough: float = ENOUGH,
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
