"""Reprojection loss of scene coordinate regression (ACE; GLACE uses it unchanged)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scr_glace.config import LossConfig

_NEAR = 0.3  # depth below which pixels are no longer counted by it; the median is 1


@dataclass(frozen=True)
class LossTerms:
    """Loss of one batch.

    Attributes:
        total: sum over the samples (not yet divided by the batch size).
        valid: number of samples with a valid prediction.
        error: sum of the pixel errors of the valid samples.
    """

    total: Tensor
    valid: Tensor
    error: Tensor


def threshold(config: LossConfig, progress: float) -> float:
    """Threshold tau of the dyntanh loss in pixels at `progress` in 0..1.

    tau = (1 - w) soft_clamp + soft_clamp_min with w = 1 - sqrt(1 - t^2) ("circle") or t ("linear"):
    51 to 1 with the published constants.
    """
    t = min(max(progress, 0.0), 1.0)
    w = 1 - math.sqrt(1 - t * t) if config.schedule == "circle" else t
    return (1 - w) * config.soft_clamp + config.soft_clamp_min


def robust(config: LossConfig, errors: Tensor, progress: float) -> Tensor:
    """Robust cost rho of the pixel errors (N,), element by element."""
    clamp = config.soft_clamp
    if config.type in ("dyntanh", "tanh"):
        tau = threshold(config, progress) if config.type == "dyntanh" else clamp
        return tau * torch.tanh(errors / tau)
    if config.type == "l1":
        return torch.where(errors <= clamp, errors, torch.zeros_like(errors))
    if config.type == "l1+sqrt":
        # The inner maximum keeps the gradient of the unused branch finite.
        return torch.where(errors <= clamp, errors, torch.sqrt(clamp * errors.clamp(min=clamp)))
    return torch.where(errors <= clamp, errors, torch.log1p(clamp * errors))


def reprojection_loss(
    config: LossConfig,
    points: Tensor,
    cam_from_world: Tensor,
    rays: Tensor,
    focal: Tensor,
    progress: float,
    targets: Tensor | None = None,
    until: float = 0.7,
) -> LossTerms:
    """Loss of predicted scene points.

    Pixels enter as viewing rays, so a lens with distortion needs no special case here; for a pinhole
    the pixel error f (c_xy/c_z - ray) equals K c - p of the published form.

    Args:
        config: constants.
        points: (N, 3) predicted world points, float32.
        cam_from_world: (N, 3, 4).
        rays: (N, 2) x and y of the viewing direction with z = 1.
        focal: (N, 2) fx and fy in pixels of the resized image.
        progress: share of the training done, 0..1.
        targets: (N, 3) known scene points, NaN where there is none; or None.
        until: share of the training in which the targets give way.

    Returns:
        summed terms. Invalid predictions (behind or too near, too far, or off by more than the hard
        clamp) are drawn to the point at `depth_target` on their ray, with the L1 norm in metres; where
        a target is known, to that.
    """
    cam = torch.einsum("nij,nj->ni", cam_from_world[:, :, :3], points) + cam_from_world[:, :, 3]
    depth = cam[:, 2]
    # As published: the divisor is clamped, which only matters for points that are invalid anyway.
    projected = cam[:, :2] / depth.clamp(min=config.depth_min)[:, None]
    errors = ((projected - rays) * focal).abs().sum(-1)
    if config.depth_adjust > 0:
        errors = errors * (depth**2 / (depth**2 + config.depth_adjust**2)).clamp(min=1e-12).sqrt()
    invalid = (depth < config.depth_min) | (errors > config.hard_clamp) | (depth > config.depth_max)
    target = config.depth_target * torch.cat([rays, torch.ones_like(rays[:, :1])], -1)
    pull = (cam - target).abs().sum(-1)
    zero = torch.zeros_like(errors)
    reprojection = robust(config, torch.where(invalid, zero, errors), progress)
    loss = torch.where(invalid, pull, reprojection)
    if targets is not None:
        known = targets.isfinite().all(-1)
        distance = _distance(
            cam_from_world, points, torch.where(known[:, None], targets, points), focal
        )
        share = target_share(progress, until)
        guided = torch.where(invalid, distance, share * distance + (1 - share) * reprojection)
        loss = torch.where(known, guided, loss)
    return LossTerms(
        total=loss.sum(),
        valid=(~invalid).sum(),
        error=torch.where(invalid, zero, errors).detach().sum(),
    )


def target_share(progress: float, until: float) -> float:
    """Weight of the pull to known points: 1 at the start, 0 from `until` on, a cosine between."""
    return 0.5 * (1 + math.cos(math.pi * min(progress / until, 1.0)))


def _distance(cam_from_world: Tensor, points: Tensor, targets: Tensor, focal: Tensor) -> Tensor:
    """Distances (N,) of points to targets in pixels: what they would be across the line of sight.

    Its gradient has the same length for every sample: far off or near, in front or behind.
    """
    depth = torch.einsum("nj,nj->n", cam_from_world[:, 2, :3], targets) + cam_from_world[:, 2, 3]
    # Near points would pull so hard that nothing else is learned.
    pixels = focal.mean(-1) / depth.detach().clamp(min=_NEAR)
    squared = ((points - targets) ** 2).sum(-1)
    return (squared + 1e-12).sqrt() * pixels
