"""The calibration of a map: from support and novelty to a probability and a covariance."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from reloc_core.calibration.config import RIGHT_DEG, RIGHT_DEPTHS
from reloc_core.calibration.support import novelty
from reloc_core.errors import MapError
from reloc_core.mapped import mapped_frames
from reloc_core.maps import Map, MapWriter
from reloc_core.types import Float64Array, Localization, Status

PART = "calibration"
ALONE = "solver.alone"
"""Support that is a probability by itself, which no odds have to be learned for."""
CAMERA = "solver.camera"
_NEARLY = 0.1
_UNBOUNDED = (-math.inf, math.inf)
VERSION = 1
_LOG = logging.getLogger(__name__)
_WORDS = {
    "inliers": "too few different scene points agree",
    "ratio": "too small a share of the matches agrees",
    "distinct": "many parts of the image claim the same scene points",
    "chance": "so few matches agree by chance",
    "spread": "those that agree lie in a thin band of the image",
    "cover": "those that agree cover too little of the image",
    "weight": "those that agree are not the better matches",
    "claimed": "the position is hardly determined",
    "score": "the solver trusts it little",
    CAMERA: "the camera is probably not the one that is stated",
}


@dataclass(frozen=True)
class Spread:
    """What a pose's error is made of beside the solver's covariance.

    Attributes:
        scale: factor on the solver's standard deviations.
        floor: standard deviation of the position over the scene's depth, wherever the query is.
        growth: the same per unit of novelty.
        turn: standard deviation of the rotation in radians, per that of the position over the depth.
        doubt: by which share all standard deviations grow per unit of log odds that a pose's support lacks:
            what little supports may be wrong by a little, too, which its residuals do not tell.
    """

    scale: float = 2.0
    floor: float = 0.002
    growth: float = 0.011
    turn: float = 0.7
    doubt: float = 0.08

    def covariance(
        self,
        claimed: Float64Array | None,
        distance: float | Float64Array,
        depth: float | Float64Array,
        lack: float | Float64Array = 0.0,
        camera: float | Float64Array = 0.0,
    ) -> Float64Array:
        """(..., 6, 6) covariance of a pose, or of several.

        Args:
            claimed: (..., 6, 6) by the solver; None where it says nothing.
            distance: (...) from what was mapped, a novelty.
            depth: (...) of the scene.
            lack: (...) of support, in log odds; see `Odds.lack`.
            camera: (...) minus the logarithm of by how much doubts of the camera widened `claimed`. What
                they added counts in full, however modest the solver is of images of a right camera.
        """
        own = np.zeros((6, 6)) if claimed is None else np.asarray(claimed, np.float64)
        variance = self.floor**2 + (self.growth * np.asarray(distance)) ** 2
        parts = np.stack([variance * self.turn**2, variance * np.asarray(depth) ** 2], -1)
        added = np.repeat(parts, 3, -1)[..., None] * np.eye(6)
        wider = 1 + self.doubt * np.asarray(lack)[..., None, None]
        scale2 = max(self.scale, 1.0) ** 2 + np.exp(camera) * min(self.scale**2 - 1, 0.0)
        return np.asarray(wider**2 * (scale2[..., None, None] * own + added), np.float64)


@dataclass(frozen=True)
class Odds:
    """Log odds of a statement about a pose, linear in its support.

    Attributes:
        bias: at the typical support of the map.
        weights: of the difference to it, by name; never negative.
        ranges: least and largest value beyond which a support says nothing more, by name; without bounds
            for other names.
    """

    bias: float
    weights: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def lacks(self, found: Mapping[str, float], centre: Mapping[str, float]) -> dict[str, float]:
        """What each support adds to the log odds of a typical pose, by name: negative where it lacks."""
        return {
            name: weight
            * (self._of(name, found.get(name, centre[name])) - self._of(name, centre[name]))
            for name, weight in self.weights.items()
        }

    def lack(self, found: Mapping[str, float], centre: Mapping[str, float]) -> float:
        """Log odds that the support lacks of those of a typical pose, at least 0."""
        return max(0.0, -sum(self.lacks(found, centre).values()))

    def probability(self, found: Mapping[str, float], centre: Mapping[str, float]) -> float:
        """Probability that the statement holds for a pose with this support."""
        total = self.bias + sum(self.lacks(found, centre).values())
        return 1 / (1 + math.exp(-min(max(total, -30.0), 30.0)))

    def _of(self, name: str, value: float) -> float:
        low, high = self.ranges.get(name, _UNBOUNDED)
        return min(max(value, low), high)


@dataclass(frozen=True)
class Calibration:
    """What turns a solver's result into one that can be believed.

    Attributes:
        centre: typical support of the held-out mapping images, by name.
        right: odds that a pose is right: within 2.5 % of the scene's depth and 5 degrees.
        here: odds that the picture was taken in this place and the pose is as right as this method's poses
            usually are, which for a coarse method is less than right.
        spread: of the position.
        depth: of the scene, for evidence without points.
        mapped: (N, 3, 4) poses of the mapping images.
        min_score: poses that are less probably from here are refused.
        held_out: images that it was learned from.
        details: what it was learned from, for people.
    """

    centre: Mapping[str, float]
    right: Odds
    here: Odds
    spread: Spread
    depth: float
    mapped: Float64Array = field(repr=False)
    min_score: float = 0.5
    held_out: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_map(cls, scene_map: Map) -> Calibration | None:
        """The calibration of a map; None where it has none, or one of another version.

        Raises:
            MapError: it is damaged.
        """
        if not scene_map.has(PART):
            return None
        _, stored = scene_map.tensors(PART, "np")
        if stored.get("version") != VERSION:
            _LOG.warning("%s: its calibration is of another version; not used.", scene_map.path)
            return None
        try:
            return cls(
                centre={str(k): float(v) for k, v in stored["centre"].items()},
                right=_odds(stored["right"]),
                here=_odds(stored["here"]),
                spread=Spread(**{k: float(v) for k, v in stored["spread"].items()}),
                depth=float(stored["depth"]),
                mapped=mapped_frames(scene_map).world_from_cam[:, :3],
                min_score=float(stored["min_score"]),
                held_out=int(stored["held_out"]),
                details=dict(stored["details"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MapError(
                f"The calibration of {scene_map.path} is damaged ({error}). Train the map again."
            ) from error

    def save(self, writer: MapWriter) -> None:
        """Write it into a map, which keeps the poses of its mapping images itself."""
        stored = {k: v for k, v in asdict(self).items() if k != "mapped"}
        for odds in (stored["right"], stored["here"]):
            # JSON has no infinities.
            odds["ranges"] = {
                name: [bound if math.isfinite(bound) else None for bound in bounds]
                for name, bounds in odds["ranges"].items()
            }
        writer.save(PART, {}, {"version": VERSION, **stored})

    def judge(self, result: Localization) -> Localization:
        """Give a result its probability and its covariance, or refuse it.

        Args:
            result: after the refiners, with the support that the solver's pose had. Without any, as where
                a filter predicts a pose that nothing was seen of, it stays as it is.
        """
        found = result.support
        if not result.localized or result.world_from_cam is None or not found:
            return result
        # Of two poses that explain a query equally well one is wrong, however well both are supported.
        alone = found.get(ALONE, 1.0)
        here = alone * self.here.probability(found, self.centre)
        depth = found.get("depth", self.depth)
        distance = novelty(result.world_from_cam, self.mapped, depth)
        lack = self.here.lack(found, self.centre)
        camera = found.get(CAMERA, 0.0)
        covariance = self.spread.covariance(result.covariance, distance, depth, lack, camera)
        right = alone * self.right.probability(found, self.centre)
        # No pose is more probably right than its own covariance lets it be. What its support lacks is in
        # the odds already.
        usual = self.spread.covariance(result.covariance, distance, depth, camera=camera)
        score = min(here, right, within_right(usual, depth))
        if here < self.min_score:
            return replace(
                result,
                status=Status.NOT_LOCALIZED,
                reason=f"probably wrong (probability to be right {here:.2f}): {self._reason(found)}.",
                world_from_cam=None,
                covariance=None,
                score=score,
            )
        return replace(result, score=score, covariance=covariance)

    def _reason(self, found: Mapping[str, float]) -> str:
        """The weakest part of the support, in words."""
        if found.get(ALONE, 1.0) <= self.min_score + _NEARLY:
            return "another place explains it about as well"
        lacks = self.here.lacks(found, self.centre)
        if not lacks:
            return "nothing is known of what supports poses in this map"
        worst = min(lacks, key=lambda name: lacks[name])
        words = _WORDS.get(worst, f"{worst.removeprefix('signal.')} is low")
        if worst == "inliers":
            now, usual = math.expm1(found.get(worst, 0.0)), math.expm1(self.centre[worst])
            return f"{words} ({now:.0f}; {usual:.0f} for images of this map)"
        return words


def within_right(covariance: Float64Array, depth: float) -> float:
    """Probability that a Gaussian error is a right one: within 2.5 % of the depth and 5 degrees.

    Position and rotation are taken as round, and the less probable of the two counts.

    Args:
        covariance: (6, 6) of rotation in rad and position.
        depth: of the scene, in the unit of the position.
    """
    bounds = (math.radians(RIGHT_DEG), RIGHT_DEPTHS * depth)
    spreads = (np.trace(covariance[:3, :3]), np.trace(covariance[3:, 3:]))
    return min(
        _within_sphere(bound / math.sqrt(max(float(spread) / 3, 1e-300)))
        for bound, spread in zip(bounds, spreads, strict=True)
    )


def _within_sphere(radius: float) -> float:
    """Probability that three standard normal numbers lie within a sphere (chi distribution)."""
    tail = math.sqrt(2 / math.pi) * radius * math.exp(-(radius**2) / 2)
    return max(math.erf(radius / math.sqrt(2)) - tail, 0.0)


def _odds(stored: Mapping[str, Any]) -> Odds:
    return Odds(
        float(stored["bias"]),
        {str(k): float(v) for k, v in stored["weights"].items()},
        {str(k): _range(*bounds) for k, bounds in stored.get("ranges", {}).items()},
    )


def _range(low: float | None, high: float | None) -> tuple[float, float]:
    """A stored range: None, and in older maps an infinity, where it has no bound."""
    least, largest = _UNBOUNDED
    return least if low is None else float(low), largest if high is None else float(high)
