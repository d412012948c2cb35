"""Rigid motions in PyTorch, and the pose vectors of the published method.

A pose is a pair (R, t) of (..., 3, 3) and (..., 3), p_a = R p_b + t. Tangents are (..., 6), rotation
first, and act on the right, as in `reloc_core.types`: R Exp(w), t + R v.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pose = tuple[Tensor, Tensor]


def skew(v: Tensor) -> Tensor:
    """Cross-product matrices (..., 3, 3) of vectors (..., 3)."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def exp_rotation(w: Tensor) -> Tensor:
    """Rotations (..., 3, 3) of rotation vectors (..., 3), smooth at zero."""
    square = (w * w).sum(-1)[..., None, None]
    angle = square.clamp(min=1e-12).sqrt()
    small = square < 1e-4
    a = torch.where(small, 1 - square / 6, angle.sin() / angle)
    b = torch.where(small, 0.5 - square / 24, (1 - angle.cos()) / square.clamp(min=1e-12))
    k = skew(w)
    return torch.eye(3, dtype=w.dtype, device=w.device) + a * k + b * (k @ k)


def log_rotation(rotation: Tensor) -> Tensor:
    """Rotation vectors (..., 3) of rotations, with finite gradients at zero; for angles below pi."""
    axis = torch.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        -1,
    )
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    sine2 = (axis * axis).sum(-1)  # (2 sin)^2
    sine = sine2.clamp(min=1e-12).sqrt()
    angle = torch.atan2(sine, trace - 1)
    factor = torch.where(sine2 < 1e-6, 0.5 + sine2 / 48, angle / sine)
    return axis * factor[..., None]


def compose(first: Pose, second: Pose) -> Pose:
    """a_from_c of a_from_b and b_from_c."""
    return first[0] @ second[0], apply(first, second[1])


def invert(pose: Pose) -> Pose:
    """b_from_a of a_from_b."""
    rotation = pose[0].transpose(-1, -2)
    return rotation, -(rotation @ pose[1][..., None])[..., 0]


def apply(pose: Pose, point: Tensor) -> Tensor:
    """Points (..., 3) moved by poses of the same leading dimensions."""
    return (pose[0] @ point[..., None])[..., 0] + pose[1]


def perturb(pose: Pose, tangent: Tensor) -> Pose:
    """Pose moved by a tangent (..., 6)."""
    rotation, translation = pose
    step = (rotation @ tangent[..., 3:, None])[..., 0]
    return rotation @ exp_rotation(tangent[..., :3]), translation + step


def difference(pose: Pose, target: Pose) -> Tensor:
    """The tangent (..., 6) that moves `pose` to `target`."""
    back = pose[0].transpose(-1, -2)
    move = (back @ (target[1] - pose[1])[..., None])[..., 0]
    return torch.cat([log_rotation(back @ target[0]), move], -1)


def log_quaternion(quaternion: Tensor) -> Tensor:
    """Half-angle vectors (..., 3) of unit quaternions (..., 4) w, x, y, z, as the published poses use.

    The sign is chosen so that w is not negative; the norm of the result is at most pi/2.
    """
    q = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    norm = q[..., 1:].norm(dim=-1, keepdim=True)
    angle = torch.atan2(norm, q[..., :1])
    return q[..., 1:] * torch.where(norm > 1e-9, angle / norm.clamp(min=1e-9), 1.0)


def exp_quaternion(half: Tensor) -> Tensor:
    """Unit quaternions (..., 4) w, x, y, z of half-angle vectors (..., 3)."""
    angle = half.norm(dim=-1, keepdim=True)
    return torch.cat([angle.cos(), half * torch.sinc(angle / torch.pi)], -1)
