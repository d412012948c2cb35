"""Weighted alignment: from matched cells with depth to the pose of the query in its reference.

Gauss-Newton on the differences between where the query shows the reference's cells and where a pose
puts them, with weights that the network gives. All of it is differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnn_relpose.poses import Pose, difference, perturb

_NOISE = 0.008  # of ray coordinates, about half a cell: residuals of this size count as one
_NEAREST = 0.05  # of the scene's depth; nearer points do not count
_FLOOR = 4.0  # information without matches: half a radian, half a depth
_DAMPING = 1e-4  # keeps steps along unobserved directions small
_MAX_STEP = 0.5  # rad, and depths of the scene


@dataclass(frozen=True)
class Matches:
    """Cells of references and where queries show them; one row per edge.

    Attributes:
        points: (Q, K, 3) in the reference, in depths of the scene; zero where unknown.
        seen: (Q, K, 2) rays in the query.
        valid: (Q, K) float, 1 for cells with depth and a match.
    """

    points: Tensor
    seen: Tensor
    valid: Tensor


def residuals(pose: Pose, matches: Matches) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals of matches under poses of queries in references.

    Returns:
        (Q, K, 2) residuals in ray coordinates, (Q, K) 1 for points in front of the query, and the
        points (Q, K, 3) in the query.
    """
    rotation, translation = pose
    local = (matches.points - translation[:, None]) @ rotation
    front = matches.valid * (local[..., 2] > _NEAREST)
    depth = torch.where(front > 0, local[..., 2], 1.0)
    projected = torch.where(front[..., None] > 0, local[..., :2] / depth[..., None], matches.seen)
    return projected - matches.seen, front, local


@dataclass(frozen=True)
class Prior:
    """A belief that takes part in an alignment.

    Attributes:
        pose: of the queries in their references.
        information: (Q, 6, 6) of its tangent, in the units of matches.
    """

    pose: Pose
    information: Tensor


def align(
    pose: Pose,
    matches: Matches,
    weights: Tensor,
    steps: int,
    scale: Tensor,
    prior: Prior | None = None,
) -> tuple[Pose, Tensor, Tensor]:
    """Move poses to where their matches and the prior agree.

    Args:
        pose: (Q, 3, 3) and (Q, 3), the start.
        matches: of each edge.
        weights: (Q, K) in 0..1.
        steps: Gauss-Newton steps.
        scale: robust scale in units of the usual error of a match, a scalar.
        prior: optional belief.

    Returns:
        the poses, and the information (Q, 6, 6) of the matches alone and with the prior.
    """
    identity = torch.eye(6, dtype=weights.dtype, device=weights.device)
    floor = _FLOOR * identity
    own = total = floor.expand(len(weights), 6, 6)
    for _ in range(steps):
        error, front, local = residuals(pose, matches)
        error = error / _NOISE
        square = (error * error).sum(-1)
        robust = weights * front / (1 + square / scale**2) ** 2
        jacobian = _jacobian(local, front) / _NOISE
        weighted = jacobian * robust[..., None, None]
        own = torch.einsum("qkri,qkrj->qij", weighted, jacobian) + floor
        gradient = torch.einsum("qkri,qkr->qi", weighted, error)
        total = own
        if prior is not None:
            total = own + prior.information
            way = difference(pose, prior.pose)
            gradient = gradient - (prior.information @ way[..., None])[..., 0]
        damped = (
            total + _DAMPING * total.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * identity
        )
        step = -torch.linalg.solve(damped, gradient)
        length = step.norm(dim=-1, keepdim=True)
        pose = perturb(pose, step * (_MAX_STEP / length.clamp(min=_MAX_STEP)))
    return pose, own, total


def _jacobian(local: Tensor, front: Tensor) -> Tensor:
    """Derivatives (Q, K, 2, 6) of the projection by the tangent of the query's pose."""
    depth = torch.where(front > 0, local[..., 2], 1.0)
    x, y = local[..., 0] / depth, local[..., 1] / depth
    zero, inverse = torch.zeros_like(x), 1 / depth
    rows = [
        torch.stack([x * y, -1 - x * x, y, -inverse, zero, x * inverse], -1),
        torch.stack([1 + y * y, -x * y, -x, zero, -inverse, y * inverse], -1),
    ]
    return torch.stack(rows, -2)
