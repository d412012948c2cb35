"""What goes into the rasterizer and what comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reloc_core.errors import InputError

# The model of an image, shared by all backends (3D Gaussian Splatting, Kerbl et al. 2023).
ALPHA_MIN = 1.0 / 255.0  # fainter contributions of a Gaussian to a pixel are dropped
ALPHA_MAX = 0.99  # no Gaussian is more opaque than this
TRANSMITTANCE_MIN = 1e-4  # the Gaussian that would cross this bound, and all behind, are dropped
DILATION = 0.3  # variance in px^2 added to every projected Gaussian
NEAR = 0.2
SCREEN_LIMIT = 1e9  # centres farther than this from the image, in pixels, are dropped


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians in physical values (activations applied).

    Attributes:
        means: (N, 3) centres, world frame.
        quaternions: (N, 4) w, x, y, z; normalised by the rasterizer, the zero quaternion counts as
            the identity.
        scales: (N, 3) standard deviations along the axes, positive.
        opacities: (N,) in 0..1.
    """

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor

    def __len__(self) -> int:
        return int(self.means.shape[0])

    def check(self) -> None:
        """Raise InputError unless the shapes fit and all tensors share dtype and device."""
        n = self.means.shape[0] if self.means.ndim else -1
        shapes = {
            "means": (self.means, (n, 3)),
            "quaternions": (self.quaternions, (n, 4)),
            "scales": (self.scales, (n, 3)),
            "opacities": (self.opacities, (n,)),
        }
        for name, (tensor, shape) in shapes.items():
            if tuple(tensor.shape) != shape:
                raise InputError(
                    f"Gaussians.{name} has shape {tuple(tensor.shape)}, expected {shape}."
                )
            if tensor.dtype != self.means.dtype or tensor.device != self.means.device:
                raise InputError(
                    f"Gaussians.{name} is {tensor.dtype} on {tensor.device}, but the means are "
                    f"{self.means.dtype} on {self.means.device}; convert all to the same."
                )


@dataclass(frozen=True)
class View:
    """A pinhole camera without distortion at a pose.

    Attributes:
        world_from_cam: (4, 4) rigid transform, OpenCV axes. A tensor that requires gradients
            receives them (move it with `exp_se3` to stay on SE(3)). Use float64.
        fx, fy, cx, cy: pixels; (0, 0) is the centre of the top-left pixel.
        width, height: pixels.
    """

    world_from_cam: Tensor
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def scaled(self, width: int, height: int) -> View:
        """Return the same view sampled on another pixel grid that covers the same area."""
        sx, sy = width / self.width, height / self.height
        return View(
            self.world_from_cam,
            self.fx * sx,
            self.fy * sy,
            (self.cx + 0.5) * sx - 0.5,
            (self.cy + 0.5) * sy - 0.5,
            width,
            height,
        )

    def check(self) -> None:
        """Raise InputError for an impossible camera or a pose that is no finite 4x4 matrix."""
        if tuple(self.world_from_cam.shape) != (4, 4):
            raise InputError(
                f"View.world_from_cam has shape {tuple(self.world_from_cam.shape)}, not (4, 4)."
            )
        if not bool(torch.isfinite(self.world_from_cam.detach()).all()):
            raise InputError("View.world_from_cam has entries that are not finite.")
        if self.width < 1 or self.height < 1:
            raise InputError(f"An image of {self.width}x{self.height} pixels cannot be rendered.")
        intrinsics = (self.fx, self.fy, self.cx, self.cy)
        if not all(map(math.isfinite, intrinsics)) or self.fx <= 0 or self.fy <= 0:
            raise InputError(
                f"The intrinsics fx={self.fx}, fy={self.fy}, cx={self.cx}, cy={self.cy} must be "
                "finite, the focal lengths positive."
            )

    def slope_limits(self) -> tuple[float, float, float, float]:
        """Return (x_min, x_max, y_min, y_max) of x/z and y/z inside the projection's Jacobian.

        The image plus 30 % of half its extent on each side; clamping there keeps the affine
        approximation finite for Gaussians far outside the view.
        """
        margin_x, margin_y = 0.15 * self.width / self.fx, 0.15 * self.height / self.fy
        return (
            -(self.cx + 0.5) / self.fx - margin_x,
            (self.width - 0.5 - self.cx) / self.fx + margin_x,
            -(self.cy + 0.5) / self.fy - margin_y,
            (self.height - 0.5 - self.cy) / self.fy + margin_y,
        )


@dataclass
class ScreenGradients:
    """Gradients of the loss with respect to the projected centres, filled by `backward()`.

    Attributes:
        means: (N, 2) in 1/pixel, None before the backward pass. Multiply by (width/2, height/2)
            for the units of the densification thresholds of 3D Gaussian Splatting.
        means_abs: (N, 2) sum over pixels of the absolute gradient (AbsGS), None before.
    """

    means: Tensor | None = None
    means_abs: Tensor | None = None


@dataclass(frozen=True)
class RenderOutput:
    """A rendered view.

    Attributes:
        image: (H, W, C) blended channels, background added where light passes.
        alpha: (H, W) accumulated opacity, 0..1.
        depth: (H, W) expected depth: the blending-weighted mean of the camera z of the centres,
            sum(w z) / sum(w); 0 where alpha is 0. No background term.
        radii: (N,) int32, three standard deviations along the longer axis in pixels, rounded up;
            0 where not visible.
        visible: (N,) bool: in front of the near plane, opaque enough and reaching into the image.
        means2d: (N, 2) projected centres in pixels, not differentiable; meaningless where not
            visible.
        weights: (N,) blending weight summed over all pixels, not differentiable.
        pairs: number of (Gaussian, pixel) pairs blended, what the render costs; None on CUDA.
        screen_gradients: filled when `backward()` runs through this output.
    """

    image: Tensor
    alpha: Tensor
    depth: Tensor
    radii: Tensor
    visible: Tensor
    means2d: Tensor
    weights: Tensor
    screen_gradients: ScreenGradients = field(default_factory=ScreenGradients)
    pairs: int | None = None


@dataclass(frozen=True)
class FeatureSums:
    """Image features gathered by Gaussians; add several views, then divide.

    Attributes:
        weights: (N,) sum over pixels of the blending weight w.
        features: (N, C) sum over pixels of w times the pixel's features.
    """

    weights: Tensor
    features: Tensor


def expected_depth(depth_sum: Tensor, alpha: Tensor) -> Tensor:
    """Divide the accumulated depth by the accumulated opacity; 0 where nothing was drawn."""
    return depth_sum / alpha.clamp_min(1e-10)


def check_channels(gaussians: Gaussians, channels: Tensor, background: Tensor | None) -> None:
    """Raise InputError unless channels are (N, C) and the background is (C,)."""
    n = len(gaussians)
    if channels.ndim != 2 or channels.shape[0] != n:
        raise InputError(f"channels have shape {tuple(channels.shape)}, expected ({n}, C).")
    if channels.dtype != gaussians.means.dtype or channels.device != gaussians.means.device:
        raise InputError(
            f"channels are {channels.dtype} on {channels.device}, but the Gaussians are "
            f"{gaussians.means.dtype} on {gaussians.means.device}; convert one of them."
        )
    if background is not None and tuple(background.shape) != (channels.shape[1],):
        raise InputError(
            f"background has shape {tuple(background.shape)}, expected ({channels.shape[1]},)."
        )
