"""The volume of a scene, and the similarity that brings it into the field's frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nefes_refine.config import SceneConfig
from nefes_refine.field.constants import scene_constants
from nefes_refine.field.frames import (
    WorldSetup,
    centred_from_world,
    field_from_world,
    read_pose_average,
    read_world_setup,
)
from reloc_core.errors import DataError, InputError
from reloc_core.geometry import OPENCV_FROM_OPENGL, inverse, transform
from reloc_core.types import Float64Array

_TAIL = 0.5  # percent of the points on each side that do not widen the volume


@dataclass(frozen=True)
class Scene:
    """Where the field is and how deep its rays go.

    Attributes:
        field_from_world: (4, 4) similarity.
        low: (3,) corner of the volume in the field's frame.
        high: (3,) opposite corner.
        near: depth along the optical axis at which rays begin, field units.
        far: depth at which rays end at the latest, field units.
        centred_from_world: (4, 4) rigid motion into the frame in which published regressors predict;
            None: the field's own axes and origin, without its scale, as good as any.
    """

    field_from_world: Float64Array
    low: Float64Array
    high: Float64Array
    near: float
    far: float
    centred_from_world: Float64Array | None = None

    @property
    def scale(self) -> float:
        """Field units per scene unit."""
        return float(np.cbrt(np.linalg.det(self.field_from_world[:3, :3])))

    @property
    def _centred(self) -> Float64Array:
        if self.centred_from_world is not None:
            return self.centred_from_world
        rigid = self.field_from_world.copy()
        rigid[:3] /= self.scale
        return rigid

    def centred(self, world_from_cam: Tensor) -> Tensor:
        """OpenCV poses (..., 4, 4) of the world as OpenGL poses (..., 3, 4) of the centred frame."""
        moved = torch.from_numpy(self._centred).to(world_from_cam)
        axes = torch.from_numpy(OPENCV_FROM_OPENGL).to(world_from_cam)
        return (moved @ world_from_cam @ axes)[..., :3, :]

    def from_centred(self, poses: Tensor) -> Tensor:
        """Inverse of `centred`: (..., 3, 4) to (..., 3, 4)."""
        back = torch.from_numpy(inverse(self._centred)).to(poses)
        axes = torch.diag(poses.new_tensor([1.0, -1.0, -1.0]))
        turned = back[:3, :3] @ poses[..., :3] @ axes
        position = back[:3, :3] @ poses[..., 3:] + back[:3, 3:]
        return torch.cat([turned, position], -1)

    def rays(self, world_from_cam: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Rays in the field's frame.

        Args:
            world_from_cam: (N, 4, 4) or (4, 4), float64.
            directions: (N, 3) in camera axes with z = 1.

        Returns:
            origins and directions (N, 3) float32; a step of one along a direction is one field unit
            of depth along the optical axis.
        """
        similarity = torch.from_numpy(self.field_from_world).to(world_from_cam)
        pose = similarity @ world_from_cam
        rotation = pose[..., :3, :3] / self.scale
        turned = (rotation.to(directions.dtype) @ directions[..., None])[..., 0]
        origins = pose[..., :3, 3].float().expand_as(turned)
        return origins.contiguous(), turned.float().contiguous()

    def check_inside(self, world_from_cam: Float64Array) -> None:
        """Refuse a camera from which the field has nothing to show.

        Raises:
            InputError: the camera is farther outside the volume than half its size.
        """
        center = transform(self.field_from_world, world_from_cam[:3, 3])
        slack = (self.high - self.low) / 2
        if not np.all((center > self.low - slack) & (center < self.high + slack)):
            raise InputError(
                "The pose lies outside the field: the camera is at "
                f"{np.round(world_from_cam[:3, 3], 2).tolist()}, far from the mapped volume. Give a pose "
                "near the images that the map was made from, in the map's world."
            )

    def metadata(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "field_from_world": self.field_from_world.tolist(), "low": self.low.tolist(),
            "high": self.high.tolist(), "near": self.near, "far": self.far,
            "centred_from_world": None if self.centred_from_world is None
            else self.centred_from_world.tolist(),
        }  # fmt: skip

    @classmethod
    def from_metadata(cls, content: dict[str, Any]) -> Scene:
        """Inverse of `metadata`."""
        return cls(
            np.array(content["field_from_world"]), np.array(content["low"]),
            np.array(content["high"]), float(content["near"]), float(content["far"]),
            None if content.get("centred_from_world") is None
            else np.array(content["centred_from_world"]),
        )  # fmt: skip


def measure_scene(centers: Float64Array, points: Float64Array, config: SceneConfig) -> Scene:
    """The volume that holds the cameras and what they see.

    The field's frame has the volume's centre as its origin and its longest half side as its unit.

    Args:
        centers: (N, 3) camera positions in the world.
        points: (M, 3) points of the scene: measured or triangulated.
        config: published constants to use instead, and the margin.

    Raises:
        DataError: too few points to tell the volume.
    """
    if len(points) < 20:
        raise DataError(
            f"Only {len(points)} scene points could be found, so the scene's size is unknown: the "
            "images overlap too little, or poses or focal length are wrong. 'reloc data check' tells."
        )
    low, high = np.percentile(points, [_TAIL, 100 - _TAIL], axis=0)
    low, high = np.minimum(low, centers.min(0)), np.maximum(high, centers.max(0))
    margin = config.margin * (high - low).max()
    low, high = low - margin, high + margin
    constants = _constants(config)
    if constants is not None:
        setup, average, sfm = constants
        similarity = field_from_world(setup, average, sfm)
        corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), -1).reshape(-1, 3)
        moved = transform(similarity, corners)
        return Scene(
            similarity, moved.min(0), moved.max(0), setup.near, setup.far,
            centred_from_world(average, sfm),
        )  # fmt: skip
    half = (high - low).max() / 2
    similarity = np.eye(4)
    similarity[:3, :3] /= half
    similarity[:3, 3] = -(low + high) / 2 / half
    extent = (high - low) / 2 / half
    diagonal = 2 * float(np.linalg.norm(extent))
    return Scene(similarity, -extent, extent, 0.0, diagonal)


def _constants(config: SceneConfig) -> tuple[WorldSetup, Float64Array, bool] | None:
    """Published constants by the scene's name or from their files; None to measure."""
    if config.constants:
        known = scene_constants(config.constants)
        return known.setup, known.average, known.sfm
    if config.world_setup:
        average = read_pose_average(config.pose_average)
        return read_world_setup(config.world_setup), average, config.sfm_frame
    return None
