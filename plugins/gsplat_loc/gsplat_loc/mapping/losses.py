"""Image losses of 3D Gaussian Splatting."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_C1, _C2 = 0.01**2, 0.03**2
_WINDOW, _SIGMA = 11, 1.5  # pixels


@lru_cache(maxsize=4)
def _blurred(images: Tensor) -> Tensor:
    """Separable Gaussian window with zero padding over (B, C, H, W)."""
    channels, border = images.shape[1], _WINDOW // 2
    x = torch.arange(_WINDOW, dtype=torch.float32, device=images.device) - border
    weights = torch.exp(-(x**2) / (2 * _SIGMA**2))
    kernel = (weights / weights.sum()).expand(channels, 1, -1)
    images = F.conv2d(images, kernel[:, :, None], padding=(0, border), groups=channels)
    return F.conv2d(images, kernel[..., None], padding=(border, 0), groups=channels)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al., 2004) of images (C, H, W) in 0..1.

    Gaussian window of 11 pixels with sigma 1.5, zero padding, per channel.
    """
    channels = len(a)
    stacked = torch.cat([a, b, a * a, b * b, a * b])[None]
    mean_a, mean_b, aa, bb, ab = _blurred(stacked)[0].split(channels)
    variance_a, variance_b = aa - mean_a**2, bb - mean_b**2
    covariance = ab - mean_a * mean_b
    top = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    bottom = (mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2)
    return (top / bottom).mean()


def psnr(rendered: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in 0..1 over all entries."""
    error = float(((rendered.clamp(0, 1) - truth) ** 2).mean())
    return float("inf") if error == 0 else -10 * float(torch.log10(torch.tensor(error)))
