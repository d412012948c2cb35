"""Views: images as a method works with them, resized and undistorted, with mask, depth and camera.

One border rule everywhere: pixels that the photograph did not see repeat its border, are False in the
mask and have no depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import cv2
import numpy as np

from reloc_core.geometry import project
from reloc_core.types import (
    BoolArray,
    Camera,
    DepthArray,
    Float64Array,
    FloatArray,
    ImageArray,
    Query,
)

MAX_ASPECT = 4.0
"""Longest side of a resized image over the side it was asked to have; panoramas have 2 to 3."""

Pixels = TypeVar("Pixels", ImageArray, FloatArray)


@dataclass(frozen=True)
class View:
    """One image as a pinhole camera would have taken it.

    Attributes:
        image: (H, W, 3) uint8.
        camera: its PINHOLE camera.
        mask: (H, W) whether the photograph saw the pixel, or None for everywhere.
        depth: (H, W) float32 along the optical axis, 0 where unknown, or None.
        world_from_cam: (4, 4), or None.
    """

    image: ImageArray
    camera: Camera
    mask: BoolArray | None = None
    depth: DepthArray | None = None
    world_from_cam: Float64Array | None = None


def pinhole_camera(
    camera: Camera,
    short_side: int = 0,
    *,
    enlarge: bool = False,
    size: tuple[int, int] | None = None,
) -> Camera:
    """The camera of the image resized and without distortion.

    Args:
        camera: of the stored image.
        short_side: length of the resized image's shorter side; 0 leaves the size as it is, and smaller
            images are left so too, unless `enlarge`.
        enlarge: whether smaller images grow.
        size: (width, height) instead.
    """
    if size is None:
        factor = working_scale(camera.width, camera.height, short_side) if short_side else 1.0
        factor = factor if enlarge else min(factor, 1.0)
        size = max(round(camera.width * factor), 8), max(round(camera.height * factor), 8)
    scaled = camera.scaled(*size)
    return Camera(
        "PINHOLE", scaled.width, scaled.height, (scaled.fx, scaled.fy, scaled.cx, scaled.cy)
    )


def working_scale(width: int, height: int, short_side: int) -> float:
    """The factor by which an image is resized so that its shorter side has `short_side` pixels.

    Very long images are resized by less: a strip of 640x3 would become 100,000 pixels long, and hundreds
    of bytes ask for gigabytes. Their longer side has at most `MAX_ASPECT` times `short_side` pixels.
    """
    return min(short_side / min(width, height), MAX_ASPECT * short_side / max(width, height))


def working_grey(
    image: ImageArray, short_side: int, *, least: int = 1, enlarge: bool = True
) -> tuple[ImageArray, tuple[float, float]]:
    """An image (H, W, 3) in grey, scaled by `working_scale`, and its (x, y) scale to the original.

    Args:
        image: RGB.
        short_side: see `working_scale`.
        least: pixels of either side.
        enlarge: whether smaller images grow.
    """
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    height, width = grey.shape
    factor = working_scale(width, height, short_side)
    if factor >= 1 and not enlarge:
        return grey, (1.0, 1.0)
    size = max(round(width * factor), least), max(round(height * factor), least)
    if size != (width, height):
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        grey = np.asarray(cv2.resize(grey, size, interpolation=how), np.uint8)
    return grey, (width / size[0], height / size[1])


def pixel_rays(camera: Camera) -> Float64Array:
    """Viewing directions (H, W, 3) with z = 1 of a pinhole camera's pixels."""
    x = (np.arange(camera.width) - camera.cx) / camera.fx
    y = (np.arange(camera.height) - camera.cy) / camera.fy
    xx, yy = np.meshgrid(x, y)
    return np.stack([xx, yy, np.ones_like(xx)], -1)


