"""The published augmentation of images with scene coordinate labels."""

from __future__ import annotations

import cv2
import numpy as np

from reloc_core.mapping.views import working_scale
from reloc_core.types import Float64Array, ImageArray

_ROTATION = np.radians(30.0)


def jitter(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Grey levels (H, W, 3) with another brightness and contrast, not clipped.

    Args:
        image: 0..255.
        brightness: added.
        contrast: factor on the distance from the mean of each channel.
    """
    values = np.asarray(image, np.float32) + np.float32(brightness)
    mean = values.mean((0, 1))
    return np.asarray((values - mean) * np.float32(contrast) + mean, np.float32)


def draw_jitter(rng: np.random.Generator) -> tuple[float, float]:
    """Brightness and contrast as published."""
    return float(rng.uniform(-20, 20)), float(rng.uniform(0.8, 1.2))


def draw_motion(rng: np.random.Generator, height: int, width: int, zoom: bool) -> Float64Array:
    """source_from_output (2, 3) in pixels: a rotation, and with `zoom` a crop or a shrinkage.

    As published: one image in ten stays, the others turn by up to 30 degrees; half of these are
    cropped to at least 80 % and enlarged, half shrunk to at least 80 %. Without `zoom`, eight in ten
    turn.
    """
    choice = rng.random()
    if choice < (0.1 if zoom else 0.2):
        return np.eye(2, 3)
    angle = rng.uniform(-_ROTATION, _ROTATION)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale, shift = 1.0, np.zeros(2)
    if zoom and choice < 0.55:
        y, x = rng.uniform(0, 0.2, 2)
        scale = float(rng.uniform(0.8, 1 - max(x, y)))
        shift = np.array([x * width, y * height])
    elif zoom:
        scale = 1 / float(rng.uniform(0.8, 1.0))
        shift = centre * (1 - scale)
    # output -> cropped -> rotated about the centre
    return np.column_stack([rotation * scale, rotation @ (shift - centre) + centre])


def moved_image(image: np.ndarray, motion: Float64Array) -> np.ndarray:
    """The image seen through `draw_motion`'s result; black outside."""
    size = (image.shape[1], image.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, motion, size, flags=flags))


def moved_pixels(pixels: Float64Array, motion: Float64Array) -> Float64Array:
    """Where output pixels (N, 2) lie in the source image."""
    return np.asarray(pixels @ motion[:, :2].T + motion[:, 2])


def scaled_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Width and height of the image at a resolution, before it is cut; at least a cell of eight pixels."""
    scale = working_scale(width, height, resolution)
    return max(round(width * scale), 8), max(round(height * scale), 8)


def scaled_rgb(image: ImageArray, resolution: int) -> ImageArray:
    """The image at a resolution (shorter side), cut to multiples of eight pixels at right and bottom."""
    height, width = image.shape[:2]
    size = scaled_size(width, height, resolution)
    if size != (width, height):
        how = cv2.INTER_AREA if size[0] < width else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)
    return np.ascontiguousarray(image[: size[1] // 8 * 8, : size[0] // 8 * 8])


def corner_pixels(
    original: tuple[int, int], resolution: int
) -> tuple[Float64Array, tuple[int, int]]:
    """The pixels that published cells stand for, the top left one of each, in the original image.

    Args:
        original: height and width.
        resolution: shorter side of the image that the cells tile.

    Returns:
        (h * w, 2) pixels and the grid's shape.
    """
    scaled = scaled_size(*original, resolution)
    shape = (scaled[0] // 8, scaled[1] // 8)
    axes = [
        (np.arange(n) * 8 + 0.5) * full / small - 0.5
        for n, full, small in zip(shape, original, scaled, strict=True)
    ]
    y, x = np.meshgrid(*axes, indexing="ij")
    return np.stack([x, y], -1).reshape(-1, 2), shape
