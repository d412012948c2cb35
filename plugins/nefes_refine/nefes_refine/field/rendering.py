"""What every field renders, and the parts that fields share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nefes_refine.field.scene import Scene


@dataclass
class Rendering:
    """R rendered rays.

    Attributes:
        colour: (R, 3) in 0..1, with the exposure of the histogram it was rendered for.
        features: (R, C); their gradient does not reach the density.
        depth: (R,) expected depth along the optical axis, field units.
        samples: (R, K) depths of the composited samples.
        weights: (R, K) their shares, at most 1 in sum.
        coarse_colour: (R, 3) of the coarse network, without exposure; None without one.
        beta: (R,) uncertainty of the colour; None without a transient part.
        transient: (R,) mean transient density of a ray's samples; None without a transient part.
    """

    colour: Tensor
    features: Tensor
    depth: Tensor
    samples: Tensor
    weights: Tensor
    coarse_colour: Tensor | None = None
    beta: Tensor | None = None
    transient: Tensor | None = None


class Field(nn.Module, ABC):
    """A scene as a function that rays can be rendered from.

    Attributes:
        scene: volume and frame.
        feature_channels: C of the rendered features.
    """

    scene: Scene
    feature_channels: int

    @abstractmethod
    def render(
        self,
        origins: Tensor,
        directions: Tensor,
        histograms: Tensor,
        generator: torch.Generator | None = None,
    ) -> Rendering:
        """Render rays of the field's frame.

        Args:
            origins: (R, 3).
            directions: (R, 3), one field unit of depth per unit.
            histograms: (R, bins) or (1, bins), in percent: the exposure to render.
            generator: of the jitter of samples in training; None renders without.
        """

    @abstractmethod
    def fuse(self, colours: Tensor, features: Tensor) -> Tensor:
        """Fused feature maps (B, C, H, W) of rendered colours (B, 3, H, W) and features."""

    def after_step(self, step: int) -> None:
        """Called after every step of the training."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Parameter groups for the optimiser."""
        return [{"params": list(self.parameters()), "lr": learning_rate}]


class ExposureTransform(nn.Module):
    """Exposure-adaptive colour transform: an affine map of colour from a luminance histogram.

    NeFeS, section 3.3: rgb = sigmoid(K rgb + b) with K and b from a small MLP. Unlike the published
    one the MLP has biases, takes shares and starts with K = I, b = 0.

    Args:
        bins: of the histogram.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        hidden = 32
        for width in (bins, hidden, hidden):
            layers += [nn.Linear(width, hidden), nn.ReLU()]
        last = nn.Linear(hidden, 12)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.cat([torch.eye(3).flatten(), torch.zeros(3)]))
        self.layers = nn.Sequential(*layers, last)

    def forward(self, colours: Tensor, histograms: Tensor) -> Tensor:
        """Colours (R, 3) in 0..1 from composited logits (R, 3) and histograms (R or 1, bins)."""
        affine = self.layers(histograms / 100)
        return apply_affine(colours, affine)


def apply_affine(colours: Tensor, affine: Tensor) -> Tensor:
    """sigmoid(K c + b) for colours (R, 3) and (R or 1, 12) values, K row-major before b."""
    matrix = affine[:, :9].unflatten(1, (3, 3))
    mixed: Tensor = (matrix @ colours[..., None])[..., 0] + affine[:, 9:]
    return torch.sigmoid(mixed)


def composite(densities: Tensor, lengths: Tensor) -> Tensor:
    """Weights (R, K) of samples with densities (R, K) over intervals of these lengths.

    Max, Optical Models for Direct Volume Rendering, 1995: w_k = (1 - exp(-s_k d_k)) T_k.
    """
    optical = densities * lengths
    before = F.pad(optical.cumsum(1)[:, :-1], (1, 0))
    return torch.exp(-before) * -torch.expm1(-optical)


def inverse_cdf(edges: Tensor, weights: Tensor, quantiles: Tensor) -> Tensor:
    """Points at which the piecewise constant density over intervals has these quantiles.

    Args:
        edges: (R, M + 1) ascending.
        weights: (R, M) positive masses of the intervals.
        quantiles: (R, K) in 0..1, ascending.

    Returns:
        (R, K).
    """
    cdf = F.pad(weights.cumsum(1), (1, 0))
    cdf = cdf / cdf[:, -1:]
    cell = torch.searchsorted(cdf, quantiles.contiguous(), right=True).clamp_(1, weights.shape[1])
    low, high = cdf.gather(1, cell - 1), cdf.gather(1, cell)
    left, right = edges.gather(1, cell - 1), edges.gather(1, cell)
    share = ((quantiles - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return left + share * (right - left)


def direction_encoding(directions: Tensor) -> Tensor:
    """Unit directions and their products, (R, 9): spherical harmonics up to degree two."""
    d = F.normalize(directions, dim=1)
    x, y, z = d.unbind(1)
    return torch.stack([x, y, z, x * y, y * z, x * z, x * x, y * y, z * z], 1)
