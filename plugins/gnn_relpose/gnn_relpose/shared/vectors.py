"""Pose vectors of RelPose-GNN: six numbers per pose, whose differences are the relative poses.

A pose is [translation, half-angle log quaternion] (Turkoglu et al., 3DV 2021). The relative pose of an
edge is the difference of two vectors, source minus target; there is no change of frame, so vectors depend
on the world's axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gnn_relpose.shared.poses import exp_quaternion, log_quaternion
from reloc_core.geometry import inverse, quaternion_from_rotation, rotation_from_quaternion
from reloc_core.types import Float64Array


@dataclass(frozen=True)
class Convention:
    """Which six numbers a network predicts.

    Attributes:
        frame_from_world: (4, 4) rigid motion into the frame of the vectors.
        world_to_camera: rotation and translation are those of cam_from_world (Cambridge Landmarks), and
            not the camera's axes and centre (7-Scenes).
        mean: (3,) that is subtracted from translations.
        deviation: (3,) that they are then divided by.
    """

    frame_from_world: Float64Array = field(default_factory=lambda: np.eye(4))
    world_to_camera: bool = False
    mean: Float64Array = field(default_factory=lambda: np.zeros(3))
    deviation: Float64Array = field(default_factory=lambda: np.ones(3))

    def vectors(self, world_from_cam: Float64Array) -> Tensor:
        """Pose vectors (..., 6) float32 of poses (..., 4, 4)."""
        moved = self.frame_from_world @ world_from_cam
        moved = inverse(moved) if self.world_to_camera else moved
        quaternion = torch.from_numpy(quaternion_from_rotation(moved[..., :3, :3]))
        shift = torch.from_numpy((moved[..., :3, 3] - self.mean) / self.deviation)
        return torch.cat([shift, log_quaternion(quaternion)], -1).float()

    def poses(self, vectors: Tensor) -> Float64Array:
        """Poses (..., 4, 4) world_from_cam of pose vectors (..., 6)."""
        v = vectors.detach().double().cpu()
        found = np.broadcast_to(np.eye(4), (*v.shape[:-1], 4, 4)).copy()
        found[..., :3, :3] = rotation_from_quaternion(exp_quaternion(v[..., 3:]).numpy())
        found[..., :3, 3] = v[..., :3].numpy() * self.deviation + self.mean
        found = inverse(found) if self.world_to_camera else found
        result: Float64Array = inverse(self.frame_from_world) @ found
        return result


def scene_convention(world_from_cam: Float64Array) -> Convention:
    """Vectors of a scene of any unit and orientation: about its mean pose, in units of its spread.

    Log quaternions jump where the rotation from the frame's axes reaches 180 degrees; seen from the mean
    rotation this is as far away as can be.

    Args:
        world_from_cam: (F, 4, 4) poses of the mapped images.
    """
    mean = world_from_cam[:, :3, :3].mean(0)
    u, _, vt = np.linalg.svd(mean)
    rotation = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = rotation, world_from_cam[:, :3, 3].mean(0)
    spread = float(np.sqrt(world_from_cam[:, :3, 3].var(0).mean()))
    return Convention(inverse(frame), deviation=np.full(3, max(spread, 1e-9)))
