"""Losses of KFNet's three training stages (Zhou et al., CVPR 2020, and the published code)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_STD = 1e-5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2


def likelihood(points: Tensor, variance: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood per cell of an isotropic 3D Gaussian, without constants.

    Args:
        points: (..., 3, h, w) metres.
        variance: (..., h, w) m^2.
        labels: (..., 3, h, w) metres.

    Returns:
        (..., h, w): 3 ln s + |e|^2 / (2 s^2), with s at least 1e-5 m.
    """
    variance = variance.clamp_min(_MIN_STD**2)
    return 1.5 * variance.log() + (points - labels).square().sum(-3) / (2 * variance)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the mask divided by its size plus one, as published."""
    mask = mask.to(values.dtype)
    return torch.where(mask > 0, values, torch.zeros_like(values)).sum() / (mask.sum() + 1)


def truncated(
    points: Tensor, variance: Tensor, labels: Tensor, mask: Tensor, clamp: float
) -> Tensor:
    """Mean likelihood loss; cells above `clamp` give no gradient, which makes it robust."""
    labels = torch.where(mask.unsqueeze(-3), labels, torch.zeros_like(labels))
    return masked_mean(likelihood(points, variance, labels).clamp_max(clamp), mask)


def smoothness(points: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Edge-aware first-order smoothness of a coordinate map.

    Args:
        points: (B, 3, h, w) metres.
        image: (B, c, h, w) grey levels 0..255 at the same resolution.
        mask: (B, h, w) bool; that of the left or upper cell counts.
    """
    total = points.new_zeros(())
    for axis in (-1, -2):
        step = torch.diff(points, dim=axis).square().mean(1)
        edge = torch.diff(image, dim=axis).abs().mean(1)
        kept = mask.narrow(axis, 0, mask.shape[axis] - 1)
        total = total + masked_mean(step * torch.exp(-0.625 * edge), kept)
    return total


def photometric(warped: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """0.85 DSSIM + 0.15 L1 of an image warped by the flow.

    Args:
        warped: (B, c, h, w) in 0..255.
        image: (B, c, h, w) in 0..255.
        mask: (B, h, w) bool.

    Returns:
        the sum over channels and cells of the mask, divided by the number of these cells plus one.
    """
    a, b = warped / 127.5 - 1, image / 127.5 - 1
    mean_a, mean_b = (F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) for x in (a, b))
    pooled = [F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) for x in (a * a, b * b, a * b)]
    var_a, var_b = pooled[0] - mean_a**2, pooled[1] - mean_b**2
    cov = pooled[2] - mean_a * mean_b
    ssim = ((2 * mean_a * mean_b + _SSIM_C1) * (2 * cov + _SSIM_C2)) / (
        (mean_a**2 + mean_b**2 + _SSIM_C1) * (var_a + var_b + _SSIM_C2)
    )
    cost = 0.85 * ((1 - ssim) / 2).clamp(0, 1) + 0.15 * (a - b).abs()
    return masked_mean(cost.sum(1), mask)
