"""Images as grids of frozen XFeat features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.features.xfeat import STRIDE, XFeat
from reloc_core.mapping.views import working_grey
from reloc_core.types import Float64Array, ImageArray, Query


@dataclass(frozen=True)
class FeatureGrid:
    """Features of one image.

    Attributes:
        features: (C, h, w) float32 unit vectors per cell.
        pixels: (h * w, 2) float64 centres of the cells in pixels of the original image.
        grey: (H, W) uint8, the scaled image that was described.
        contrast: standard deviation of the grey levels (0..255).
        scale: (2,) pixels of the original image per pixel of the scaled one, x first.
    """

    features: Tensor
    pixels: Float64Array
    grey: ImageArray
    contrast: float
    scale: Float64Array

    def cells(self, pixels: Float64Array) -> np.ndarray:
        """The nearest cells (N, 2) int64, x first, of pixels (N, 2) of the original image."""
        rows, columns = self.shape
        centres = self.pixels.reshape(rows, columns, 2)
        last = np.array([columns - 1, rows - 1])
        step = (centres[-1, -1] - centres[0, 0]) / np.maximum(last, 1)
        place = np.nan_to_num((pixels - centres[0, 0]) / np.maximum(step, 1e-9))
        return np.asarray(np.rint(place).astype(np.int64).clip(0, last))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.features.shape[-2]), int(self.features.shape[-1])


class FeatureExtractor:
    """XFeat at a fixed resolution; remembers the last image, which several stages ask for.

    Args:
        resolution: images are scaled so that their shorter side has this many pixels.
        device: where to compute.
    """

    def __init__(self, resolution: int, device: str = "cpu") -> None:
        self.resolution = resolution
        self.device = device
        self.network = XFeat().to(device)
        self._last: tuple[ImageArray, FeatureGrid] | None = None

    @torch.inference_mode()
    def __call__(self, query: Query) -> FeatureGrid:
        """Features of a query's image."""
        if self._last is not None and self._last[0] is query.image:
            return self._last[1]
        grey, pixels = prepare(query.image, self.resolution)
        maps = self.network(torch.from_numpy(grey).float()[None, None].to(self.device) / 255)
        features = F.normalize(maps[0], dim=0).cpu()
        full = np.array(query.image.shape[1::-1], np.float64)
        scale = full / np.array(grey.shape[1::-1])
        grid = FeatureGrid(features, pixels, grey, float(grey.std()), scale)
        self._last = (query.image, grid)
        return grid


def prepare(image: ImageArray, resolution: int) -> tuple[ImageArray, Float64Array]:
    """Grey image at the resolution, and the centres of its cells in original pixels."""
    grey, _ = working_grey(image, resolution, least=STRIDE)
    return grey, cell_pixels(image.shape[:2], grey.shape[:2])


def cell_pixels(original: tuple[int, int], scaled: tuple[int, int]) -> Float64Array:
    """Centres (h * w, 2) of the cells of a scaled image, in pixels of the original one.

    Args:
        original: height and width.
        scaled: height and width of the image that the cells of 8 x 8 pixels tile.
    """
    axes = []
    for full, small in zip(original, scaled, strict=True):
        cells = -(-small // STRIDE)
        centres = np.arange(cells) * STRIDE + (STRIDE - 1) / 2
        axes.append((centres + 0.5) * full / small - 0.5)
    y, x = np.meshgrid(*axes, indexing="ij")
    return np.stack([x, y], -1).reshape(-1, 2)
