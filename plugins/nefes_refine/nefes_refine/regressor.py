"""What refinement and localization want of a pose regressor, whatever its network."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from nefes_refine.field.views import View
from reloc_core.geometry import nearest_rotation
from reloc_core.types import Float64Array


class Regressor(nn.Module, ABC):
    """A network from an image to a pose."""

    @abstractmethod
    def pose(self, view: View, features: Tensor) -> Tensor:
        """The pose (3, 4) world_from_cam float64 of one image; differentiable, a rotation up to float64.

        Args:
            view: the image at the working resolution.
            features: (C, rows, columns) of its cells, for networks that look at these.
        """

    @torch.no_grad()
    def locate(self, view: View, features: Tensor) -> Float64Array:
        """The pose (4, 4) of one image."""
        return matrix(self.pose(view, features))


def orthogonal(poses: Tensor) -> Tensor:
    """Poses (B, 3, 4) with the nearest rotation in place of any 3x3 matrix; differentiable.

    In float64 whatever the input: a rotation that is one only up to float32 is none for the rest of the
    pipeline.
    """
    poses = poses.double()
    u, _, vt = torch.linalg.svd(poses[..., :3])
    sign = torch.det(u @ vt)
    fixed = torch.cat([u[..., :2], u[..., 2:] * sign[:, None, None]], 2) @ vt
    return torch.cat([fixed, poses[..., 3:]], 2)


def matrix(pose: Tensor) -> Float64Array:
    """A pose (3, 4) as (4, 4) with an orthonormal rotation."""
    result = np.eye(4)
    result[:3] = pose.detach().double().cpu().numpy()
    result[:3, :3] = nearest_rotation(result[:3, :3])
    return result
