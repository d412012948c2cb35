"""What the network knows about an image: dense XFeat descriptors and the rays of their cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.features.xfeat import STRIDE, XFeat
from reloc_core.geometry import unproject
from reloc_core.mapping.views import working_scale
from reloc_core.types import Camera, Float64Array, ImageArray

_SMALLEST = 64  # px, shorter side of a described image
_WINDOW = 2  # cells around the best one that take part in its sub-cell position
_SHARPNESS = 40.0  # of the soft maximum; cosine similarities differ by hundredths between cells


@dataclass(frozen=True)
class DenseFrame:
    """Dense features of one image.

    Attributes:
        maps: (64, rows, columns) unit descriptors, float32 or float16.
        pixel_scale: (2,) original pixels per pixel of the described image, x and y.
    """

    maps: Tensor
    pixel_scale: Float64Array

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.maps.shape[1]), int(self.maps.shape[2])

    def half(self) -> DenseFrame:
        """The same in half precision."""
        return DenseFrame(self.maps.half(), self.pixel_scale)

    def original_pixels(self, cells: Float64Array) -> Float64Array:
        """Pixels (..., 2) of the original image at cell coordinates (..., 2), x and y."""
        described = STRIDE * cells + (STRIDE - 1) / 2
        return np.asarray((described + 0.5) * self.pixel_scale - 0.5, np.float64)


class Describer:
    """Describes images with frozen XFeat.

    Args:
        resolution: the shorter side of images is scaled to this many pixels.
        device: where the network runs.
    """

    def __init__(self, resolution: int, device: str = "cpu") -> None:
        self.resolution = resolution
        self.backbone = XFeat().to(device)
        self.device = device

    @torch.inference_mode()
    def describe(self, image: ImageArray) -> DenseFrame:
        """Dense unit descriptors of an RGB image (H, W, 3) uint8."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        height, width = grey.shape
        factor = working_scale(width, height, self.resolution)
        size = (max(round(width * factor), _SMALLEST), max(round(height * factor), _SMALLEST))
        if size != (width, height):
            shrink = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
            grey = cv2.resize(grey, size, interpolation=shrink)
        tensor = torch.from_numpy(grey).to(self.device)[None, None].float() / 255
        maps = F.normalize(self.backbone(tensor)[0], dim=0).cpu().contiguous()
        return DenseFrame(maps, np.array([width / size[0], height / size[1]]))


def grid_cells(shape: tuple[int, int], count: int) -> np.ndarray:
    """At most `count` cells (N, 2) as integer x, y, spread evenly over a grid of rows and columns."""
    rows, columns = shape
    step = math.sqrt(rows * columns / count)
    down, across = max(int(rows / step), 1), max(int(columns / step), 1)
    y = np.floor((np.arange(down) + 0.5) * rows / down).astype(int)
    x = np.floor((np.arange(across) + 0.5) * columns / across).astype(int)
    return np.stack([np.tile(x, down), np.repeat(y, across)], -1)[:count]


def rays(camera: Camera, pixels: Float64Array) -> np.ndarray:
    """Ray coordinates x/z, y/z (..., 2) float32 of pixels; NaN where the lens model has none."""
    return unproject(camera, pixels)[..., :2].astype(np.float32)


@torch.inference_mode()
def soft_matches(reference: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Where cells of references are seen in another image.

    The best cell by cosine similarity, moved by a soft maximum over its neighbourhood.

    Args:
        reference: (N, K, C) unit descriptors of cells of N images; zero rows for absent cells.
        maps: (C, rows, columns) unit descriptors of the other image.

    Returns:
        cell coordinates (N, K, 2) x, y, and (N, K, 3): similarity of the best cell, how far it exceeds
        the best one elsewhere, and 1 where that cell's own best match among the K is this one.
    """
    rows, columns = maps.shape[1:]
    flat = maps.reshape(maps.shape[0], -1).float()
    similarity = reference.float() @ flat  # (N, K, cells)
    best, index = similarity.max(-1)
    back = similarity.max(1).indices  # (N, cells): the best of the K for each cell
    own = torch.arange(reference.shape[1], device=index.device)
    mutual = back.gather(1, index) == own
    y, x = index // columns, index % columns
    offsets = torch.arange(-_WINDOW, _WINDOW + 1, device=index.device)
    wy = (y[..., None] + offsets).clamp(0, rows - 1)
    wx = (x[..., None] + offsets).clamp(0, columns - 1)
    around = (wy[..., :, None] * columns + wx[..., None, :]).flatten(-2)  # (N, K, 25)
    window = similarity.gather(-1, around)
    weight = torch.softmax(_SHARPNESS * window, -1)
    # Border cells appear twice in clamped windows; their copies share position and do no harm.
    position = torch.stack(
        [(weight * (around % columns)).sum(-1), (weight * (around // columns)).sum(-1)], -1
    )
    elsewhere = similarity.scatter_(-1, around, -1.0).amax(-1)  # overwritten: a copy costs a fifth
    return position, torch.stack([best, best - elsewhere, mutual.float()], -1)
