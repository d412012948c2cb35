"""The same rendering through the library gsplat, for tensors on CUDA.

gsplat 1.5 differs in constants only: its alpha cap is 0.999 instead of 0.99 (equal from 1.6), and it
compiles its kernels on first use, which needs nvcc.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reloc_core.errors import PluginError
from reloc_core.rendering.types import (
    ALPHA_MIN,
    DILATION,
    FeatureSums,
    Gaussians,
    RenderOutput,
    ScreenGradients,
    View,
)


def renderer() -> Any:
    """The library gsplat.

    Raises:
        PluginError: it is not installed.
    """
    try:
        import gsplat
    except ImportError as error:
        raise PluginError(
            "Gaussians on CUDA are rendered by the library gsplat, which cannot be imported "
            f"({error}). Install it with `pip install 'reloc[cuda]'` or move the tensors to the "
            "CPU."
        ) from error
    return gsplat


def _camera(view: View, like: Tensor) -> dict[str, Any]:
    """Return gsplat's camera arguments; its pixel centres lie at + 0.5."""
    pose = view.world_from_cam.to(like)
    rotation = pose[:3, :3].T
    top = torch.cat([rotation, -rotation @ pose[:3, 3:]], dim=1)
    cam_from_world = torch.cat([top, top.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    intrinsics = like.new_tensor(
        [[view.fx, 0, view.cx + 0.5], [0, view.fy, view.cy + 0.5], [0, 0, 1]]
    )
    return {
        "viewmats": cam_from_world[None],
        "Ks": intrinsics[None],
        "width": view.width,
        "height": view.height,
    }


def rasterize_cuda(
    gaussians: Gaussians,
    channels: Tensor,
    view: View,
    background: Tensor | None,
    near: float,
    antialias: bool,
    geometry_channels: int,
) -> RenderOutput:
    """Render with gsplat under the contract of `rasterize`."""
    acting, passive = channels[:, :geometry_channels], channels[:, geometry_channels:]
    output = _render(gaussians, acting, view, near, antialias)
    image = output.image
    if passive.shape[1]:
        frozen = Gaussians(
            gaussians.means.detach(),
            gaussians.quaternions.detach(),
            gaussians.scales.detach(),
            gaussians.opacities.detach(),
        )
        still = View(
            view.world_from_cam.detach(),
            view.fx,
            view.fy,
            view.cx,
            view.cy,
            view.width,
            view.height,
        )
        image = torch.cat([image, _render(frozen, passive, still, near, antialias).image], dim=-1)
    if background is not None:
        through = 1 - output.alpha[..., None]
        acts = torch.cat(
            [
                through * background[:geometry_channels],
                through.detach() * background[geometry_channels:],
            ],
            dim=-1,
        )
        image = image + acts
    return RenderOutput(
        image,
        output.alpha,
        output.depth,
        output.radii,
        output.visible,
        output.means2d,
        output.weights,
        output.screen_gradients,
    )


def _render(
    gaussians: Gaussians, channels: Tensor, view: View, near: float, antialias: bool
) -> RenderOutput:
    n, count = channels.shape
    # One more channel, zero: its gradient under a loss of ones is the sum of the weights.
    probe = channels.new_zeros(n, 1, requires_grad=True)
    screen = ScreenGradients()
    image, alpha, info = renderer().rasterization(
        means=gaussians.means,
        quats=_without_zeros(gaussians.quaternions),
        scales=gaussians.scales,
        opacities=gaussians.opacities,
        colors=torch.cat([channels, probe], dim=1),
        **_camera(view, gaussians.means),
        near_plane=near,
        eps2d=DILATION,
        packed=False,
        render_mode="RGB+ED",
        rasterize_mode="antialiased" if antialias else "classic",
        absgrad=True,
    )
    (weights,) = torch.autograd.grad(
        image[..., count].sum(), probe, retain_graph=True, materialize_grads=True
    )
    centres = info["means2d"]
    if centres.requires_grad:

        def keep(gradient: Tensor) -> None:
            screen.means = gradient[0].detach()
            absolute = getattr(centres, "absgrad", None)
            screen.means_abs = None if absolute is None else absolute[0].detach()

        centres.register_hook(keep)
    extent = info["radii"][0]
    # One radius per axis from gsplat 1.5 on.
    radii = (extent if extent.ndim == 1 else extent.amax(dim=-1)).to(torch.int32)
    return RenderOutput(
        image[0, ..., :count],
        alpha[0, ..., 0],
        image[0, ..., -1],
        radii,
        (radii > 0) & (gaussians.opacities.detach() >= ALPHA_MIN),
        centres[0].detach() - 0.5,
        weights[:, 0].detach(),
        screen,
    )


def _without_zeros(quaternions: Tensor) -> Tensor:
    zero = (quaternions * quaternions).sum(-1, keepdim=True) <= 1e-30
    identity = quaternions.new_tensor([1.0, 0.0, 0.0, 0.0])
    return torch.where(zero, identity, quaternions)


def accumulate_cuda(
    gaussians: Gaussians, features: Tensor, view: View, near: float, antialias: bool
) -> FeatureSums:
    """Gather features as the gradient of a rendering: blending is linear in the channels."""
    still = Gaussians(
        gaussians.means.detach(),
        gaussians.quaternions.detach(),
        gaussians.scales.detach(),
        gaussians.opacities.detach(),
    )
    channels = features.new_zeros(len(gaussians), features.shape[2], requires_grad=True)
    with torch.enable_grad():
        output = _render(still, channels, view, near, antialias)
        (sums,) = torch.autograd.grad(output.image, channels, features.detach())
    return FeatureSums(output.weights, sums)
