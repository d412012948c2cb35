"""Learning a map's calibration from held-out mapping images and foreign pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reloc_core.calibration.config import RIGHT_DEG, RIGHT_DEPTHS, CalibrationConfig
from reloc_core.calibration.fitting_odds import ENOUGH, fit_odds
from reloc_core.calibration.fitting_spread import RightPose, map_spread
from reloc_core.calibration.model import ALONE, CAMERA, Calibration, Spread
from reloc_core.calibration.prior import PRIOR, Prior
from reloc_core.calibration.support import novelty
from reloc_core.geometry import pose_minus
from reloc_core.interfaces import Dataset
from reloc_core.types import Float64Array, Frame, Localization

_ENOUGH_OWN = 0.25  # of the way from foreign pictures, for images that are part of the map
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
    enough = _ENOUGH_OWN if own else ENOUGH
    here = fit_odds(pictures, np.concatenate([as_usual, none]), centre, strange, enough, prior)
    spread = Spread(scale=3.0, floor=0.003, growth=0.02)  # where nothing was right
    used = [
        RightPose(
            error, found.covariance, novelty(_pose(found), mapped, scale), scale,
            here.lack(support, centre), found.support.get(CAMERA, 0.0),
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
