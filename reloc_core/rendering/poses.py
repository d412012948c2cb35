"""Camera motion that gradients flow through."""

from __future__ import annotations

import torch
from torch import Tensor


def exp_se3(twist: Tensor) -> Tensor:
    """Return the rigid transform of a twist, differentiable everywhere (also at zero).

    `world_from_cam @ exp_se3(twist)` moves a camera in its own frame and stays on SE(3).

    Args:
        twist: (6,) translation part, then rotation vector in radians.

    Returns:
        (4, 4) matrix.
    """
    generator = twist.new_zeros(4, 4)
    v, w = twist[:3], twist[3:]
    rows = torch.stack(
        [
            torch.stack([w.new_zeros(()), -w[2], w[1], v[0]]),
            torch.stack([w[2], w.new_zeros(()), -w[0], v[1]]),
            torch.stack([-w[1], w[0], w.new_zeros(()), v[2]]),
            generator[3],
        ]
    )
    moved: Tensor = torch.linalg.matrix_exp(rows)
    return moved