@lru_cache(maxsize=16)
def _sampling(
    camera: Camera, target: Camera, turn: tuple[float, ...]
) -> tuple[DepthArray, DepthArray, BoolArray]:
    """Where each pixel of `target` lies in an image of `camera`, columns and rows, and the mask."""
    rays = pixel_rays(target)
    if turn:
        rays = rays @ np.array(turn).reshape(3, 3).T
    pixels, _ = project(camera, rays)
    size = np.array([camera.width, camera.height])
    with np.errstate(invalid="ignore"):
        inside = ((pixels >= -0.5) & (pixels < size - 0.5)).all(-1)
    pixels = np.nan_to_num(pixels, nan=-1e6).clip(-1e6, 1e6)
    columns, rows = (np.array(pixels[..., k], np.float32) for k in (0, 1))
    return columns, rows, np.asarray(inside)


def _turn(camera_from_target: FloatArray | None) -> tuple[float, ...]:
    return () if camera_from_target is None else tuple(np.ravel(camera_from_target).tolist())


def resample(
    image: Pixels, camera: Camera, target: Camera, camera_from_target: FloatArray | None = None
) -> tuple[Pixels, BoolArray | None]:
    """An image as another camera at the same place would have taken it.

    Shrinks by pixel areas, so that nothing aliases, and interpolates bilinearly.

    Args:
        image: (H, W) or (H, W, C), uint8 or float32.
        camera: that took it.
        target: pinhole.
        camera_from_target: (3, 3) rotation between the two, None for none: a view turned in the plane
            is one with a rotation about z.

    Returns:
        the image, and the mask of what the photograph saw; None where it saw everything.
    """
    # First to the target's scale, by areas; exact for targets that are the resized camera itself.
    width = max(round(camera.width * target.fx / camera.fx), 1)
    height = max(round(camera.height * target.fy / camera.fy), 1)
    if abs(width - target.width) <= 1 and abs(height - target.height) <= 1:
        width, height = target.width, target.height
    if (width, height) != (camera.width, camera.height):
        shrink = width < camera.width
        method = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        image = cv2.resize(image, (width, height), interpolation=method)  # type: ignore[assignment]
        camera = camera.scaled(width, height)
    same = camera.is_pinhole and np.allclose(camera.matrix, target.matrix, atol=1e-6, rtol=1e-6)
    if same and camera_from_target is None and (width, height) == (target.width, target.height):
        return image, None
    columns, rows, inside = _sampling(camera, target, _turn(camera_from_target))
    result = cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return result, None if inside.all() else inside  # type: ignore[return-value]


def resample_depth(
    depth: DepthArray, camera: Camera, target: Camera, camera_from_target: FloatArray | None = None
) -> DepthArray:
    """Depth at the measurement nearest to each pixel of `target`, 0 where unknown.

    A mean over an edge would lie on neither surface. Rotations about the optical axis only: others
    change depth.
    """
    columns, rows, inside = _sampling(camera, target, _turn(camera_from_target))
    x = np.rint(columns).astype(int).clip(0, camera.width - 1)
    y = np.rint(rows).astype(int).clip(0, camera.height - 1)
    found = depth[y, x]
    return np.where(inside & np.isfinite(found) & (found > 0), found, 0).astype(np.float32)


def depth_at(query: Query, pixels: FloatArray) -> Float64Array:
    """Measured depth (N,) along the optical axis at the nearest pixel; NaN where there is none."""
    if query.depth is None or not len(pixels):
        return np.full(len(pixels), np.nan)
    x = np.rint(pixels[:, 0]).astype(int).clip(0, query.camera.width - 1)
    y = np.rint(pixels[:, 1]).astype(int).clip(0, query.camera.height - 1)
    found = query.depth[y, x].astype(np.float64)
    return np.where(found > 0, found, np.nan)


def make_view(
    query: Query,
    short_side: int = 0,
    *,
    enlarge: bool = False,
    size: tuple[int, int] | None = None,
) -> View:
    """Undistort and resize a query with its depth; see `pinhole_camera` for the arguments."""
    camera = pinhole_camera(query.camera, short_side, enlarge=enlarge, size=size)
    image, mask = resample(query.image, query.camera, camera)
    depth = None if query.depth is None else resample_depth(query.depth, query.camera, camera)
    return View(image, camera, mask, depth, query.world_from_cam)
