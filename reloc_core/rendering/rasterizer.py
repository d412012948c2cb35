"""Rendering of Gaussians on the CPU (native module) or on CUDA (library gsplat)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reloc_core import _native
from reloc_core.errors import InputError
from reloc_core.rendering.types import (
    NEAR,
    FeatureSums,
    Gaussians,
    RenderOutput,
    ScreenGradients,
    View,
    check_channels,
    expected_depth,
)

_Floats = npt.NDArray[Any]


def rasterize(
    gaussians: Gaussians,
    channels: Tensor,
    view: View,
    *,
    background: Tensor | None = None,
    near: float = NEAR,
    antialias: bool = False,
    geometry_channels: int | None = None,
    threads: int | None = None,
) -> RenderOutput:
    """Render Gaussians with any number of channels, differentiably.

    A pixel blends, nearest centre first, all Gaussians whose alpha = min(0.99, opacity
    exp(-d^T S^-1 d / 2)) reaches 1/255 there, S being the projected covariance dilated by 0.3 px^2,
    until the transmittance would fall below 1e-4 (3D Gaussian Splatting, Kerbl et al. 2023). The
    result does not depend on the number of threads.

    Gradients flow to means, quaternions, scales, opacities, channels, background and
    `view.world_from_cam`, from image, alpha and depth alike. Gaussians that cannot be drawn
    (behind the near plane, not finite, too faint) get zero gradients.

    Args:
        gaussians: N Gaussians, float32, on the CPU or on a CUDA device (then the library gsplat
            renders, extra `reloc[cuda]`).
        channels: (N, C) float32: evaluated colours, features or both; C may be 0.
        view: the camera.
        background: (C,) float32 seen where light passes, default zero.
        near: Gaussians whose centre is not beyond this depth are not drawn; the unit of the scene.
        antialias: scale opacities by sqrt(det S / det S_dilated), so that small Gaussians do not
            grow brighter by the dilation (use it when train and render resolutions differ).
        geometry_channels: only the first so many channels send gradients to anything but the
            channels themselves, default all. 3 for [RGB | features] whose features must not move
            the geometry.
        threads: default `torch.get_num_threads()`.

    Returns:
        RenderOutput; all tensors live on the device of the Gaussians.

    Raises:
        InputError: shapes, dtypes or a camera that do not fit.
    """
    gaussians.check()
    view.check()
    check_channels(gaussians, channels, background)
    count = int(channels.shape[1])
    acting = count if geometry_channels is None else geometry_channels
    if not 0 <= acting <= count:
        raise InputError(f"geometry_channels is {acting}, but there are {count} channels.")
    if gaussians.means.is_cuda:
        from reloc_core.rendering.cuda import rasterize_cuda

        return rasterize_cuda(gaussians, channels, view, background, near, antialias, acting)
    _check_float32(gaussians)
    cam_from_world = _cam_from_world(view)
    screen = ScreenGradients()
    settings = _Settings(view, near, antialias, acting, _threads(threads), screen)
    image, alpha, depth_sum, weights, means2d, radii = _Rasterize.apply(  # type: ignore[no-untyped-call]
        gaussians.means,
        gaussians.quaternions,
        gaussians.scales,
        gaussians.opacities,
        channels,
        background,
        cam_from_world,
        settings,
    )
    return RenderOutput(
        image,
        alpha,
        expected_depth(depth_sum, alpha),
        radii,
        radii > 0,
        means2d,
        weights,
        screen,
        settings.pairs,
    )


def accumulate_features(
    gaussians: Gaussians,
    features: Tensor,
    view: View,
    *,
    near: float = NEAR,
    antialias: bool = False,
    threads: int | None = None,
) -> FeatureSums:
    """Gather an image's features into the Gaussians that draw it, the transpose of rendering.

    Summed over views, features / weights is the average of what each Gaussian shows, weighted by
    how much it shows; no gradients.

    Args:
        gaussians: N Gaussians, float32.
        features: (H, W, C) float32 on the pixel grid of the view (`View.scaled` gives a coarser
            grid).
        view: the camera.
        near: as in `rasterize`.
        antialias: as in `rasterize`.
        threads: as in `rasterize`.

    Raises:
        InputError: shapes, dtypes or a camera that do not fit.
    """
    gaussians.check()
    view.check()
    if features.ndim != 3 or features.shape[:2] != (view.height, view.width):
        raise InputError(
            f"features have shape {tuple(features.shape)}, expected "
            f"({view.height}, {view.width}, C)."
        )
    if gaussians.means.is_cuda:
        from reloc_core.rendering.cuda import accumulate_cuda

        return accumulate_cuda(gaussians, features, view, near, antialias)
    _check_float32(gaussians)
    if features.dtype != torch.float32:
        raise InputError(f"features are {features.dtype}, the CPU rasterizer takes float32.")
    scene = _native.SplatScene(*_arrays(gaussians), np.zeros((len(gaussians), 0), dtype=np.float32))
    settings = _Settings(view, near, antialias, 0, _threads(threads), ScreenGradients())
    weights, sums = _native.splat_accumulate(
        scene,
        settings.native_view(_cam_from_world(view)),
        _array(features),
        settings.native_options(keep=False),
    )
    return FeatureSums(torch.from_numpy(weights), torch.from_numpy(sums))


def _check_float32(gaussians: Gaussians) -> None:
    if gaussians.means.dtype != torch.float32:
        raise InputError(
            f"The Gaussians are {gaussians.means.dtype}, the CPU rasterizer takes float32."
        )


def _threads(threads: int | None) -> int:
    chosen = torch.get_num_threads() if threads is None else threads
    if chosen < 1:
        raise InputError(f"threads is {chosen}, must be at least 1.")
    return chosen


def _cam_from_world(view: View) -> Tensor:
    """Return (3, 4) float64 on the CPU, connected to the pose."""
    pose = view.world_from_cam.to("cpu", torch.float64)
    rotation = pose[:3, :3].T
    return torch.cat([rotation, -rotation @ pose[:3, 3:]], dim=1)


def _array(tensor: Tensor) -> _Floats:
    return tensor.detach().contiguous().numpy()


def _arrays(gaussians: Gaussians) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    return (
        _array(gaussians.means),
        _array(gaussians.quaternions),
        _array(gaussians.scales),
        _array(gaussians.opacities),
    )


class _Settings:
    """What a render needs besides tensors."""

    def __init__(
        self,
        view: View,
        near: float,
        antialias: bool,
        geometry_channels: int,
        threads: int,
        screen: ScreenGradients,
    ) -> None:
        self.view = view
        self.near = near
        self.antialias = antialias
        self.geometry_channels = geometry_channels
        self.threads = threads
        self.screen = screen
        self.pairs = 0

    def native_view(self, cam_from_world: Tensor) -> _native.SplatView:
        view = self.view
        return _native.SplatView(
            cam_from_world.detach().reshape(-1).tolist(),
            [view.fx, view.fy, view.cx, view.cy],
            list(view.slope_limits()),
            view.width,
            view.height,
        )

    def native_options(self, keep: bool) -> _native.SplatOptions:
        return _native.SplatOptions(self.near, self.antialias, keep, self.threads)


class _Rasterize(torch.autograd.Function):
    """The native forward and backward passes as one autograd function."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quaternions: Tensor,
        scales: Tensor,
        opacities: Tensor,
        channels: Tensor,
        background: Tensor | None,
        cam_from_world: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, ...]:
        gaussians = Gaussians(means, quaternions, scales, opacities)
        scene = _native.SplatScene(*_arrays(gaussians), _array(channels))
        view = settings.native_view(cam_from_world)
        behind = None if background is None else _array(background)
        keep = any(ctx.needs_input_grad)
        state, *outputs, settings.pairs = _native.splat_rasterize(
            scene, view, behind, settings.native_options(keep)
        )
        image, alpha, light, depth_sum, weights, means2d, radii = map(torch.from_numpy, outputs)
        if keep:
            # Saved so that autograd notices when one is changed in place before the backward pass.
            ctx.save_for_backward(means, quaternions, scales, opacities, channels, background)
            ctx.kept = (state, scene, view, behind, settings)
            ctx.transmittance = light
        ctx.mark_non_differentiable(weights, means2d, radii)
        ctx.set_materialize_grads(False)
        return image, alpha, depth_sum, weights, means2d, radii

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,
        grad_image: Tensor | None,
        grad_alpha: Tensor | None,
        grad_depth: Tensor | None,
        *_: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        ctx.saved_tensors  # noqa: B018  (checks for changes in place)
        state, scene, view, behind, settings = ctx.kept
        needs = ctx.needs_input_grad
        geometry_wanted = any(needs[:4]) or needs[6]
        *gradients, pose = _native.splat_backward(
            state,
            scene,
            view,
            behind,
            None if grad_image is None else _array(grad_image),
            None if grad_alpha is None else _array(grad_alpha),
            None if grad_depth is None else _array(grad_depth),
            needs[4],
            geometry_wanted,
            settings.geometry_channels,
            settings.threads,
        )
        channels, means, quaternions, scales, opacities, means2d, means2d_abs = (
            None if g is None else torch.from_numpy(g) for g in gradients
        )
        settings.screen.means, settings.screen.means_abs = means2d, means2d_abs
        through = None
        if needs[5] and grad_image is not None:
            through = torch.einsum("hw,hwc->c", ctx.transmittance, grad_image)
        moved = None
        if needs[6]:
            twelve = torch.from_numpy(pose)
            moved = torch.cat([twelve[:9].reshape(3, 3), twelve[9:, None]], dim=1)
        return means, quaternions, scales, opacities, channels, through, moved, None
