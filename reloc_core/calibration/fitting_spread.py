"""Learning how far right poses are off: what the solver's covariance lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reloc_core.calibration.model import Spread
from reloc_core.calibration.prior import PRIOR, Prior
from reloc_core.types import Float64Array

_TAIL_LEAST, _TAIL_MOST = 20, 1.5  # images that tell of a tail, and how far it may widen
_NEES_90 = 10.645  # below which nine tenths of the squares of six standard normal numbers are


@dataclass(frozen=True)
class RightPose:
    """What `fit_spread` learns from.

    Attributes:
        error: (6,) in the tangent of `reloc_core.types`.
        claimed: (6, 6) covariance by the solver, or None.
        distance: its novelty.
        depth: of the scene.
        lack: of support, see `Odds.lack`.
        camera: see `Spread.covariance`.
    """

    error: Float64Array
    claimed: Float64Array | None
    distance: float
    depth: float
    lack: float = 0.0
    camera: float = 0.0


@dataclass(frozen=True)
class _Poses:
    """Right poses as arrays."""

    errors: Float64Array
    claimed: Float64Array
    distance: Float64Array
    depth: Float64Array
    lack: Float64Array
    camera: Float64Array

    @classmethod
    def of(cls, used: Sequence[RightPose]) -> _Poses:
        none = np.zeros((6, 6))
        return cls(
            np.array([p.error for p in used]).reshape(-1, 6),
            np.array([none if p.claimed is None else p.claimed for p in used]).reshape(-1, 6, 6),
            *(
                np.array([getattr(p, n) for p in used])
                for n in ("distance", "depth", "lack", "camera")
            ),
        )

    def squares(self, spread: Spread) -> Float64Array:
        """(N,) normalised squared errors."""
        return self._squares(self._stated(spread))

    def surprise(self, spread: Spread) -> float:
        """Minus the log likelihood of the errors, up to a constant."""
        stated = self._stated(spread)
        sign, log_det = np.linalg.slogdet(stated)
        if (sign <= 0).any():
            return math.inf
        # Student's t with 8 degrees of freedom: one outlier does not rule.
        return float((7.0 * np.log1p(self._squares(stated) / 8.0) + log_det / 2).sum())

    def _stated(self, spread: Spread) -> Float64Array:
        return spread.covariance(self.claimed, self.distance, self.depth, self.lack, self.camera)

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
