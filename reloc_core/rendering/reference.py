"""The rasterizer in plain PyTorch: short, dense and slow, the oracle of the fast backends.

Every Gaussian is evaluated at every pixel; there are no tiles. Runs in the dtype of its input
(float64 for tests) and gets all gradients from autograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reloc_core.rendering.types import (
    ALPHA_MAX,
    ALPHA_MIN,
    DILATION,
    NEAR,
    SCREEN_LIMIT,
    TRANSMITTANCE_MIN,
    Gaussians,
    View,
    expected_depth,
)


@dataclass(frozen=True)
class Projected:
    """Gaussians in the image: index into the input, sorted by depth, nearest first."""

    index: Tensor  # (M,)
    means: Tensor  # (M, 2) pixels
    covariances: Tensor  # (M, 3) xx, xy, yy of the dilated covariance in px^2
    opacities: Tensor  # (M,)
    depths: Tensor  # (M,)


@dataclass(frozen=True)
class ReferenceOutput:
    """As RenderOutput, plus `margin`: how far each pixel is from a discontinuity of the model.

    margin (H, W) is the smallest relative distance of any alpha or transmittance of that pixel
    to a threshold; where it is below the rounding of float32, backends may differ.
    """

    image: Tensor
    alpha: Tensor
    depth: Tensor
    weights: Tensor
    margin: Tensor


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """Return (N, 3, 3) rotations of (N, 4) quaternions; zero quaternions give the identity."""
    norm2 = (quaternions * quaternions).sum(-1, keepdim=True)
    identity = quaternions.new_tensor([1.0, 0.0, 0.0, 0.0])
    zero = norm2 <= 1e-30
    safe = torch.where(zero, identity, quaternions)
    w, x, y, z = (safe / safe.norm(dim=-1, keepdim=True)).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, -1).reshape(-1, 3, 3)


def project(
    gaussians: Gaussians, view: View, *, near: float = NEAR, antialias: bool = False
) -> Projected:
    """Project to the image by the affine approximation of EWA splatting (Zwicker et al. 2001)."""
    world_from_cam = view.world_from_cam.to(gaussians.means.dtype)
    rotation = world_from_cam[:3, :3].T
    centres = (gaussians.means - world_from_cam[:3, 3]) @ rotation.T
    keep = centres[:, 2] > near
    index = keep.nonzero()[:, 0]
    x, y, z = centres[index].unbind(-1)
    u, v = view.fx * x / z + view.cx, view.fy * y / z + view.cy
    x_min, x_max, y_min, y_max = view.slope_limits()
    slope_x, slope_y = (x / z).clamp(x_min, x_max), (y / z).clamp(y_min, y_max)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [view.fx / z, zero, -view.fx * slope_x / z, zero, view.fy / z, -view.fy * slope_y / z], -1
    ).reshape(-1, 2, 3)
    axes = rotation_matrices(gaussians.quaternions[index]) * gaussians.scales[index][:, None, :]
    factor = jacobian @ rotation @ axes
    sharp = factor @ factor.transpose(1, 2)
    covariance = sharp + DILATION * torch.eye(2, dtype=z.dtype, device=z.device)
    opacities = gaussians.opacities[index]
    if antialias:
        ratio = torch.linalg.det(sharp) / torch.linalg.det(covariance)
        # The square root has no finite slope at zero; there the Gaussian is not drawn anyway.
        drawn = ratio > 1e-12
        opacities = opacities * torch.where(drawn, ratio, torch.ones_like(ratio)).sqrt() * drawn
    entries = torch.stack([covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]], -1)
    with torch.no_grad():
        finite = torch.isfinite(entries).all(-1) & torch.isfinite(opacities)
        inside = (u.abs() < SCREEN_LIMIT) & (v.abs() < SCREEN_LIMIT)
        order = torch.argsort(z.float(), stable=True)
        order = order[(finite & inside)[order]]
    return Projected(
        index[order], torch.stack([u, v], -1)[order], entries[order], opacities[order], z[order]
    )


def blend(
    projected: Projected, channels: Tensor, pixels: Tensor, background: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Blend all Gaussians at (P, 2) pixels: image, alpha, depth sum, weights (P, M), margin."""
    a, b, c = projected.covariances.unbind(-1)
    determinant = a * c - b * b
    offset = projected.means[None] - pixels[:, None]
    dx, dy = offset.unbind(-1)
    power = -0.5 * (c * dx * dx - 2 * b * dx * dy + a * dy * dy) / determinant
    raw = projected.opacities * torch.exp(power.clamp_max(0))
    alpha = raw.clamp_max(ALPHA_MAX)
    alpha = torch.where(alpha < ALPHA_MIN, torch.zeros_like(alpha), alpha)
    with torch.no_grad():
        after = torch.cumprod(1 - alpha, 1)
        stopped = after < TRANSMITTANCE_MIN
        margin = torch.minimum(
            (raw / ALPHA_MIN - 1).abs().amin(1), (after / TRANSMITTANCE_MIN - 1).abs().amin(1)
        )
        margin = torch.minimum(margin, (raw / ALPHA_MAX - 1).abs().amin(1))
    alpha = torch.where(stopped, torch.zeros_like(alpha), alpha)
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    weights = alpha * before
    image = weights @ channels[projected.index]
    if background is not None:
        image = image + after[:, -1:] * background
    return image, 1 - after[:, -1], weights @ projected.depths, weights, margin


def rasterize_reference(
    gaussians: Gaussians,
    channels: Tensor,
    view: View,
    *,
    background: Tensor | None = None,
    near: float = NEAR,
    antialias: bool = False,
    pixels: Tensor | None = None,
    chunk: int = 4096,
) -> ReferenceOutput:
    """Render as `rasterize` does, slowly.

    Args:
        gaussians: N Gaussians, any float dtype.
        channels: (N, C).
        view: the camera.
        background: (C,) colour behind everything, default black.
        near: Gaussians whose centre is not beyond this depth are not drawn.
        antialias: scale opacities so that the dilation keeps a Gaussian's total light.
        pixels: (P, 2) x, y of the pixels wanted; then all outputs have shape (P, ...).
        chunk: pixels evaluated at a time.
    """
    projected = project(gaussians, view, near=near, antialias=antialias)
    grid = pixels is None
    if pixels is None:
        rows, columns = torch.meshgrid(
            torch.arange(view.height), torch.arange(view.width), indexing="ij"
        )
        pixels = torch.stack([columns, rows], -1).reshape(-1, 2)
    pixels = pixels.to(channels)
    total = channels.new_zeros(len(gaussians))
    if len(projected.index) == 0:
        image = channels.new_zeros(len(pixels), channels.shape[1])
        image = image if background is None else image + background
        blank = channels.new_zeros(len(pixels))
        parts = [image, blank, blank, blank + 1]
    else:
        pieces = []
        for some in torch.split(pixels, chunk):
            image, alpha, depth_sum, weights, margin = blend(projected, channels, some, background)
            total = total.index_add(0, projected.index, weights.detach().sum(0))
            pieces.append((image, alpha, depth_sum, margin))
        parts = [torch.cat(column) for column in zip(*pieces, strict=True)]
    shape = (view.height, view.width) if grid else (len(pixels),)
    image, alpha, depth_sum, margin = (part.reshape(*shape, *part.shape[1:]) for part in parts)
    return ReferenceOutput(image, alpha, expected_depth(depth_sum, alpha), total, margin)
