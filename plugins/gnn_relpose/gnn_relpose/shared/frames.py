"""What the networks know about an image: dense XFeat descriptors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reloc_core.features.xfeat import STRIDE, XFeat
from reloc_core.mapping.views import working_grey
from reloc_core.types import Float64Array, ImageArray

_SMALLEST = 64  # px, shorter side of a described image


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
        grey, scale = working_grey(image, self.resolution, least=_SMALLEST)
        tensor = torch.from_numpy(grey).to(self.device)[None, None].float() / 255
        maps = F.normalize(self.backbone(tensor)[0], dim=0).cpu().contiguous()
        return DenseFrame(maps, np.array(scale))
