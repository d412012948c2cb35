"""Views: an image as the encoder sees it, with the geometry to get back to the camera.

Augmentation is a change of camera: resizing changes the intrinsics, and rotating the image about the
principal point by theta rotates the camera by R_z(theta) about its optical axis. Both are exact here
for off-centre principal points, fx != fy and lens distortion, because rays are computed from pixels of
the unrotated image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.geometry import unproject
from reloc_core.mapping.views import MAX_ASPECT, working_scale
from reloc_core.types import Camera, Float64Array, FloatArray, ImageArray
from scr_glace.config import AugmentConfig, ImageConfig
from scr_glace.networks.encoder import Encoder

_LEAST = 32  # px of either side that the encoders take


@dataclass(frozen=True)
class View:
    """An image prepared for the encoder.

    Attributes:
        grey: (1, 1, h, w) float32 in 0..1.
        camera: intrinsics of the resized image before the rotation.
        original: intrinsics of the stored image.
        angle: in-plane rotation in radians, positive counter-clockwise as seen by a viewer.
        ray_scale: 1, or the factor by which the published code distorts rays of portrait images.
    """

    grey: Tensor
    camera: Camera
    original: Camera
    angle: float = 0.0
    ray_scale: float = 1.0

    @property
    def view_from_cam(self) -> Float64Array:
        """(3, 3) rotation R_z(angle)^T from the photograph's camera axes to the view's."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])

    @property
    def focal(self) -> tuple[float, float]:
        """fx, fy in pixels of the resized image, as the loss measures errors."""
        return self.camera.fx / self.ray_scale, self.camera.fy / self.ray_scale

    def unrotated(self, points: FloatArray) -> Float64Array:
        """Pixels (N, 2) of the resized, unrotated image of view pixels (N, 2)."""
        pixels: Float64Array = np.asarray(points, np.float64)
        if self.angle == 0.0:
            return pixels
        focal = np.array([self.camera.fx, self.camera.fy])
        center = np.array([self.camera.cx, self.camera.cy])
        rotated = ((pixels - center) / focal) @ self.view_from_cam[:2, :2]
        result: Float64Array = rotated * focal + center
        return result

    def rays(self, points: FloatArray) -> tuple[Float64Array, np.ndarray]:
        """Viewing rays in the view's axes.

        Args:
            points: (N, 2) view pixels.

        Returns:
            (N, 2) x and y at z = 1, and a mask (N,) of those inside the photograph.
        """
        pixels = self.unrotated(points)
        rays = unproject(self.camera, pixels)[:, :2] * self.ray_scale
        size = np.array([self.camera.width, self.camera.height])
        inside = np.all((pixels >= -0.5) & (pixels <= size - 0.5) & np.isfinite(rays), axis=-1)
        return rays @ self.view_from_cam[:2, :2].T, inside

    def view_pixels(self, points: FloatArray) -> Float64Array:
        """View pixels (N, 2) of pixels of the stored image: what `original_pixels` undoes."""
        size = np.array([self.camera.width, self.camera.height])
        stored = np.array([self.original.width, self.original.height])
        pixels: Float64Array = (np.asarray(points, np.float64) + 0.5) * (size / stored) - 0.5
        focal = np.array([self.camera.fx, self.camera.fy])
        center = np.array([self.camera.cx, self.camera.cy])
        turned: Float64Array = ((pixels - center) / focal) @ self.view_from_cam[
            :2, :2
        ].T * focal + center
        return turned

    def original_pixels(self, points: FloatArray) -> Float64Array:
        """Pixels (N, 2) of the stored image of view pixels (N, 2), for the solver."""
        size = np.array([self.camera.width, self.camera.height])
        stored = np.array([self.original.width, self.original.height])
        pixels: Float64Array = (self.unrotated(points) + 0.5) * (stored / size) - 0.5
        if self.ray_scale == 1.0:
            return pixels
        center = np.array([self.original.cx, self.original.cy])
        pixels = center + (pixels - center) * self.ray_scale
        return pixels


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height after scaling the shorter side to `short_side` (the longer is truncated).

    Very long images are scaled by less, by `working_scale`, to no fewer pixels than the encoders take.
    """
    if max(width, height) > MAX_ASPECT * min(width, height):
        scale = working_scale(width, height, short_side)
        return max(int(width * scale), _LEAST), max(int(height * scale), _LEAST)
    if width >= height:
        return int(short_side * width / height), short_side
    return short_side, int(short_side * height / width)


def make_view(
    encoder: Encoder,
    image: ImageArray,
    camera: Camera,
    config: ImageConfig,
    short_side: int | None = None,
) -> View:
    """The unaugmented view of an image.

    Args:
        encoder: whose input to prepare.
        image: (H, W, 3) uint8 RGB.
        camera: its intrinsics.
        config: resolution and parity switch.
        short_side: overrides the resolution of the config.
    """
    width, height = resized_size(
        camera.width, camera.height, config.resolution if short_side is None else short_side
    )
    grey = encoder.prepare(image)
    if (width, height) != (camera.width, camera.height):
        grey = F.interpolate(grey, (height, width), mode="bilinear", antialias=True)
    portrait = camera.height > camera.width and config.portrait_focal_defect
    scale = camera.height / camera.width if portrait else 1.0
    return View(grey, camera.scaled(width, height), camera, ray_scale=scale)


def augmented_view(
    encoder: Encoder,
    image: ImageArray,
    camera: Camera,
    config: ImageConfig,
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> View:
    """A randomly scaled, rotated and re-exposed view of an image (ACE)."""
    if not augment.enabled:
        return make_view(encoder, image, camera, config)
    factor = rng.uniform(1 / augment.scale, augment.scale)
    angle = math.radians(rng.uniform(-augment.rotation_deg, augment.rotation_deg))
    view = make_view(encoder, image, camera, config, max(int(config.resolution * factor), 32))
    grey = _jitter(view.grey, augment, rng)
    if angle:
        grey = rotate(grey, view.camera, angle)
    return View(grey, view.camera, camera, angle, view.ray_scale)


def rotate(grey: Tensor, camera: Camera, angle: float) -> Tensor:
    """Rotate an image (1, 1, h, w) about the optical axis, mirrored at the borders, size kept."""
    c, s = math.cos(angle), math.sin(angle)
    ratio = camera.fx / camera.fy
    # Unrotated pixel of every output pixel: K R_z(angle) K^-1.
    linear = np.array([[c, -s * ratio], [s / ratio, c]])
    center = np.array([camera.cx, camera.cy])
    inverse_map = np.column_stack([linear, center - linear @ center])
    size = (camera.width, camera.height)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    pixels = cv2.warpAffine(
        grey[0, 0].numpy(), inverse_map, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )
    return torch.from_numpy(pixels)[None, None]


def _jitter(grey: Tensor, augment: AugmentConfig, rng: np.random.Generator) -> Tensor:
    brightness = rng.uniform(1 - augment.brightness, 1 + augment.brightness)
    contrast = rng.uniform(1 - augment.contrast, 1 + augment.contrast)
    steps = ["brightness", "contrast"]
    for step in steps if rng.random() < 0.5 else steps[::-1]:
        if step == "brightness":
            grey = (grey * brightness).clamp(0, 1)
        else:
            grey = torch.lerp(grey.mean(), grey, contrast).clamp(0, 1)
    return grey
