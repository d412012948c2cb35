"""What all maps have in common before they are calibrated; see `benchmarks/calibration_prior.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reloc_core.calibration.model import Spread


@dataclass(frozen=True)
class Prior:
    """What a calibration is before the held-out images and foreign pictures of its map are seen.

    Attributes:
        bias: log odds of a pose with the typical support of its map.
        weights: log odds per unit of a support, by name.
        other: the same per step of a support that it does not know, as what estimators say.
        strength: inverse variance of the weights.
        free: of the bias, and of signals that tell the place apart.
        foreign: how many foreign pictures count for one held-out image, however many were made.
        own: by how much mapping images support their own poses better than unseen ones, by name.
        spread: centre of that of covariances.
        widths: standard deviations of the logs of its scale, floor, growth and turn.
        worth: of one held-out frame: neighbours in a video share their errors.
        margin: by how much wider than the likeliest it is: few images know little of the tails.
        own_wider: by which factor unseen images err more than those that are part of the map.
    """

    bias: float = 8.0
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "inliers": 1.2,
            "cover": 1.5,
            "distinct": 1.0,
            "ratio": 0.3,
            "chance": 0.3,
            "score": 0.22,
        }
    )
    other: float = 0.15
    strength: float = 2.0
    free: float = 0.5
    foreign: float = 0.4
    own: Mapping[str, float] = field(
        default_factory=lambda: {
            "inliers": 0.7,
            "ratio": 0.7,
            "chance": 0.5,
            "claimed": 0.5,
            "cover": 0.2,
        }
    )
    spread: Spread = field(default_factory=Spread)
    widths: tuple[float, float, float, float] = (0.8, 1.5, 0.8, 0.5)
    worth: float = 0.35
    margin: float = 0.1
    own_wider: float = 1.5

    def weight(self, name: str) -> float:
        """Log odds per unit of a support."""
        return self.weights.get(name, self.other)


PRIOR = Prior()
