"""Images as the networks see them: undistorted, at the working resolution, and as a grid of rays.

A *cell* is the square of `stride` x `stride` pixels that one ray stands for; the ray goes through the
cell's centre, colours are the cell's mean, and XFeat's descriptor map has the same cells. One convention
everywhere (pixel areas), so that no resampling shifts one side against the other.

The *published* grid is that of NeFeS, which its weights were trained with: w = W // stride columns and
h = H // stride rows (106 of 427: the image is a little wider than its rays), rays
((i - w/2) / f, (j - h/2) / f, 1) through corners with a focal length f of the scene over the stride,
colours interpolated bilinearly at areas and features at aligned corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from nefes_refine.config import FieldConfig, ViewConfig
from reloc_core.mapping.views import resample, resample_depth, working_scale
from reloc_core.types import Camera, DepthArray, FloatArray, ImageArray, Query

_SHAPE = 0.02  # relative difference of aspect ratios that rounding explains


@dataclass(frozen=True)
class View:
    """One image at the working resolution.

    Attributes:
        image: (H, W, 3) uint8, undistorted.
        camera: pinhole camera of `image`.
        cells: pinhole camera of the grid of cells, one pixel per cell.
        stride: pixels per cell.
        grid: see `ViewConfig`.
        depth: (rows, columns) float32 of the cells' centres, 0 where unknown, or None.
    """

    image: ImageArray
    camera: Camera
    cells: Camera
    stride: int
    grid: str = "cells"
    depth: DepthArray | None = None

    def colours(self) -> FloatArray:
        """Colour (rows, columns, 3) of the cells, float32 in 0..1: their mean, unless published."""
        size = (self.cells.width, self.cells.height)
        if self.grid == "published":
            pixels = self.image.astype(np.float32) / 255
            return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR))
        stride = self.stride
        pad = (size[1] * stride - self.camera.height, size[0] * stride - self.camera.width)
        padded = cv2.copyMakeBorder(self.image, 0, pad[0], 0, pad[1], cv2.BORDER_REPLICATE)
        small = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
        return small.astype(np.float32) / 255


def working_size(camera: Camera, resolution: int) -> tuple[int, int]:
    """(width, height) of the image whose shorter side is `resolution`."""
    scale = working_scale(camera.width, camera.height, resolution)
    return max(round(camera.width * scale), 1), max(round(camera.height * scale), 1)


def cell_camera(camera: Camera, stride: int) -> Camera:
    """The camera of the grid of cells of a pinhole camera's image; the last cells may overhang."""
    columns, rows = -(-camera.width // stride), -(-camera.height // stride)
    center = [(c + 0.5) / stride - 0.5 for c in (camera.cx, camera.cy)]
    return Camera(
        "PINHOLE", columns, rows, (camera.fx / stride, camera.fy / stride, center[0], center[1])
    )


def published_grid(camera: Camera, config: ViewConfig) -> Camera:
    """The camera of NeFeS' rays for a pinhole camera's image; see the module docstring.

    The published centre (w/2, h/2) is half a cell behind that of the grid, and the image's own principal
    point is not looked at.
    """
    columns, rows = camera.width // config.stride, camera.height // config.stride
    focal = (config.focal or camera.fx) / config.stride
    return Camera("PINHOLE", columns, rows, (focal, focal, columns / 2, rows / 2))


def make_view(query: Query, config: ViewConfig, size: tuple[int, int] | None = None) -> View:
    """Undistort and resize a query.

    Args:
        query: any camera model.
        config: resolution, stride and grid.
        size: (width, height) to force, for maps whose images must be of one size; images of another
            shape are cut to it about their middle, not squeezed.

    Returns:
        the view, with a PINHOLE camera.
    """
    width, height = size or working_size(query.camera, config.resolution)
    camera = _working_camera(query.camera, width, height)
    published = config.grid == "published"
    cells = published_grid(camera, config) if published else cell_camera(camera, config.stride)
    image, _ = resample(query.image, query.camera, camera)
    depth = None
    if query.depth is not None:
        depth = resample_depth(query.depth, query.camera, cells)
    return View(image, camera, cells, config.stride, config.grid, depth)


def _same_shape(camera: Camera, width: int, height: int) -> bool:
    """Whether an image of this size shows the same, up to the rounding of sizes."""
    return abs(camera.width * height / (camera.height * width) - 1) <= _SHAPE


def _working_camera(camera: Camera, width: int, height: int) -> Camera:
    """The pinhole camera of the working image."""
    if _same_shape(camera, width, height):
        scaled = camera.scaled(width, height)
        return Camera("PINHOLE", width, height, (scaled.fx, scaled.fy, scaled.cx, scaled.cy))
    scale = max(width / camera.width, height / camera.height)
    # Pixel centres, and the middle of the image stays the middle.
    center = [
        (c + 0.5 - size / 2) * scale + new / 2 - 0.5
        for c, size, new in (
            (camera.cx, camera.width, width),
            (camera.cy, camera.height, height),
        )
    ]
    return Camera("PINHOLE", width, height, (camera.fx * scale, camera.fy * scale, *center))


def exposure(view: View, colours: FloatArray, config: FieldConfig) -> FloatArray:
    """The histogram (bins,) that sets the exposure of an image whose cells have these colours."""
    pixels = view.image.astype(np.float32) / 255 if config.histogram_of_image else colours
    return histogram(pixels, config.histogram_bins)


def histogram(colours: FloatArray, bins: int) -> FloatArray:
    """Luminance histogram (bins,) in whole percent, the exposure of an image.

    Args:
        colours: (..., 3) in 0..1.
        bins: equal bins on [0, 1].
    """
    luminance = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    counts, _ = np.histogram(np.clip(luminance, 0, 1), bins, (0, 1))
    result: FloatArray = np.round(100 * counts / max(counts.sum(), 1)).astype(np.float32)
    return result
