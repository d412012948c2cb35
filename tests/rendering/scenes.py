"""Gaussians and cameras of the rendering tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from reloc_core.rendering import Gaussians, View, exp_se3


def make_view(width=40, height=28, focal=36.0, cx=None, cy=None, twist=(0,) * 6):
    pose = exp_se3(torch.tensor(twist, dtype=torch.float64))
    return View(
        pose,
        focal,
        focal * 1.05,
        (width - 1) / 2 if cx is None else cx,
        (height - 1) / 2 if cy is None else cy,
        width,
        height,
    )


def make_scene(n, channels, seed, *, size=0.12, spread=1.4, depth=(1.0, 4.0)):
    """Float32 Gaussians in front of the identity pose, some outside the image."""
    g = torch.Generator().manual_seed(seed)
    z = depth[0] + (depth[1] - depth[0]) * torch.rand(n, generator=g)
    xy = (torch.rand(n, 2, generator=g) - 0.5) * spread * z[:, None]
    means = torch.cat([xy, z[:, None]], 1)
    scales = size * torch.exp(0.7 * torch.randn(n, 3, generator=g))
    quaternions = torch.randn(n, 4, generator=g) * 2
    opacities = 0.02 + 0.96 * torch.rand(n, generator=g)
    colours = torch.rand(n, channels, generator=g) * 2 - 0.5
    return Gaussians(means, quaternions, scales, opacities), colours


def leaf(gaussians, dtype):
    def make(t):
        return t.detach().to(dtype).requires_grad_(True)

    return Gaussians(
        make(gaussians.means),
        make(gaussians.quaternions),
        make(gaussians.scales),
        make(gaussians.opacities),
    )


def moving(view):
    """The view with a twist that collects the gradient of the pose."""
    twist = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    return replace(view, world_from_cam=view.world_from_cam @ exp_se3(twist)), twist
