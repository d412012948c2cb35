"""What the stages of the refiner share: the query at their resolution, and the field drawn at a pose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from gsplat_loc.config import RefineConfig
from gsplat_loc.field.fieldmap import FieldMap
from gsplat_loc.field.render import Rendering, snapshot, surface
from reloc_core.interfaces import Runtime
from reloc_core.mapping import make_view
from reloc_core.types import BoolArray, Camera, Float64Array, ImageArray, Localization, Query


@dataclass(frozen=True)
class Seen:
    """A query at the refiner's resolution.

    Attributes:
        query: as it came.
        camera: pinhole.
        image: (H, W, 3) uint8.
        inside: (H, W) where the image has content.
    """

    query: Query
    camera: Camera
    image: ImageArray
    inside: BoolArray


def seen_at(query: Query, resolution: int) -> Seen:
    """A query without distortion, its shorter side at most `resolution` pixels."""
    view = make_view(query, resolution)
    inside = np.ones(view.image.shape[:2], bool) if view.mask is None else view.mask
    return Seen(query, view.camera, view.image, inside)


class Stage(ABC):
    """One way to improve a pose against a field.

    Args:
        field: what is rendered.
        config: of the refiner.
        runtime: device, threads, seed.
    """

    def __init__(self, field: FieldMap, config: RefineConfig, runtime: Runtime) -> None:
        self.field, self.config, self.runtime = field, config, runtime

    @property
    def map_error(self) -> float:
        """`RefineConfig.map_error`, or what was measured at mapping where that is more."""
        return max(self.config.map_error, self.field.error_px)

    def draw(self, seen: Seen, pose: Float64Array) -> tuple[Rendering, np.ndarray]:
        """The field from a pose, and the pixels (H, W) whose depth can be trusted."""
        at = self.field.placement(self.runtime.threads)
        drawn = snapshot(self.field.gaussians, seen.camera, pose, at)
        return drawn, surface(drawn, self.config.min_alpha, self.config.depth_edge)

    @abstractmethod
    def run(self, seen: Seen, localization: Localization) -> Localization:
        """An improved localization, or the given one; it has a pose."""
