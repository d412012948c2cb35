"""A model's registered images, and what gives it scale and axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reloc_core.types import Camera, Float64Array


@dataclass(frozen=True)
class Posed:
    """A registered image in the model's world.

    Attributes:
        name: of the image.
        camera: intrinsics.
        world_from_cam: (4, 4).
        orientation: tag of EXIF.
        points: (N, 3) scene points that it observes.
    """

    name: str
    camera: Camera
    world_from_cam: Float64Array
    orientation: int
    points: Float64Array


@dataclass(frozen=True)
class World:
    """The similarity that gives a model its scale and axes: world = scale * rotation @ model + shift.

    Attributes:
        scale: world units per model unit.
        rotation: (3, 3) world_from_model.
        shift: (3,).
        unit: "metre" or "scene unit".
        source: where it comes from, in words.
        details: for the record: the origin, residuals.
    """

    scale: float
    rotation: Float64Array
    shift: Float64Array
    unit: str
    source: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def point(self, points: Float64Array) -> Float64Array:
        """Points (N, 3) of the model in the world."""
        return np.asarray(self.scale * points @ self.rotation.T + self.shift)
