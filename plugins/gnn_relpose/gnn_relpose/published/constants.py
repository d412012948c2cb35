"""Constants that belong to the released checkpoints: colours and the meaning of the six numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gnn_relpose.published.images import Colors
from gnn_relpose.shared.vectors import Convention
from reloc_core.errors import ConfigError, did_you_mean

# 7-Scenes: mean and variance of red, green and blue.
_COLORS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "chess": ((0.50097, 0.44131, 0.44583), (0.04330, 0.05278, 0.04761)),
    "fire": ((0.52226, 0.46205, 0.42125), (0.05550, 0.05943, 0.05525)),
    "heads": ((0.45706, 0.45043, 0.45861), (0.07874, 0.07748, 0.07183)),
    "office": ((0.47037, 0.44148, 0.43510), (0.07105, 0.07191, 0.06783)),
    "pumpkin": ((0.55034, 0.44926, 0.45793), (0.04053, 0.04900, 0.03386)),
    "redkitchen": ((0.52622, 0.44005, 0.43208), (0.04872, 0.06484, 0.05724)),
    "stairs": ((0.44727, 0.43122, 0.42915), (0.03259, 0.02619, 0.01209)),
}
CAMBRIDGE = "cambridge"
# Cambridge Landmarks: world-to-camera translations of all five scenes together.
_MEAN = (-6.7909, 8.1958, 30.1203)
_DEVIATION = (12.6376, 5.3801, 19.3833)
_GREY, _CONTRAST = 0.5, 0.25


@dataclass(frozen=True)
class Constants:
    """What a checkpoint takes and predicts.

    Attributes:
        convention: of its pose vectors.
        colors: statistics that images are normalised by; None: those of each scene's own images.
        everywhere: whether they hold for every scene, and not for the named one alone.
    """

    convention: Convention
    colors: Colors | None
    everywhere: bool = False


def constants(name: str) -> Constants:
    """Constants by name: "" (metric poses, measured colours), "7scenes/SCENE" or "cambridge".

    Raises:
        ConfigError: no such name.
    """
    if not name:
        return Constants(Convention(), None)
    if name == CAMBRIDGE:
        convention = Convention(
            world_to_camera=True, mean=np.array(_MEAN), deviation=np.array(_DEVIATION)
        )
        return Constants(convention, Colors(np.full(3, _GREY), np.full(3, _CONTRAST)), True)
    known = [CAMBRIDGE, *(f"7scenes/{scene}" for scene in _COLORS)]
    if name not in known:
        raise ConfigError(f"estimator.constants='{name}' is unknown.{did_you_mean(name, known)}")
    mean, variance = _COLORS[name.partition("/")[2]]
    return Constants(Convention(), Colors(np.array(mean), np.sqrt(variance)))
