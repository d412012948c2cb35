"""Weighted alignment: from matched cells with depth to the pose of the query in its reference.

Gauss-Newton on the differences between where the query shows the reference's cells and where a pose
puts them, with weights that the network gives. All of it is differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gnn_relpose.shared.poses import Pose, difference, perturb
from gnn_relpose.shared.scatter import scatter_sum

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
    floor = _FLOOR * _identity(weights)
    own = total = floor.expand(len(weights), 6, 6)
    for _ in range(steps):
        own, gradient = _normal_equations(pose, matches, weights, scale)
        own = own + floor
        total = own
        if prior is not None:
            total = own + prior.information
            way = difference(pose, prior.pose)
            gradient = gradient - (prior.information @ way[..., None])[..., 0]
        pose = perturb(pose, _step(total, gradient))
    return pose, own, total


def align_together(
    pose: Pose,
    matches: Matches,
    weights: Tensor,
    graph: Tensor,
    steps: int,
    scale: Tensor,
) -> Pose:
    """Move the one pose of each graph's query to where the matches of all its edges agree.

    Tangents of the query's pose are the same in every reference: normal equations add up.

    Args:
        pose: of the queries in the references of all edges; per graph one and the same pose.
        matches: of each edge.
        weights: (Q, K).
        graph: (Q,) of each edge.
        steps: Gauss-Newton steps.
        scale: as in `align`.
    """
    graphs = int(graph.max()) + 1
    for _ in range(steps):
        information, gradient = _normal_equations(pose, matches, weights, scale)
        together = scatter_sum(information.flatten(1), graph, graphs).unflatten(1, (6, 6))
        together = together + _FLOOR * _identity(weights)
        step = _step(together, scatter_sum(gradient, graph, graphs))
        pose = perturb(pose, step[graph])
    return pose


def fits(pose: Pose, matches: Matches, limit: float) -> tuple[Tensor, Tensor]:
    """Matches that poses explain.

    Args:
        pose: of the queries in their references.
        matches: of each edge.
        limit: largest residual in units of the usual error of a match.

    Returns:
        (Q, K) bool: matches within the limit, and those that the query would show, by the extent of all
        its matches.
    """
    error, front, local = residuals(pose, matches)
    inside = front > 0
    border = matches.seen.flatten(0, 1)[matches.valid.flatten() > 0].abs()
    if len(border):
        projected = (local[..., :2] / local[..., 2:].clamp(min=_NEAREST)).abs()
        inside &= (projected <= border.max(0).values).all(-1)
    return inside & ((error / _NOISE).square().sum(-1) <= limit**2), inside


def _normal_equations(
    pose: Pose, matches: Matches, weights: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Information (Q, 6, 6) and gradient (Q, 6) of robust residuals by the tangent of the pose."""
    error, front, local = residuals(pose, matches)
    error = error / _NOISE
    square = (error * error).sum(-1)
    robust = weights * front / (1 + square / scale**2) ** 2
    jacobian = _jacobian(local, front) / _NOISE
    weighted = jacobian * robust[..., None, None]
    return (
        torch.einsum("qkri,qkrj->qij", weighted, jacobian),
        torch.einsum("qkri,qkr->qi", weighted, error),
    )


def _step(information: Tensor, gradient: Tensor) -> Tensor:
    """Damped Gauss-Newton steps (..., 6) of limited length."""
    mean = information.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    step = -torch.linalg.solve(information + _DAMPING * mean * _identity(gradient), gradient)
    length = step.norm(dim=-1, keepdim=True)
    return step * (_MAX_STEP / length.clamp(min=_MAX_STEP))


def _identity(like: Tensor) -> Tensor:
    return torch.eye(6, dtype=like.dtype, device=like.device)


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
